"""The experiment engine: plans as data, rows appended as runs start and end."""
