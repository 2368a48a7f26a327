"""Benchmarks: `python benchmarks/NAME.py`. Each interleaves everything that it compares in one run."""
