"""Benchmarks: `python -m benchmarks.NAME`. Each interleaves everything that it compares in one run."""
