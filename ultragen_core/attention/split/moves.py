"""Moves of tokens between members: who sends which of its tokens to whom, and where they belong there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor


class Segment(NamedTuple):
    """Tokens that a member gets: `length` of those that member `source` has packed, from `first` on."""

    source: int
    first: int
    length: int


@dataclass(frozen=True)
class MemberMoves:
    """A member's part of moves; all numbers are int64.

    sent: positions among its tokens of those that it packs for others. The same tokens for several members are packed
        once. sent_count: their number, which a tensor tells slowly.
    segments: what it gets. order: for each wanted token its position among the member's own tokens and then those of
        the segments, one after the other.
    """

    sent: Tensor
    sent_count: int
    segments: tuple[Segment, ...]
    order: Tensor

    def to(self, device: torch.device) -> MemberMoves:
        return replace(self, sent=self.sent.to(device), order=self.order.to(device))


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
        self.held = [len(own) for own in held]
        self.wanted = [len(needed) for needed in wanted]
        self.nothing = all(torch.equal(*pair) for pair in zip(held, wanted, strict=True))
        holder, position = torch.empty(tokens, dtype=torch.int64), torch.empty(tokens, dtype=torch.int64)
        for member, own in enumerate(held):
            holder[own], position[own] = member, torch.arange(len(own))
        members = range(len(held))
        # For each pair, where the target wants tokens of the source, and where these are among the source's.
        places = {(s, t): (holder[wanted[t]] == s).nonzero().flatten() for s in members for t in members}
        self._taken = {(s, t): position[wanted[t][at]] for (s, t), at in places.items()}
        self._places = places
        self._packs = [self._pack(member) for member in members]
        self._parts = {(member, torch.device("cpu")): self._part(member) for member in members}

    def part(self, member: int, device: torch.device) -> MemberMoves:
        """A member's part, with its numbers on `device`."""
        key = member, device
        if key not in self._parts:
            with torch.inference_mode(False):
                self._parts[key] = self._parts[member, torch.device("cpu")].to(device)
        return self._parts[key]

    def _pack(self, source: int) -> tuple[Tensor, dict[int, int]]:
        """Positions of the tokens that a member packs, and where those of each target begin."""
        packed, first = [torch.empty(0, dtype=torch.int64)], {}
        for target in (t for t in range(len(self.held)) if t != source):
            numbers = self._taken[source, target]
            same = next((t for t in first if torch.equal(self._taken[source, t], numbers)), None)
            first[target] = sum(map(len, packed)) if same is None else first[same]
            packed += [numbers] if same is None else []
        return torch.cat(packed), first

    def _part(self, member: int) -> MemberMoves:
        order, end, segments = torch.empty(self.wanted[member], dtype=torch.int64), self.held[member], []
        order[self._places[member, member]] = self._taken[member, member]
        # The next member first, so that not all of them read from the same one at the same time.
        count = len(self.held)
        for source in ((member + step) % count for step in range(1, count)):
            if length := len(self._places[source, member]):
                order[self._places[source, member]] = torch.arange(end, end + length)
                segments.append(Segment(source, self._packs[source][1][member], length))
                end += length
        sent = self._packs[member][0]
        return MemberMoves(sent, len(sent), tuple(segments), order)

    def tokens_into(self, member: int) -> int:
        """Tokens of one video that a member gets from others."""
        return sum(segment.length for segment in self._parts[member, torch.device("cpu")].segments)
