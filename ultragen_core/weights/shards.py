"""Models that are published in pieces, named NAME-00001-of-00003.safetensors."""

from __future__ import annotations

import re
from pathlib import Path

from ..printable import printable
from .errors import WeightsError

_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.\w+)", re.DOTALL)
MOST_SHARDS = 999


def shards_of(path: Path) -> list[Path]:
    """The files that hold the model: `path` alone, or, if it is one of several pieces, all of them from its folder.

    Raises WeightsError where pieces are missing.
    """
    match = _SHARD.fullmatch(path.name)
    if not match or not 1 <= int(match[3]) <= MOST_SHARDS:
        return [path]
    stem, _, count, ending = match.groups()
    shards = [path.with_name(f"{stem}-{index:05}-of-{count}{ending}") for index in range(1, int(count) + 1)]
    missing = [shard.name for shard in shards if not shard.exists()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise WeightsError(
            f"{printable(path.name)} is one of {int(count)} pieces of a model, and beside it"
            f" {', '.join(map(printable, missing[:3]))}{more} cannot be found. Download all pieces into the same"
            " folder, under their own names; choosing any of them then loads the model."
        )
    return shards
