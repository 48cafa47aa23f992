"""What `make bench-training` is made of: the data, the contestants and their peers, the races, the figures."""
