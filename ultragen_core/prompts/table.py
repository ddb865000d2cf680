"""Tables: CSV of every spreadsheet."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator

from .entries import Entry, PromptList, entries_of, field_of
from .lines import COMMENT, split_lines

_SEPARATORS = ",", ";", "\t"  # semicolons are Excel's where the comma is the decimal point
_NO_SEPARATOR = "\x1f"
_SEPARATOR_LINE = re.compile(r"sep=([,;\t|])[ \t]*(?:\r\n|\r|\n|$)")  # Excel's own first line


def is_table(text: str) -> bool:
    """Whether the first line names a separator, or columns with prompt among them. One name alone may be a prompt."""
    if _SEPARATOR_LINE.match(text.lstrip()):
        return True
    line = _first_line(text)
    heads = ([field_of(cell) for cell in _cells(line, separator)] for separator in _SEPARATORS)
    return any("prompt" in head and len(head) > 1 + head.count(None) for head in heads)


def read_table(text: str, name: str) -> PromptList:
    """CSV with commas, semicolons or tabs, and a first row of column names; a single column may go without.

    Raises ValueError in a sentence that begins with `name`.
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
            f"{name} must have one column prompt, and at most one of negative, seed and image each; got"
            f" {', '.join(map(str.strip, names))}."
        )


def _without_names(rows: list[list[str]], name: str) -> PromptList:
    if any(len(row) > 1 for row in rows) or any(all(mark in row[0] for row in rows) for mark in ";\t"):
        raise ValueError(
            f"{name} must begin with a row of column names, such as prompt,negative,seed, got"
            f" {rows[0][0].strip()!r}. Add it, or choose lines where each line is a prompt."
        )
    return PromptList(tuple(Entry(row[0].strip()) for row in rows))


def _separator(text: str) -> tuple[str, str]:
    """The separator, and the text without the line in which Excel names it: the one that makes most known names."""
    told = _SEPARATOR_LINE.match(text.lstrip())
    if told:
        return told[1], text.lstrip()[told.end() :]
    line = _first_line(text)
    heads = {separator: _cells(line, separator) for separator in _SEPARATORS}
    best = max(heads, key=lambda separator: sum(map(bool, map(field_of, heads[separator]))))
    # A single column has no separator: its cells may hold commas without quotes.
    alone = len(heads[best]) == 1 and field_of(heads[best][0])
    return _NO_SEPARATOR if alone else best, text


def _first_line(text: str) -> str:
    """The first that is no comment and not empty."""
    return next((line for line in split_lines(text) if line.strip() and not COMMENT.match(line)), "")


def _cells(line: str, separator: str) -> list[str]:
    """The cells of a line, none where it is not CSV."""
    try:
        return next(csv.reader([line], delimiter=separator, skipinitialspace=True, strict=True), [])
    except csv.Error:
        return []


def _rows(text: str, separator: str, name: str) -> Iterator[list[str]]:
    between_rows = True

    def lines() -> Iterator[str]:
        nonlocal between_rows
        for line in io.StringIO(text, newline=""):
            # In quotes, "# 1" is a prompt. An empty line in place of a comment keeps the count of lines.
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
            f"{name} cannot be read as CSV, line {reader.line_num}: {error}. Is a double quote not closed? Within"
            " quotes, write two for one."
        ) from error
