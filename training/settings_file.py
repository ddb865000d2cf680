"""The settings that a folder was begun with, in a json file: whoever continues there must use the same."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

from tools.console import Trouble
from ultragen_core.storage.files import finished_file


def agree(
    path: Path, settings: Mapping[str, object], may_change: Collection[str] = (), defaults: Mapping[str, object] = {}
) -> None:
    """Write `settings` to `path`. Raises Trouble if the file there holds other values.

    may_change: names whose values need not be the same. defaults: of settings that are newer than the file.
    """
    wanted = json.loads(json.dumps(settings))  # tuples become lists, as in the file
    held = {**defaults, **json.loads(path.read_text(encoding="utf-8"))} if path.is_file() else wanted
    changed = [
        f"{name} {held.get(name)} -> {value}"
        for name, value in wanted.items()
        if held.get(name) != value and name not in may_change
    ]
    if changed:
        raise Trouble(
            f"{path.parent} was begun with other settings (old -> new): {'; '.join(changed)}."
            " Use the old ones, or name another folder in --out."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with finished_file(path) as part:
        part.write_text(json.dumps(wanted, indent=1), encoding="utf-8")
