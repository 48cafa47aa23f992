"""What operators see: logs, metrics, the model's health, traces."""
