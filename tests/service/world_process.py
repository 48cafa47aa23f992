"""`python -m service` over two generations of fakes, each reload switching to the other one.

With an argument, a file whose content says what the settings name: `0`, `1`, `broken`, or `defect`.
"""

import sys
from contextlib import asynccontextmanager
from pathlib import Path

from service.__main__ import main
from tests.service.fingerprints import BROKEN, Worlds


def worlds(settings, on_stage):
    both = Worlds()
    both.named = 1
    open_named = both.make_opener(settings, on_stage)

    @asynccontextmanager
    async def open_next(before):
        match Path(sys.argv[1]).read_text() if sys.argv[1:] else "next":
            case "next":
                both.switch()
            case "broken":
                raise BROKEN
            case "defect":
                raise RuntimeError("a defect of whatever opens artefacts")
            case number:
                both.named = int(number)
        async with open_named(before) as catalogue:
            yield catalogue

    return open_next


if __name__ == "__main__":
    raise SystemExit(main(worlds))
