"""Makes sparse autoencoders and publishes them as bundles."""
