"""jobs.jsonl next to the results: one line for everything that happens to a job, so that a killed run can continue."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tools.cluster.locks import NoLocks, lock
from tools.console import Trouble, say

NAME = "jobs.jsonl"
HANDED_OUT, RETRIED, LOST, DONE, FAILED = "handed out", "retried", "lost", "done", "failed"


@dataclass(frozen=True)
class ResultFile:
    """A file that a job wrote. name: relative to the folder of results, with slashes. size: bytes."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class DoneJob:
    """What the ledger says of a finished job."""

    id: str
    host: str
    seconds: float
    files: tuple[ResultFile, ...]


class Ledger:
    """The ledger of a folder of results. `with Ledger(folder) as ledger:` keeps a second driver out."""

    def __init__(self, folder: Path):
        self.path = folder / NAME
        self._lines: list[str] = []

    def __enter__(self) -> Ledger:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "ab+")  # noqa: SIM115 - closed in __exit__
        except OSError as error:
            raise self._unwritable(error) from None
        self._keep_others_out()
        self._end_torn_line()
        return self

    def _keep_others_out(self) -> None:
        try:
            alone = lock(self._file)
        except NoLocks as error:
            return say(f"{self.path} cannot be locked ({error}). Start no second run that writes to this folder.")
        if not alone:
            self._file.close()
            raise Trouble(f"Another run writes to {self.path.parent}. Wait for it, or name another folder in --out.")

    def __exit__(self, *_) -> None:
        try:
            self.sync()
        finally:
            with contextlib.suppress(OSError):  # of lines whose sync has failed already
                self._file.close()

    def _unwritable(self, error: OSError) -> Trouble:
        return Trouble(
            f"{self.path} cannot be written: {error}. Free some space, or name another folder in --out. The same"
            " command continues."
        )

    def _end_torn_line(self) -> None:
        """A killed run may have left half a line. End it, so that the next one is readable."""
        end = self._file.seek(0, os.SEEK_END)
        if end:
            self._file.seek(end - 1)
            if self._file.read(1) != b"\n":
                self._file.write(b"\n")

    def write(self, event: str, job: str, host: str | None = None, **facts) -> None:
        """Note an event. It is on the disk after the next sync()."""
        line = {"event": event, "job": job, "host": host, "time": round(time.time(), 3), **facts}
        self._lines.append(json.dumps(line, ensure_ascii=False))

    def write_done(self, job, host: str, seconds: float, files: Sequence[ResultFile]) -> None:
        listed = [asdict(file) for file in files]
        values = {"prompt": job.prompt, "negative": job.negative, "seed": job.seed}
        self.write(DONE, job.id, host, seconds=round(seconds, 3), **values, files=listed)

    def sync(self) -> None:
        """Append what was noted since the last call, and wait for the disk: one wait for all of it. Raises Trouble."""
        if self._lines:
            # Servers quote file names whose bytes are no text, as lone surrogates: JSON has the same escapes.
            text = ("\n".join(self._lines) + "\n").encode(errors="backslashreplace")
            self._lines.clear()
            try:
                self._file.write(text)
                self._file.flush()
                os.fsync(self._file.fileno())
            except OSError as error:
                raise self._unwritable(error) from None


def read_done(folder: Path) -> dict[str, DoneJob]:
    """Return the finished jobs of a folder by id. A later line about a job replaces an earlier one."""
    done = {}
    for line in read_lines(folder):
        if line.get("event") == DONE:
            files = tuple(ResultFile(**file) for file in line["files"])
            done[line["job"]] = DoneJob(line["job"], line["host"], line["seconds"], files)
    return done


def read_lines(folder: Path) -> Iterator[dict]:
    """Yield the events of a ledger. Lines that a killed run left unfinished are skipped."""
    path = folder / NAME
    if not path.is_file():
        return
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict):
                yield event
