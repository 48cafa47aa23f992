"""`python -m training`: see `training.command.main`."""

from __future__ import annotations

import sys

from training.command.main import main

if __name__ == "__main__":
    sys.exit(main())
