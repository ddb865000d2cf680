"""Rows of docs/data/gpus.csv, written as they are measured: a command that is stopped keeps what it has."""

from __future__ import annotations

import argparse
import csv
import datetime

from ultragen_core.wan import WAN_1_3B

from .card import card_name

# run: the same in all rows of one command. first_s: of the first step. seconds: of the fastest other step.
# exchange: share of that step. exchange, host_s, peak_gib: of each GPU, with "/" between; in older rows one exchange,
# the largest, and hosts in the order in which they were done. difference: empty where the rows are of several commands.
# options: of the command, where they change what is measured. note: what has changed since; empty for this code's rows.
COLUMNS = (
    "run", "size", "method", "cfg", "gpus", "seconds", "first_s", "exchange", "received_gib", "host_s", "peak_gib",
    "difference", "allocator", "options", "card", "recorded", "note",
)  # fmt: skip


class RowFile:
    """The file of --csv. Raises ValueError where it exists with other columns."""

    def __init__(self, options: argparse.Namespace):
        self._path, now = options.csv, datetime.datetime.now()
        self._common = {
            "run": now.strftime("%H:%M:%S"),
            "allocator": "native" if options.native else "cudaMallocAsync",
            "options": _changed(options),
            "card": card_name(),
            "recorded": now.date().isoformat(),
        }
        self._new = self._path is not None and not self._path.exists()
        if self._path is None or self._new:
            return
        with self._path.open(encoding="utf-8", newline="") as file:
            found = next(csv.reader(file), [])
        if found != list(COLUMNS):
            raise ValueError(
                f"{self._path} has the columns {','.join(found)}, not {','.join(COLUMNS)}. Name another file."
            )

    def add(self, **row: object) -> None:
        """Append a row. row: the columns that differ within a command."""
        if self._path is None:
            return
        with self._path.open("a", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
            if self._new:
                table.writeheader()
                self._new = False
            table.writerow({**self._common, **row})


def _changed(options: argparse.Namespace) -> str:
    """The options, other than those with a column, that are not the default."""
    defaults = {"model": "1.3b", "split": "auto", "layers": WAN_1_3B.blocks}
    given = [f"--{name} {value}" for name in defaults if (value := getattr(options, name)) != defaults[name]]
    return " ".join([*given, *(f"--{name}" for name in ("staged", "copied") if getattr(options, name))])
