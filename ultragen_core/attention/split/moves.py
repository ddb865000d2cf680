"""Moves of tokens between members: who sends which of its tokens to whom, and where they belong there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Moves:
    """The copies that turn the tokens which members hold into those that they want.

    held, wanted: for each member the numbers of its tokens, int64, in its order. Every number below `tokens` is held
    by exactly one member. Raises ValueError where one is held twice or not at all.
    """

    @torch.inference_mode(False)
    def __init__(self, held: Sequence[Tensor], wanted: Sequence[Tensor], tokens: int):
        numbers = torch.cat(list(held))
        if len(numbers) != tokens or not torch.equal(numbers.sort().values, torch.arange(tokens)):
            raise ValueError(f"Members must hold each of {tokens} tokens once, got {len(numbers)}.")
        holder, position = torch.empty(tokens, dtype=torch.int64), torch.empty(tokens, dtype=torch.int64)
        for member, own in enumerate(held):
            holder[own], position[own] = member, torch.arange(len(own))
        self.members = len(held)
        self.held = [len(own) for own in held]
        self.wanted = [len(needed) for needed in wanted]
        self.nothing = all(torch.equal(*pair) for pair in zip(held, wanted, strict=True))
        self._sent: dict[tuple[int, int], Tensor] = {}
        self._put: dict[tuple[int, int], Tensor] = {}
        for target, needed in enumerate(wanted):
            source_of = holder[needed]
            for source in range(self.members):
                places = (source_of == source).nonzero().flatten()
                if len(places):
                    self._put[source, target] = places
                    self._sent[source, target] = position[needed[places]]
        self._packs = [self._different(source) for source in range(self.members)]
        self._on_device: dict[tuple, Tensor] = {}

    def pairs(self) -> list[tuple[int, int]]:
        """(source, target) of every copy, those within a member included."""
        return list(self._sent)

    def count(self, source: int, target: int) -> int:
        """How many tokens this copy moves."""
        return len(self._sent[source, target]) if (source, target) in self._sent else 0

    def packs(self, source: int) -> list[tuple[int, list[int]]]:
        """The different selections of its tokens that a member sends to others: (one of the targets, all targets)."""
        return self._packs[source]

    def _different(self, source: int) -> list[tuple[int, list[int]]]:
        packs: list[tuple[int, list[int]]] = []
        for target in range(self.members):
            if target == source or (source, target) not in self._sent:
                continue
            numbers = self._sent[source, target]
            same = next((each for first, each in packs if torch.equal(self._sent[source, first], numbers)), None)
            if same is None:
                packs.append((target, [target]))
            else:
                same.append(target)
        return packs

    def sent(self, source: int, target: int, device: torch.device) -> Tensor:
        """The positions in the source's order of the tokens that it sends to the target."""
        return self._moved("sent", source, target, device)

    def put(self, source: int, target: int, device: torch.device) -> Tensor:
        """The positions in the target's order of the tokens that it gets from the source."""
        return self._moved("put", source, target, device)

    def _moved(self, which: str, source: int, target: int, device: torch.device) -> Tensor:
        key = which, source, target, device
        if key not in self._on_device:
            with torch.inference_mode(False):
                numbers = (self._sent if which == "sent" else self._put)[source, target]
                self._on_device[key] = numbers.to(device)
        return self._on_device[key]

    @property
    def tokens_between(self) -> int:
        """Tokens of one video that leave their member, all copies together."""
        return sum(len(numbers) for (source, target), numbers in self._sent.items() if source != target)

    def tokens_into(self, target: int) -> int:
        """Tokens of one video that a member gets from others."""
        return sum(self.count(source, target) for source in range(self.members) if source != target)
