"""Exact retrieval over codes: postings, similar images, nearest directions; knows nothing of manifests or tables."""
