"""Lists of prompts: one a line, or json."""

from __future__ import annotations

import json


def parse_prompts(text: str, name: str = "The prompt list") -> list[str]:
    """Plain text: one prompt a line, empty lines and lines that start with # left out. Json: a list of strings or of
    objects with a "prompt", or an object with such a list under "prompts".

    Raises ValueError where there is no prompt, or the json is of another form.
    """
    stripped = text.lstrip("\ufeff \t\r\n")
    if stripped.startswith(("[", "{")):
        prompts = _from_json(stripped, name)
    else:
        lines = (line.strip() for line in stripped.splitlines())
        prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise ValueError(
            f"{name} must hold at least one prompt, got none. Write one prompt a line; lines that start with # are"
            " comments."
        )
    return prompts


def _from_json(text: str, name: str) -> list[str]:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{name} starts like json but is not: {error}. Mend it, or write one prompt a line."
        ) from error
    items = data.get("prompts") if isinstance(data, dict) else data
    prompts = [item.get("prompt") if isinstance(item, dict) else item for item in items or []]
    if not all(isinstance(prompt, str) for prompt in prompts):
        raise ValueError(f'{name} must be a json list of strings, or of objects with a "prompt".')
    return [prompt.strip() for prompt in prompts if prompt.strip()]
