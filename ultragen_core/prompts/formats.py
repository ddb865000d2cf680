"""Decodes a file, detects the format of a prompt list, and parses JSON."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from pathlib import PurePath

from .entries import SHAPE, PromptList, entries_of, field_of, shown
from .lines import read_lines, read_paragraphs, without_comments
from .table import is_table, read_table

AUTO, LINES, PARAGRAPHS, CSV, JSON = FORMATS = ("auto", "lines", "paragraphs", "CSV", "JSON")
ENDINGS = {".txt": AUTO, ".csv": CSV, ".tsv": CSV, ".json": JSON, ".jsonl": JSON}
MAX_BYTES = 16 * 2**20  # a file is read each time a prompt is queued

_UTF16 = b"\xff\xfe", b"\xfe\xff"
_NO_TEXT = re.compile("[\0\ud800-\udfff]")
# A bracket and a quoted string followed by JSON punctuation. Prompts may begin with brackets too: [[blurry]], {a|b}.
_LIKE_JSON = re.compile(r'(?:\[\s*\{|[\[{])\s*"(?:[^"\\]|\\.)*"\s*(?:[,:]|\]?\s*$)')


def decode(content: bytes, name: str) -> str:
    """Decode a file in UTF-8, or in UTF-16 with a byte order mark. Raises ValueError."""
    if len(content) > MAX_BYTES:
        raise ValueError(f"{name} must have at most {MAX_BYTES >> 20} MiB, got more. Split the list.")
    try:
        return content.decode("utf-16" if content.startswith(_UTF16) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name} must be text in UTF-8, got other bytes ({error}). Save it as UTF-8; in Excel: Save As, CSV UTF-8."
        ) from error


def parse(text: str, format: str = AUTO, name: str = "text") -> PromptList:
    """Parse a list of at least one prompt.

    format: one of FORMATS. `auto` uses the extension of `name`, then detects JSON and tables; all else is lines.
    Raises ValueError that starts with `name` and names the wrong entry.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {shown(format)}. Choose one of them.")
    text = text.lstrip("\ufeff")
    _check_characters(text, name)
    if format == AUTO:
        format = ENDINGS.get(PurePath(name).suffix.lower(), AUTO)
    readers = {AUTO: _read_any, LINES: read_lines, PARAGRAPHS: read_paragraphs, CSV: read_table, JSON: _read_json}
    found = readers[format](text, name)
    _check(found, name)
    return found


def _check(found: PromptList, name: str) -> None:
    if not found.entries:
        raise ValueError(
            f"{name} must hold at least one prompt, got none. Write one prompt per line; lines that start with # and"
            " a space are comments."
        )
    for number, entry in enumerate(found.entries, 1):
        for text in filter(None, (entry.prompt, entry.negative, entry.image)):
            _check_characters(text, f"{name}, entry {number},")


def _check_characters(text: str, what: str) -> None:
    found = _NO_TEXT.search(text)
    if found:
        raise ValueError(
            f"{what} must be text, got the character {ascii(found[0])}, found in UTF-16 without a byte order mark and"
            " in damaged text. Save it as UTF-8."
        )


def _read_any(text: str, name: str) -> PromptList:
    bare = without_comments(text).strip()
    if bare.startswith(("[", "{")) and (_LIKE_JSON.match(bare) or isinstance(_loads(bare), (list, dict))):
        return _read_json(text, name)
    return read_table(text, name) if is_table(text) else read_lines(text, name)


def _read_json(text: str, name: str) -> PromptList:
    """Parse a list, an object with a list under "prompts" and shared values next to it, or one object per line."""
    text = without_comments(text).strip()
    found = _loads(text)
    if isinstance(found, ValueError):
        lines = [line for line in text.split("\n") if line.strip()]
        values = list(itertools.takewhile(lambda value: not isinstance(value, ValueError), map(_loads, lines)))
        if len(values) < max(2, len(lines)):
            raise ValueError(f"{name} is not valid JSON: {found}. Correct it, or set format to lines.") from found
        found = values
    shared, ignored = {}, {}
    if isinstance(found, dict):
        if "prompts" in found:
            others = {key: value for key, value in found.items() if key != "prompts"}
            shared = {key: value for key, value in others.items() if field_of(key)}
            ignored = {shown(key.strip()): None for key in others if key not in shared and key.strip()}
        found = found.get("prompts", [found])
    if not isinstance(found, list):
        raise ValueError(f"{name} must be a list, got {shown(found)}. {SHAPE}")
    for number, value in enumerate(found, 1):
        if not isinstance(value, (str, dict)):
            raise ValueError(f"{name}, entry {number}: it must be a string or an object, got {shown(value)}. {SHAPE}")
    parsed = entries_of((_record(value, shared) for value in found), name)
    return replace(parsed, ignored=tuple(ignored | dict.fromkeys(parsed.ignored)))


def _record(value: str | dict, shared: dict) -> dict:
    """Return an entry's values, completed with the shared ones that it lacks."""
    if isinstance(value, str):
        value = {"prompt": value} if value.strip() else {}
    own = {field_of(key) for key in value} - {None}
    return {key: each for key, each in shared.items() if value and field_of(key) not in own} | value


def _loads(text: str) -> object:
    """Return the parsed JSON, or (not raised) the ValueError that describes the problem."""
    try:
        return json.loads(text)
    except RecursionError:
        return ValueError("brackets are nested too deeply")
    except ValueError as error:
        return error
