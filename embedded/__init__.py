"""The default that works offline: rendered scenes with known concepts and a tiny CLIP trained on them."""
