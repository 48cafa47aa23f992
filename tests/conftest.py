"""What every test needs: where the repository and its shared folder are, and one thread for torch."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples at every run: a red run means that the change is at fault. More are found with
# `pytest --hypothesis-profile=default`. No deadline: how long an example takes says nothing of whether it is right.
settings.register_profile("steady", derandomize=True, deadline=None)
settings.load_profile("steady")

# Of whoever runs the tests: a proxy knows nothing of this machine, to which alone they talk; and what is written to no
# terminal is plain, and 80 columns wide. A console that a test calls a terminal is one, whatever runs the test.
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")
_TERMINALS = ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "LINES")
for _name in (*_PROXIES, *(name.upper() for name in _PROXIES), *_TERMINALS):
    os.environ.pop(_name, None)
os.environ["COLUMNS"] = "80"
os.environ["TERM"] = "xterm"

_ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root folder."""
    return _ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real models and photos beside the repository; the test is skipped where it is missing."""
    folder = _ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}: real models and photos are not here")
    return folder


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> None:
    """Makes sums of floats independent of the machine's core count."""
    import torch

    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of a file on one worker, and all end-to-end tests, which share a house, on another."""
    for item in items:
        folder = item.path.parent
        item.add_marker(pytest.mark.xdist_group(str(folder if folder.name == "end_to_end" else item.path)))
