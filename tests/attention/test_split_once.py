"""Members that start together build their moves and tables once, not each for itself."""

from __future__ import annotations

import threading
import time
from collections import Counter

import pytest
import torch
from helpers import golden
from helpers.members import own_tokens, together
from helpers.support import ToyAttention, dense_attention, seeded

from ultragen_core.attention import rope
from ultragen_core.attention.engine import Engine
from ultragen_core.attention.gate import Gates
from ultragen_core.attention.rope import RopeTables
from ultragen_core.attention.split.moves import Moves
from ultragen_core.attention.split.t3 import split_t3_attention
from ultragen_core.attention.split.ultragen import split_ultragen_attention
from ultragen_core.grid import TokenGrid
from ultragen_core.rules.ultragen import block_spec

COUNT, SECONDS = 4, 0.05  # members, and how long every build takes at least


@pytest.fixture
def builds(monkeypatch):
    """Counts what is built, by its content."""
    built, guard = Counter(), threading.Lock()
    make_moves, make_table = Moves.__init__, rope.rope_table

    def note(*key) -> None:
        with guard:
            built[key] += 1
        time.sleep(SECONDS)

    def moves(self, held, wanted, tokens):
        note("moves", *(tuple(each.tolist()) for each in (*held, *wanted)))
        make_moves(self, held, wanted, tokens)

    def table(*key):
        note("table", *key)
        return make_table(*key)

    monkeypatch.setattr(Moves, "__init__", moves)
    monkeypatch.setattr(rope, "rope_table", table)
    return built


@pytest.mark.parametrize(("rule", "moves"), [("ultragen", 2), ("t3", 4)])
def test_members_build_each_thing_once(rule, moves, builds):
    grid, tables = TokenGrid(2, 12, 28), RopeTables()  # a size of this test alone: what is built is kept
    engine = Engine(dense_attention, rope_tables=tables)
    if rule == "t3":
        attn, x = ToyAttention(64, 2), seeded(1, grid.tokens, 64)

        def work(member):
            return split_t3_attention(attn, own_tokens(x, member), (1, 3, 7), member, engine)

    else:
        (attn, extras, gates), x = golden.tiny_blocks()[2], seeded(1, grid.tokens, 256)
        values = Gates(*(gate(torch.tensor([250.0])) for gate in (gates.hierarchical_gate, gates.global_gate)))

        def work(member):
            own = own_tokens(x, member)
            return split_ultragen_attention(attn, own, block_spec(2), extras, values, member, engine)

    together(grid, COUNT, work, tags=False)
    assert set(builds.values()) == {1}
    assert Counter(kind for kind, *_ in builds)["moves"] == moves


def test_a_table_is_computed_once_for_all_devices(builds):
    tables, grid, results = RopeTables(), TokenGrid(1, 3, 5), []

    def ask(device):
        results.append(tables.table(grid, 32, device, (1.0, 1.0, 1.0)))

    devices = [torch.device("cpu"), torch.device("meta"), torch.device("cpu", 0), torch.device("cpu", 1)]
    threads = [threading.Thread(target=ask, args=(device,)) for device in devices]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(builds.values()) == [1] and {each.device.type for each in results} == {"cpu", "meta"}
    assert not any(each.is_inference() for each in results)
