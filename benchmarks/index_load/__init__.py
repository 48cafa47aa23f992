"""Synthetic codes, contestants and figures of `make bench-index`."""
