"""Protobuf <-> values; protobuf messages exist here and in the servicers, and nowhere else in the service."""
