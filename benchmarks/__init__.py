"""Beside peers and beside the truth: `python -m benchmarks.attribution`, `python -m benchmarks.exact_truth`."""
