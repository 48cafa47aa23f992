"""Answers phosphene.v1 over gRPC."""
