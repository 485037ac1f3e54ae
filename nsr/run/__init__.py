"""A run directory and its life: status, resumption, signals, processes, files."""
