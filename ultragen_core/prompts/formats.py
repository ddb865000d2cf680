"""From a file or a text to a list of prompts: which format it is, and JSON."""

from __future__ import annotations

import json
import re
from pathlib import PurePath

from .entries import SHAPE, PromptList, entries_of, field_of, shown
from .lines import read_lines, read_paragraphs, without_comments
from .table import is_table, read_table

AUTO, LINES, PARAGRAPHS, CSV, JSON = FORMATS = ("auto", "lines", "paragraphs", "CSV", "JSON")
ENDINGS = {".txt": AUTO, ".csv": CSV, ".tsv": CSV, ".json": JSON, ".jsonl": JSON}
MAX_BYTES = 16 * 2**20  # of a file: it is read whenever a prompt is queued

_UTF16 = b"\xff\xfe", b"\xfe\xff"
_NO_TEXT = re.compile("[\0\ud800-\udfff]")
# A bracket, then a quoted text that goes on as JSON does. Prompts may begin with brackets too: [[blurry]], {red|blue}.
_LIKE_JSON = re.compile(r'(?:\[\s*\{|[\[{])\s*"(?:[^"\\]|\\.)*"\s*(?:[,:]|\]?\s*$)')


def decode(content: bytes, name: str) -> str:
    """The text of a file in UTF-8, or in UTF-16 with its mark. Raises ValueError."""
    if len(content) > MAX_BYTES:
        raise ValueError(f"{name} must have at most {MAX_BYTES >> 20} MiB, got more. Split it.")
    try:
        return content.decode("utf-16" if content.startswith(_UTF16) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name} must be text in UTF-8, got other bytes ({error}). Save it as UTF-8; in Excel: Save As, CSV UTF-8."
        ) from error


def parse(text: str, format: str = AUTO, name: str = "The prompt list") -> PromptList:
    """Read a list of at least one prompt.

    format: one of FORMATS; `auto` goes by the ending of `name`, and then takes JSON and tables for what they are and
    everything else for lines. Raises ValueError in a sentence that begins with `name` and says which entry is wrong.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {shown(format)}.")
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
            f"{name} must hold at least one prompt, got none. Write one prompt a line; lines that begin with # and a"
            " blank are comments."
        )
    for number, entry in enumerate(found.entries, 1):
        for text in filter(None, (entry.prompt, entry.negative, entry.image)):
            _check_characters(text, f"{name}, entry {number},")


def _check_characters(text: str, what: str) -> None:
    found = _NO_TEXT.search(text)
    if found:
        raise ValueError(
            f"{what} must be text, got the character {ascii(found[0])}, as in UTF-16 without its mark or in broken"
            " text. Save it as UTF-8."
        )


def _read_any(text: str, name: str) -> PromptList:
    bare = without_comments(text).strip()
    if bare.startswith(("[", "{")) and (_LIKE_JSON.match(bare) or isinstance(_loads(bare), (list, dict))):
        return _read_json(text, name)
    return read_table(text, name) if is_table(text) else read_lines(text, name)


def _read_json(text: str, name: str) -> PromptList:
    """A list, an object with one under "prompts" and what all of them share beside it, or one entry a line."""
    text = without_comments(text).strip()
    found = _loads(text)
    if isinstance(found, ValueError):
        values = [_loads(line) for line in text.split("\n") if line.strip()]
        if len(values) < 2 or any(isinstance(value, ValueError) for value in values):
            raise ValueError(f"{name} is no valid json: {found}. Mend it, or choose the format lines.") from found
        found = values
    shared = {}
    if isinstance(found, dict):
        shared = {key: value for key, value in found.items() if key != "prompts"} if "prompts" in found else {}
        found = found.get("prompts", [found])
    if not isinstance(found, list):
        raise ValueError(f"{name} has {shown(found)} in place of a list. {SHAPE}")
    for number, value in enumerate(found, 1):
        if not isinstance(value, (str, dict)):
            raise ValueError(f"{name}, entry {number}: got {shown(value)}. {SHAPE}")
    return entries_of((_record(value, shared) for value in found), name)


def _record(value: str | dict, shared: dict) -> dict:
    """An entry's own values, and of those that all entries share the ones that it lacks."""
    if isinstance(value, str):
        value = {"prompt": value} if value.strip() else {}
    own = {field_of(key) for key in value} - {None}
    return {key: each for key, each in shared.items() if value and field_of(key) not in own} | value


def _loads(text: str) -> object:
    """What json says, or the ValueError that says what is wrong."""
    try:
        return json.loads(text)
    except RecursionError:
        return ValueError("too many brackets within each other")
    except ValueError as error:
        return error
