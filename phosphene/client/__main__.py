"""`python -m phosphene.client`, where the `phosphene` script is not on PATH; runs the command and nothing else."""

import sys

from phosphene.client.command import main

sys.exit(main())
