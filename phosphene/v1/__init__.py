"""Generated stubs of the public contract, proto/phosphene/v1; the path equals the Python path, so nothing is patched.

Never edited by hand: `make proto` writes them, `make check` compares them. This file holds no names, and knows nothing
of the kernel: import what is needed, `from phosphene.v1 import service_pb2_grpc`.
"""
