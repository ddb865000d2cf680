"""The entries of a prompt list and their validation."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..printable import printable

MAX_SEED = 2**64 - 1
SHAPE = 'Write a JSON list of strings, or of objects with a "prompt".'

_FIELDS = {
    "prompt": "prompt", "positive": "prompt", "positive_prompt": "prompt",
    "negative": "negative", "negative_prompt": "negative",
    "seed": "seed", "noise_seed": "seed",
    "image": "image", "start_image": "image",
}  # fmt: skip
_WHOLE_NUMBER = re.compile(r"0*([0-9]{1,20})(?:\.0*)?")  # spreadsheets write 12.0
_SHOWN = 40  # characters of a wrong value in an error
_SHOWN_NAMES = 8


@dataclass(frozen=True)
class Entry:
    """One video of a list; None where the list gives no value. image: a file name."""

    prompt: str
    negative: str | None = None
    seed: int | None = None
    image: str | None = None


@dataclass(frozen=True)
class PromptList:
    """entries: one for each video. ignored: names of unknown columns or keys."""

    entries: tuple[Entry, ...]
    ignored: tuple[str, ...] = ()

    def summary(self) -> str:
        """Describe the list in one line, such as "12 prompts, 3 with seeds"."""
        parts = ["1 prompt" if len(self.entries) == 1 else f"{len(self.entries)} prompts"]
        for field, one in (("negative", "a negative"), ("seed", "a seed"), ("image", "an image")):
            count = sum(getattr(entry, field) is not None for entry in self.entries)
            if count:
                parts.append(f"{count} with {field}s" if count > 1 else f"1 with {one}")
        return ", ".join(parts) + (f". Ignored: {some(self.ignored)}." if self.ignored else "")


def some(names: Iterable[str]) -> str:
    """List the first of many names."""
    return ", ".join(itertools.islice(names, _SHOWN_NAMES))


def field_of(name: str) -> str | None:
    """Return the Entry field for a column or key, ignoring case: "Negative Prompt" is `negative`. None if unknown."""
    return _FIELDS.get(re.sub(r"[\s-]+", "_", name.strip().casefold()))


def entries_of(records: Iterable[Mapping[str, object]], name: str) -> PromptList:
    """Convert records (column or key -> value) to entries. Records without any known value are skipped.

    Raises ValueError that starts with `name` and names the entry, counted from 1, and what is wrong with it.
    """
    entries, ignored = [], {}
    for number, record in enumerate(records, 1):
        try:
            entry = _entry(record, ignored)
        except ValueError as error:
            raise ValueError(f"{name}, entry {number}: {error}") from error
        if entry is not None:
            entries.append(entry)
    return PromptList(tuple(entries), tuple(ignored))


def _entry(record: Mapping[str, object], ignored: dict[str, None]) -> Entry | None:
    found = {}
    for key, value in record.items():
        field = field_of(key)
        if field is None and key.strip():
            ignored.setdefault(shown(key.strip()))
        elif field in found:
            raise ValueError(f"it must have one {field}, got two. Remove one of them.")
        elif field is not None:
            found[field] = _seed(value) if field == "seed" else _text(field, value)
    if all(value is None for value in found.values()):
        if record and not found:
            raise ValueError(f"it has no prompt, only {some(map(shown, record))}. {SHAPE}")
        return None
    if found.get("prompt") is None:
        raise ValueError(f"it has no prompt, only {', '.join(field for field in found if found[field] is not None)}.")
    return Entry(**found)


def _text(field: str, value: object) -> str | None:
    if value is None or isinstance(value, str):
        return (value or "").strip() or None
    raise ValueError(f"{field} must be text, got {shown(value)}. {SHAPE}")


def _seed(value: object) -> int | None:
    return None if value is None or (isinstance(value, str) and not value.strip()) else seed_of(value)


def seed_of(value: object) -> int:
    """Return `value` as a seed. Raises ValueError for anything else, such as a spreadsheet's 1.2E+15."""
    if isinstance(value, str):
        matched = _WHOLE_NUMBER.fullmatch(value.strip())
        number = int(matched[1]) if matched else None
    elif isinstance(value, float):
        number = int(value) if value.is_integer() and abs(value) < 2**53 else None
    else:
        number = value if isinstance(value, int) and not isinstance(value, bool) else None
    if number is None or not 0 <= number <= MAX_SEED:
        raise ValueError(
            f"seed must be a whole number from 0 to {MAX_SEED}, written out in digits, got {shown(value)}. Leave it"
            " empty to use the node's seed."
        )
    return number


def shown(value: object) -> str:
    """Return a short, printable form of `value` for an error message."""
    try:
        return printable(repr(value), _SHOWN)
    except (ValueError, RecursionError):  # thousands of digits, or deeply nested lists
        return type(value).__name__
