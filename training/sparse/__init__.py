"""The sparse core on the CPU: selection, gradients and Adam that touch active neurons only."""
