"""The default that works offline: rendered scenes with known concepts and a tiny CLIP trained on them.

Boundary: may import the kernel, transformers and Pillow; training, index and service know this package only as a folder
of weights and a corpus.
"""
