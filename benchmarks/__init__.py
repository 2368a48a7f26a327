"""Benchmarks: `python -m benchmarks.NAME`. Each interleaves all that it compares in one run."""
