"""Words to the person at the terminal."""

from __future__ import annotations

import sys


class Trouble(Exception):
    """Something the user can put right, said in one sentence: dev.py prints it and exits with 1."""


def say(text: str = "") -> None:
    print(text, flush=True)


class ProgressLine:
    """One line that is rewritten in place on a terminal; in a log file each change of `text` is a line of its own."""

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
