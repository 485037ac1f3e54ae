"""Comparison of runs: read from their directories, grouped by method, compared, printed. Start at nsr.compare."""
