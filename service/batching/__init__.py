"""What waits for the device, and in which order it gets there."""
