"""Progress on long work: on a terminal and in a notebook a bar; into a pipe or a file a line every ten seconds."""
from __future__ import annotations

import sys
from typing import Any

EVERY = 10.0            # seconds between two lines


class _Lines:
    """Standard error for tqdm, which rewrites one line behind carriage returns: here every rewriting is a line of its own."""

    encoding = "ascii"

    def write(self, text: str) -> None:
        if said := text.strip():
            print(said, file=sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()


def bar(total: float, shown: bool, **how: Any) -> Any:
    """A tqdm bar, as a context, which is not there unless it is ``shown``; ``how``: what tqdm takes."""
    from tqdm.auto import tqdm
    if shown and not sys.stderr.isatty() and "ipykernel" not in sys.modules:
        how |= {"file": _Lines(), "mininterval": EVERY, "maxinterval": EVERY, "dynamic_ncols": False, "ncols": 100}
        how["delay"] = EVERY * (how.get("leave") is False)              # what leaves no bar behind is not worth a line if it is short
    return tqdm(total=total, disable=not shown, **how)
