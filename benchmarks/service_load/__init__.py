"""What `make bench-service` is made of: load, a stand-in device, the servers under it, and the figures."""
