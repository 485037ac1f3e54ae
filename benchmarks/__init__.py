"""Sources of the pages in docs/ and the numbers in benchmarks/results/: `python -m benchmarks.NAME`."""
