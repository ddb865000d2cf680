"""Messages for the user at the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable


class Trouble(Exception):
    """A problem that the user can solve, explained in one sentence. The commands print it and exit with 1."""


def end_with(main: Callable[[], int]) -> None:
    """Run a command and end the process with its exit code, 1 after Trouble, 130 after Ctrl-C."""
    try:
        sys.exit(main())
    except Trouble as trouble:
        sys.exit(f"{trouble}")
    except KeyboardInterrupt:
        sys.exit(130)


def say(text: str = "") -> None:
    print(text, flush=True)


class ProgressLine:
    """A progress line: rewritten in place on a terminal, one line per call in a log file."""

    def __init__(self):
        self.live = sys.stdout.isatty()
        self.width = 0

    def show(self, text: str) -> None:
        if self.live:
            sys.stdout.write("\r" + text.ljust(self.width))
            self.width = len(text)
        else:
            sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def end(self) -> None:
        if self.live and self.width:
            sys.stdout.write("\n")
            sys.stdout.flush()
        self.width = 0
