"""Which blocks of a model a rule takes, and why the others keep full attention."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import groupby

from ..wan import WanShape

MAX_BLOCKS = 1000


def parse_blocks(text: str) -> frozenset[int] | None:
    """Block indices from text: "0-2, 27-29" -> {0, 1, 2, 27, 28, 29}; "auto" -> None. Raises ValueError."""
    if text.strip().lower() == "auto":
        return None
    blocks: set[int] = set()
    for part in re.split(r"[\s,]+", text.strip()):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if part and match is None:
            raise ValueError(
                f"Blocks must be numbers and ranges such as 0-2, 27-29, or auto, got {part!r} in {text!r}."
            )
        if match:
            first, last = int(match[1]), int(match[2] or match[1])
            if not first <= last < MAX_BLOCKS:
                raise ValueError(
                    f"A range of blocks runs from the lower to the higher index, both below {MAX_BLOCKS}, got {part}."
                )
            blocks |= set(range(first, last + 1))
    return frozenset(blocks)


def format_blocks(blocks: Iterable[int]) -> str:
    """{0, 1, 2, 27} -> "0-2, 27", which `parse_blocks` reads; no block -> "none"."""
    runs = groupby(enumerate(sorted(blocks)), key=lambda pair: pair[1] - pair[0])
    ends = [(run[0][1], run[-1][1]) for run in (list(run) for _, run in runs)]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in ends) or "none"


def outer_blocks(count: int) -> frozenset[int]:
    """The first and the last tenth of `count` blocks, dense by default: the published weights keep 3 of 30 at either
    end.
    """
    outer = count // 10
    return frozenset(index for index in range(count) if not outer <= index < count - outer)


def choose_blocks(
    model: WanShape, chosen_dense: frozenset[int] | None, unsuited: Mapping[int, str]
) -> tuple[list[int], dict[int, str]]:
    """The blocks that a rule takes, and for every other block the reason why it stays dense.

    chosen_dense: by the user. unsuited: blocks that the rule cannot take, with reasons.
    """
    by_choice = {index: "by choice" for index in sorted(chosen_dense or ()) if index < model.blocks}
    others = {index: f"its attention is {name}" for index, name in model.other_attention.items()}
    dense = by_choice | others | dict(unsuited)
    return [index for index in range(model.blocks) if index not in dense], dense


def describe_dense(dense: Mapping[int, str]) -> list[str]:
    """The blocks that stay dense, grouped by reason: "dense 0-2 (by choice)"."""
    return [
        f"dense {format_blocks(index for index, other in dense.items() if other == reason)} ({reason})"
        for reason in dict.fromkeys(dense.values())
    ]
