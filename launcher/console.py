"""Words to the person at the terminal: standard error, since standard output belongs to the job."""

from __future__ import annotations

import sys


def tell(message: str) -> None:
    """Write one message of the launcher's own."""
    print(f"launcher: {message}", file=sys.stderr, flush=True)
