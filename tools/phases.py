"""Commands that run at the same time, and whose outputs are shown one after the other."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from tools.console import say

LOOK_SECONDS = 0.5  # between two looks for new output


class Phase:
    """A command. Its output waits in a file until it is shown, below a title."""

    def __init__(self, title: str, command: Sequence[str], folder: Path, environment: Mapping[str, str] = os.environ):
        self.title, self.command, self.folder = title, command, folder
        # What writes to a file cannot ask how wide the terminal is.
        self.environment = {"COLUMNS": str(shutil.get_terminal_size().columns), **environment}
        self.process: subprocess.Popen | None = None
        self.error: OSError | None = None
        self.ended = threading.Event()
        self.reader: TextIO | None = None
        self.written = tempfile.NamedTemporaryFile(delete=False)  # Windows opens no file twice that it deletes

    def run(self) -> None:
        try:
            self.process = subprocess.Popen(
                self.command, cwd=self.folder, env=self.environment, stdout=self.written, stderr=subprocess.STDOUT
            )
            self.process.wait()
        except OSError as error:
            self.error = error
        finally:
            self.ended.set()

    def show(self) -> int:
        """Print title and output, as it comes, until the command has ended. Returns the exit code.

        Raises the OSError of a command that cannot start.
        """
        say(f"\n{self.title}")
        self.reader = open(self.written.name, errors="replace")
        ended = False
        while not ended:
            ended = self.ended.wait(LOOK_SECONDS)
            self.show_new()
        if self.error:
            raise self.error
        return abs(self.process.returncode)  # of a killed process it is negative, which max() would lose

    def show_new(self) -> None:
        """Print what has been written since the last call, of a phase that is being shown."""
        if self.reader:
            sys.stdout.write(self.reader.read())
            sys.stdout.flush()

    def close(self) -> None:
        if self.reader:
            self.reader.close()
        self.written.close()
        os.unlink(self.written.name)

    def interrupt(self) -> None:
        if self.process is not None and not self.ended.is_set():
            self.process.send_signal(signal.SIGINT)


@contextlib.contextmanager
def running(lanes: Sequence[Sequence[Phase]]) -> Iterator[None]:
    """Run lanes at the same time, and the phases of a lane one after the other.

    If the block raises, as after Ctrl-C, phases that run are interrupted, so that they can end what they started, and
    the others do not begin.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # set by shells in what they start in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)  # the phases would inherit it, and not be interrupted
    phases, stopped = [phase for lane in lanes for phase in lane], threading.Event()

    def run(lane: Sequence[Phase]) -> None:
        for phase in lane:
            if not stopped.is_set():
                phase.run()

    threads = [threading.Thread(target=run, args=(lane,)) for lane in lanes]
    for thread in threads:
        thread.start()
    try:
        yield
    except BaseException as error:
        stopped.set()
        if not isinstance(error, KeyboardInterrupt):  # Ctrl-C reaches all processes of a terminal
            for phase in phases:
                phase.interrupt()
        raise
    finally:
        for thread in threads:
            thread.join()
        for phase in phases:
            phase.show_new()  # what an interrupted one says at its end
            phase.close()
