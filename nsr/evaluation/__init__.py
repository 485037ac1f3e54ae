"""Evaluation of a network: attack suite, result cache, masking checks, tables and files."""
