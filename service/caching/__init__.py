"""What one request computed, kept for the next one: here or in Redis."""
