"""Write the tables and plots of docs/benchmarks.md, and README.md's tables, from the measured rows in docs/data."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from . import plot, tables
from .floors import DATA

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "README.md", ROOT / "docs" / "benchmarks.md"
BLOCK = re.compile(r"(<!-- (\w+): written by python3 -m tools\.bench page -->\n).*?(<!-- end -->\n)", re.DOTALL)


def add_parser(subjects: argparse._SubParsersAction) -> None:
    subjects.add_parser("page", help=__doc__).set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    import comfy.cli_args

    comfy.cli_args.args.cpu = True  # only counts FLOPs
    for path, text in files():
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))


def files() -> Iterator[tuple[Path, str]]:
    """Yield every file that the command writes, with its text."""
    for path in PAGES:
        yield path, with_tables(path.read_text(encoding="utf-8"))
    for name, draw in plot.PLOTS.items():
        yield DATA / f"{name}.svg", draw()


def with_tables(text: str) -> str:
    """Return a page with the table between each pair of marks written again. Raises KeyError for an unknown table."""
    return BLOCK.sub(lambda block: f"{block[1]}\n{tables.TABLES[block[2]]()}\n\n{block[3]}", text)
