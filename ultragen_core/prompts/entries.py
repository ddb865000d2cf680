"""What a list says of each video."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..printable import printable

MAX_SEED = 2**64 - 1
SHAPE = 'It must be a json list of strings, or of objects with a "prompt".'

_FIELDS = {
    "prompt": "prompt", "positive": "prompt", "positive_prompt": "prompt",
    "negative": "negative", "negative_prompt": "negative",
    "seed": "seed", "noise_seed": "seed",
    "image": "image", "start_image": "image",
}  # fmt: skip
_WHOLE_NUMBER = re.compile(r"0*([0-9]{1,20})(?:\.0*)?")  # spreadsheets write 12.0
_SHOWN = 40  # letters of a wrong value in an error
_SHOWN_NAMES = 8


@dataclass(frozen=True)
class Entry:
    """What a list says of one video; None where it says nothing. image: a file name."""

    prompt: str
    negative: str | None = None
    seed: int | None = None
    image: str | None = None


@dataclass(frozen=True)
class PromptList:
    """Entries, and the names of columns or keys that mean nothing here."""

    entries: tuple[Entry, ...]
    ignored: tuple[str, ...] = ()

    def summary(self) -> str:
        """Say in a line what was understood: "12 prompts, 3 with seeds of their own"."""
        said = ["1 prompt" if len(self.entries) == 1 else f"{len(self.entries)} prompts"]
        for field, one in (("negative", "a negative"), ("seed", "a seed"), ("image", "an image")):
            count = sum(getattr(entry, field) is not None for entry in self.entries)
            if count:
                said.append(f"{count} with {field}s of their own" if count > 1 else f"1 with {one} of its own")
        return ", ".join(said) + (f". Ignored: {', '.join(self.ignored[:_SHOWN_NAMES])}." if self.ignored else "")


def field_of(name: str) -> str | None:
    """The Entry's field that a column or key means, in any case: "Negative Prompt" is `negative`. None: none."""
    return _FIELDS.get(re.sub(r"[\s-]+", "_", name.strip().casefold()))


def entries_of(records: Iterable[Mapping[str, object]], name: str) -> PromptList:
    """Entries of records by column or key. A record without any known value is left out.

    Raises ValueError that begins with `name` and says which entry, counted from 1, is wrong and why.
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
            raise ValueError(f"it must have one {field}, got two.")
        elif field is not None:
            found[field] = _seed(value) if field == "seed" else _text(field, value)
    if all(value is None for value in found.values()):
        if record and not found:
            raise ValueError(f"it has no prompt, only {', '.join(map(shown, record))}. {SHAPE}")
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
    """Raises ValueError for what is no seed, or is not written out, as 1.2E+15 of a spreadsheet."""
    if isinstance(value, str):
        matched = _WHOLE_NUMBER.fullmatch(value.strip())
        number = int(matched[1]) if matched else None
    elif isinstance(value, float):
        number = int(value) if value.is_integer() and abs(value) < 2**53 else None
    else:
        number = value if isinstance(value, int) and not isinstance(value, bool) else None
    if number is None or not 0 <= number <= MAX_SEED:
        raise ValueError(f"seed must be a whole number from 0 to {MAX_SEED}, written out, got {shown(value)}.")
    return number


def shown(value: object) -> str:
    """A value in an error: short and printable."""
    try:
        return printable(repr(value), _SHOWN)
    except (ValueError, RecursionError):  # a number of thousands of digits, lists within lists
        return type(value).__name__
