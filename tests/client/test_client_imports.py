"""The client alone is light: a caller needs neither torch nor an image library."""

import subprocess
import sys

PROGRAM = """
import sys
import phosphene.client
import phosphene.client.command
heavy = {"torch", "transformers", "PIL", "numpy", "pyarrow", "faiss", "onnxruntime", "safetensors", "jaxtyping"}
kernel = {name for name in sys.modules if name.startswith("phosphene.")}
known = {name for name in kernel if name.startswith(("phosphene.client", "phosphene.v1")) or name == "phosphene.errors"}
sys.stdout.write(repr((sorted(heavy & set(sys.modules)), sorted(kernel - known))))
"""


def test_importing_the_client_loads_nothing_of_the_kernel() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "([], [])"
