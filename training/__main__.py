"""`python -m training`: see `training.command.main`."""

from __future__ import annotations

from training.command.main import main
from training.ranks import leave

if __name__ == "__main__":
    leave(main())
