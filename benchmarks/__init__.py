"""Commands that measure: `python benchmarks/NAME.py`. Each compares everything it compares in one run, interleaved."""
