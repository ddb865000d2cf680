"""Parses CSV as spreadsheets write it."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator

from .entries import Entry, PromptList, entries_of, field_of, shown, some
from .lines import COMMENT, split_lines

_SEPARATORS = ",", ";", "\t"  # Excel writes semicolons where the comma is the decimal separator
_NO_SEPARATOR = "\x1f"
_SEPARATOR_LINE = re.compile(r"sep=([,;\t|])[ \t]*(?:\r\n|\r|\n|$)")  # Excel's own first line


def is_table(text: str) -> bool:
    """Whether the first line is a "sep=" line or a header with "prompt" in it. A single name may itself be a prompt."""
    if _SEPARATOR_LINE.match(text.lstrip()):
        return True
    line = _first_line(text)
    heads = ([field_of(cell) for cell in _cells(line, separator)] for separator in _SEPARATORS)
    return any("prompt" in head and len(head) > 1 + head.count(None) for head in heads)


def read_table(text: str, name: str) -> PromptList:
    """Parse CSV with commas, semicolons or tabs and a header row. A single column needs no header.

    Raises ValueError that starts with `name`.
    """
    separator, text = _separator(text)
    rows = [row for row in _rows(text, separator, name) if any(map(str.strip, row))]
    if not rows:
        return PromptList(())
    if not any(map(field_of, rows[0])):
        return _without_names(rows, name)
    names, *rows = rows
    _check_names(names, name)
    for number, row in enumerate(rows, 1):
        if any(map(str.strip, row[len(names) :])):
            raise ValueError(
                f"{name}, entry {number}: {len(row)} cells under {len(names)} column names. Put cells that hold"
                f" {separator!r} into double quotes."
            )
    return entries_of((dict(zip(names, row, strict=False)) for row in rows), name)


def _check_names(names: list[str], name: str) -> None:
    fields = [field for field in map(field_of, names) if field]
    if "prompt" not in fields or len(fields) > len(set(fields)):
        raise ValueError(
            f"{name} must have one column prompt and at most one each of negative, seed and image, got"
            f" {some(map(shown, map(str.strip, names)))}. Correct the first row."
        )


def _without_names(rows: list[list[str]], name: str) -> PromptList:
    if any(len(row) > 1 for row in rows) or any(all(mark in row[0] for row in rows) for mark in ";\t"):
        raise ValueError(
            f"{name} must begin with a row of column names, such as prompt,negative,seed, got"
            f" {rows[0][0].strip()!r}. Add it, or set format to lines."
        )
    return PromptList(tuple(Entry(row[0].strip()) for row in rows))


def _separator(text: str) -> tuple[str, str]:
    """Return the separator and the text without Excel's "sep=" line.

    Without such a line, choose the separator that yields the most known column names.
    """
    told = _SEPARATOR_LINE.match(text.lstrip())
    if told:
        return told[1], text.lstrip()[told.end() :]
    line = _first_line(text)
    heads = {separator: _cells(line, separator) for separator in _SEPARATORS}
    best = max(heads, key=lambda separator: sum(map(bool, map(field_of, heads[separator]))))
    # A single column has no separator: its cells may hold unquoted commas.
    alone = len(heads[best]) == 1 and field_of(heads[best][0])
    return _NO_SEPARATOR if alone else best, text


def _first_line(text: str) -> str:
    """Return the first line that is neither empty nor a comment."""
    return next((line for line in split_lines(text) if line.strip() and not COMMENT.match(line)), "")


def _cells(line: str, separator: str) -> list[str]:
    """Return the cells of a line; empty if it is not valid CSV."""
    try:
        return next(csv.reader([line], delimiter=separator, skipinitialspace=True, strict=True), [])
    except csv.Error:
        return []


def _rows(text: str, separator: str, name: str) -> Iterator[list[str]]:
    between_rows = True

    def lines() -> Iterator[str]:
        nonlocal between_rows
        for line in io.StringIO(text, newline=""):
            # A quoted "# 1" is a prompt. Blanking a comment keeps the line numbers.
            comment = between_rows and COMMENT.match(line.partition(separator)[0])
            between_rows = False
            yield "\n" if comment else line

    reader = csv.reader(lines(), delimiter=separator, skipinitialspace=True, strict=True)
    try:
        for row in reader:
            between_rows = True
            yield row
    except csv.Error as error:
        raise ValueError(
            f"{name} cannot be read as CSV, line {reader.line_num}: {error}. Close every double quote, and double those"
            " inside a quoted cell."
        ) from error
