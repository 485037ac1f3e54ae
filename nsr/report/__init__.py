"""The report of a run, RUN/report.html: one self-contained page made from the run's files alone, without torch."""
