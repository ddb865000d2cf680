"""Lists of prompts: one a line, or json."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path

_LINES = re.compile(r"\r\n|\r|\n")  # no other character ends a line: pasted text holds some that look like spaces
_JSON = re.compile(r"[\[{]\s*[\"\[{]")  # prompts may begin with a bracket too: [cinematic], {red|blue}
_UTF16 = b"\xff\xfe", b"\xfe\xff"


def read_prompts(path: Path) -> list[str]:
    """`parse_prompts` of a file in UTF-8, or in UTF-16 with its mark. Raises ValueError."""
    content = path.read_bytes()
    try:
        text = content.decode("utf-16" if content.startswith(_UTF16) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} must be text in UTF-8, got other bytes ({error}). Save it as UTF-8.") from error
    return parse_prompts(text, path.name)


def parse_prompts(text: str, name: str = "The prompt list") -> list[str]:
    """Plain text: one prompt a line, empty lines and lines that start with # left out. Json: a list of strings or of
    objects with a "prompt", an object with such a list under "prompts", or one string or object a line.

    name: of the file; one that ends in .json holds nothing else. Raises ValueError where there is no prompt, or the
    json is of another form.
    """
    lines = [line.strip() for line in _LINES.split(text.lstrip("\ufeff"))]
    lines = [line for line in lines if line and not line.startswith("#")]
    if lines and (name.lower().endswith(".json") or _JSON.match("\n".join(lines))):
        lines = _of_json(_json(lines, name), name)
    if not lines:
        raise ValueError(
            f"{name} must hold at least one prompt, got none. Write one prompt a line; lines that start with # are"
            " comments."
        )
    return lines


def _json(lines: list[str], name: str) -> object:
    try:
        return json.loads("\n".join(lines))
    except json.JSONDecodeError as error:
        with suppress(json.JSONDecodeError):
            return [json.loads(line) for line in lines]
        raise ValueError(
            f"{name} starts like json but is not: {error}. Mend it, or write one prompt a line."
        ) from error


def _of_json(found: object, name: str) -> list[str]:
    items = found.get("prompts", [found]) if isinstance(found, dict) else found
    items = items if isinstance(items, list) else [None]
    prompts = [item.get("prompt") if isinstance(item, dict) else item for item in items]
    if not all(isinstance(prompt, str) for prompt in prompts):
        raise ValueError(f'{name} must be a json list of strings, or of objects with a "prompt".')
    return [prompt.strip() for prompt in prompts if prompt.strip()]
