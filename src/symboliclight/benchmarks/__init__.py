"""Benchmarks: each checks its fast path first, then measures ratios in one run and writes results/bench-NAME.json."""
