"""Measurements: `make bench-NAME` runs `benchmarks/NAME.py`. Figures worth keeping lie in `benchmarks/results/`."""
