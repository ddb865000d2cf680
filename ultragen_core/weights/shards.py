"""Sharded models, named NAME-00001-of-00003.safetensors."""

from __future__ import annotations

import re
from pathlib import Path

from ..printable import printable
from .errors import WeightsError

_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.\w+)", re.DOTALL)
MAX_SHARDS = 999


def shards_of(path: Path) -> list[Path]:
    """Return the files of the model: `path` alone, or all shards if it is one of them.

    Raises WeightsError where shards are missing.
    """
    match = _SHARD.fullmatch(path.name)
    if not match or not 1 <= int(match[3]) <= MAX_SHARDS:
        return [path]
    stem, _, count, ending = match.groups()
    shards = [path.with_name(f"{stem}-{index:05}-of-{count}{ending}") for index in range(1, int(count) + 1)]
    missing = [shard.name for shard in shards if not shard.exists()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise WeightsError(
            f"{printable(path.name)} is one of {int(count)} shards of a model, but"
            f" {', '.join(map(printable, missing[:3]))}{more} is missing in its folder. Download all shards into the"
            " same folder, under their own names; choosing any of them then loads the model."
        )
    return shards
