"""Runs side by side: read from their directories, grouped by method, compared, shown. The front door is nsr.compare."""
