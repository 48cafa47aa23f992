"""Builds and reads what is precomputed over a corpus for one bundle."""
