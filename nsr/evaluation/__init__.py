"""Measuring a network: the suite of attacks, its finished chunks, intervals, tables and files."""
