"""One video over several members: rectangles, moves, and the attention of all members against that of one."""

from __future__ import annotations

import pytest
import torch
from helpers import golden
from helpers.members import joined, own_tokens, together
from helpers.support import DATA, ToyAttention, dense_attention, relative_error, seeded
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from ultragen_core.attention.config import GlobalConfig, LocalConfig
from ultragen_core.attention.engine import Engine
from ultragen_core.attention.gate import Gates
from ultragen_core.attention.layer import dense_attention_, ultragen_attention
from ultragen_core.attention.split import ultragen as split_ultragen
from ultragen_core.attention.split.branch import branch_source
from ultragen_core.attention.split.member import (
    MapMoves,
    dense_received,
    everything,
    held_numbers,
    rectangle_moves,
    split_dense_attention_,
)
from ultragen_core.attention.split.moves import Moves
from ultragen_core.attention.split.rectangles import axis_parts, fitting, read_span, rectangles
from ultragen_core.attention.split.t3 import close_windows, shared_windows, split_t3_attention
from ultragen_core.attention.split.t3_counts import t3_received
from ultragen_core.attention.split.ultragen import block_shares, split_ultragen_attention, ultragen_received
from ultragen_core.attention.t3 import cuts_coincide, t3_attention
from ultragen_core.grid import Region, TokenGrid, cut_axis
from ultragen_core.ops.resample import Part, part_to_windows, resize, resize_part, to_windows
from ultragen_core.rectangle import Span
from ultragen_core.rules.ultragen import block_spec

COUNTS = (2, 4, 8)


@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_every_token_has_one_rectangle_of_nearly_equal_size(t, h, w, count):
    grid = TokenGrid(t, h, w)
    try:
        cuts = rectangles(grid, count)
    except ValueError as refusal:
        assert str(count) in str(refusal) and (h < count and w < count or h * w < count or count in (4, 6, 8))
        return
    assert len(cuts) == count
    assert torch.cat(held_numbers(grid, count)).sort().values.tolist() == list(range(grid.tokens))
    for sides in ({each.rows.size for each in cuts}, {each.columns.size for each in cuts}):
        assert max(sides) - min(sides) <= 1


def test_the_layouts_of_known_sizes():
    def layout(grid, count):
        cuts = rectangles(TokenGrid(*grid), count)
        return len({each.rows for each in cuts}), len({each.columns for each in cuts})

    assert layout((21, 68, 120), 2) == (1, 2) and layout((21, 68, 120), 4) == (1, 4)
    assert layout((21, 136, 240), 8) == (1, 8) and layout((21, 68, 80), 8) == (2, 4)


@given(st.integers(1, 60), st.integers(1, 8), st.booleans(), st.data())
@settings(max_examples=80, deadline=None)
def test_the_parts_of_an_axis_hold_its_queries_once_in_whole_windows(length, windows, shifted, data):
    first = data.draw(st.integers(0, length - 1))
    span = Span(first, data.draw(st.integers(first + 1, length)))
    runs = cut_axis(length, windows, shifted)
    borders = {start for run, count in runs for start in range(run.start, run.stop, (run.stop - run.start) // count)}
    queries = []
    for part in axis_parts(runs, span):
        starts = range(part.start, part.stop, part.window)
        assert len(starts) == part.count and borders >= set(starts)
        assert all(borders.isdisjoint(range(start + 1, start + part.window)) for start in starts)
        queries += [token for start in starts for token in range(start + part.first, start + part.last)]
        assert part.queries == part.count * (part.last - part.first)
    assert queries == list(range(*span))


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(("length", "target"), [(68, 70), (34, 33), (17, 18), (9, 9), (5, 8), (70, 68), (4, 60)])
def test_a_span_is_resized_from_what_it_reads_and_from_nothing_less(length, target, antialias):
    from ultragen_core.ops.resample import interpolation_matrix

    matrix = interpolation_matrix(length, target, antialias, torch.float32, torch.device("cpu"))
    for first in range(0, target, 3):
        span = Span(first, min(first + 5, target))
        rows, (start, stop) = matrix[span.slice], read_span(length, target, span, antialias)
        assert not rows[:, :start].any() and not rows[:, stop:].any()
        assert rows[:, start].any() and rows[:, stop - 1].any()


def test_a_member_without_cells_gets_no_tokens_for_them():
    """A frame of two columns is one cell wide, which the members on the left hold."""
    grid, spec = TokenGrid(3, 34, 2), block_spec(0, LocalConfig(uneven="balanced"))
    shares = block_shares(grid, 4, spec.local, ((spec.global_, 4),), 1)
    own = rectangles(grid, 4)
    for index in (1, 3):
        assert shares.coarse[0].held[index].area == 0
        assert shares.sources[index] == branch_source(grid, spec.local, 1, own[index])


def test_moves_bring_every_wanted_token_and_refuse_a_token_held_twice():
    grid = TokenGrid(2, 5, 7)
    wanted = [torch.randperm(grid.tokens)[: 11 * (i + 1)] for i in range(4)]
    x = torch.arange(grid.tokens, dtype=torch.float32).view(1, -1, 1).repeat(2, 1, 3)
    moves = Moves(held_numbers(grid, 4), wanted, grid.tokens)
    for result, numbers in zip(together(grid, 4, lambda m: m.exchange(own_tokens(x, m), moves)), wanted, strict=True):
        assert torch.equal(result, x[:, numbers])
    owned = [set(numbers.tolist()) for numbers in held_numbers(grid, 4)]
    assert [moves.tokens_into(i) for i in range(4)] == [len(set(w.tolist()) - owned[i]) for i, w in enumerate(wanted)]
    held = list(held_numbers(grid, 4))
    assert Moves(held, held, grid.tokens).nothing and not moves.nothing
    with pytest.raises(ValueError, match="each of 70 tokens once"):
        Moves([held[0], *held[:3]], wanted, grid.tokens)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("changes", [{}, {"antialias": True}, {"hierarchical": False}], ids=str)
def test_counted_tokens_are_those_that_the_moves_bring(count, changes):
    grid, members = TokenGrid(2, 19, 22), range(count)
    own, all_ = rectangles(grid, count), everything(grid, count)
    assert dense_received(grid, count) == tuple(map(rectangle_moves(MapMoves(grid, own, all_)).tokens_into, members))
    for block, refined in ((0, True), (1, False)):
        spec = block_spec(block, LocalConfig(**changes))
        coarse = tuple((s, ratio) for s, ratio in ((spec.hierarchical, 2), (spec.global_, 4)) if s)
        shares = block_shares(grid, count, spec.local, coarse, split_ultragen.REFINEMENT_HALO if refined else 0)
        moves = [rectangle_moves(MapMoves(grid, own, shares.sources))]
        moves += [rectangle_moves(*shares.coarse)] if coarse else []
        counted = ultragen_received(grid, count, spec.local, coarse, refined)
        assert counted == tuple(sum(each.tokens_into(member) for each in moves) for member in members)
    assert len(set(counted)) > 1 or count == 2


@given(st.tuples(*[st.integers(1, 4)] * 6), st.sampled_from((2, 3, 4, 8)))
@settings(max_examples=60, deadline=None)
def test_counted_tokens_of_t3_are_those_that_the_moves_bring(sizes, count):
    windows, extent = sizes[:3], sizes[3:]
    grid = TokenGrid(*(a * b for a, b in zip(windows, extent, strict=True)))
    assume(fitting(grid, count) == count)
    close, moves = close_windows(grid, count, windows), []
    if close is not None:
        moves.append(rectangle_moves(MapMoves(grid, rectangles(grid, count), close.wanted)))
    for strided in [False] * (close is None) + [True] * (not cuts_coincide(grid, windows)):
        shares = shared_windows(grid, count, windows, strided)
        moves += [shares.there, shares.back]
    expected = tuple(sum(each.tokens_into(member) for each in moves) for member in range(count))
    assert t3_received(grid, count, windows) == expected


def engines():
    """Each member has its own, as on a GPU of its own."""
    made = {}
    return lambda member: made.setdefault(member.index, Engine(dense_attention))


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("at_a_time", [None, 40])
@torch.no_grad()
def test_dense_attention_of_members_is_that_of_one(count, at_a_time):
    grid, attn = TokenGrid(3, 9, 10), ToyAttention(64, 2)
    x, engine = seeded(2, grid.tokens, 64), Engine(dense_attention, tokens_at_a_time=at_a_time)
    table = engine.rope_tables.table(grid, 32, x.device, (1.0, 1.0, 1.0))
    expected = dense_attention_(attn, x.clone(), table, engine)

    def work(member):
        return split_dense_attention_(attn, own_tokens(x, member), table, member, engine)

    together(grid, count, work, tags=False)  # fills the caches, which members on GPUs do not share
    assert relative_error(joined(together(grid, count, work), grid), expected) < 1e-6


@pytest.fixture(scope="module")
def t3_attn():
    return golden.t3_attn()


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", golden.T3_OUTPUTS)
def test_t3_layers_of_the_published_code_through_members(t3_attn, name, count):
    (x, grid, windows), engine = golden.t3_case(name), engines()

    def work(member):
        return split_t3_attention(t3_attn, own_tokens(x, member), windows, member, engine(member))

    with torch.no_grad():
        one = t3_attention(t3_attn, x, grid, windows, Engine(dense_attention))
    together(grid, count, work, tags=False)
    result = joined(together(grid, count, work), grid)
    assert relative_error(result, golden.T3[name]) < 1e-5 and relative_error(result, one) < 1e-6
    if windows != (1, 3, 5):  # some of these are cut, and their queries computed apart
        assert torch.equal(result, one)


@pytest.fixture(scope="module")
def tiny():
    return golden.tiny_blocks()


def tiny_block(tiny, block, changes):
    attn, extras, gates = tiny[block]
    t = torch.tensor([250.0])
    values = Gates(gates.hierarchical_gate(t), gates.global_gate(t))
    return attn, extras, values, block_spec(block, LocalConfig(**changes), GlobalConfig(), trained=True)


def members_and_one(tiny, block, grid, x, count, changes, tags=True):
    """The layer's output of all members, and that of one."""
    attn, extras, gates, spec = tiny_block(tiny, block, changes)
    engine = engines()

    def work(member):
        return split_ultragen_attention(attn, own_tokens(x, member), spec, extras, gates, member, engine(member))

    one = ultragen_attention(attn, x, grid, spec, extras, gates, Engine(dense_attention))
    results = together(grid, count, work, tags=False)
    if tags:  # the caches are filled now; members on GPUs share none
        results = together(grid, count, work)
    return joined(results, grid), one


@pytest.mark.parametrize(
    ("block", "count", "changes"),
    [
        (1, 8, {}),
        (2, 2, {"antialias": True}),
        (1, 4, {"antialias": True}),
        (2, 4, {"uneven": "balanced"}),
        (1, 2, {"cross_window": "swin", "uneven": "balanced"}),
        (2, 4, {"hierarchical": False}),
    ],
    ids=str,
)
@torch.no_grad()
def test_ultragens_layer_of_members_is_that_of_one(tiny, block, count, changes):
    grid = TokenGrid(2, 19, 22)
    result, one = members_and_one(tiny, block, grid, seeded(2, grid.tokens, 256), count, changes)
    assert relative_error(result, one) < 1e-6


def test_a_halo_that_is_one_smaller_is_wrong(tiny, monkeypatch):
    grid = TokenGrid(2, 16, 16)
    x = seeded(1, grid.tokens, 256)
    right, one = members_and_one(tiny, 2, grid, x, 2, {}, tags=False)
    monkeypatch.setattr(split_ultragen, "REFINEMENT_HALO", 0)
    wrong, _ = members_and_one(tiny, 2, grid, x, 2, {}, tags=False)
    border = slice(7, 9)
    a, b, c = (each.unflatten(1, grid)[:, :, :, border] for each in (wrong, right, one))
    assert relative_error(a, c) > 1e-4 > 100 * relative_error(b, c)


def test_a_token_on_the_wrong_member_is_found():
    with pytest.raises(AssertionError, match="reads tensors of"):
        mixed = {}

        def work(member):
            mixed[member.index] = seeded(1, 2) + member.index
            member.exchange(
                torch.zeros(1, 2, 1), Moves([torch.arange(2), torch.arange(2, 4)], [torch.arange(4)] * 2, 4)
            )
            return mixed[0] * mixed[1]

        together(TokenGrid(1, 2, 2), 2, work)


GOLDEN = load_file(DATA / "layer_io.safetensors")
PLAIN = load_file(DATA / "no_antialias.safetensors")


@pytest.mark.parametrize(("case", "block", "count"), [(0, 1, 2), (0, 2, 4), (1, 1, 8), (1, 2, 2), (2, 1, 4), (2, 2, 8)])
@torch.no_grad()
def test_layers_of_the_published_code_through_members(tiny, case, block, count):
    grid, x = TokenGrid(*GOLDEN[f"case{case}.grid"].tolist()), GOLDEN[f"case{case}.x"]
    result, one = members_and_one(tiny, block, grid, x, count, {}, tags=False)
    key = f"case{case}.block{block}.t250.out"
    assert relative_error(result, PLAIN.get(key, GOLDEN[key])) < 1e-5 and relative_error(result, one) < 1e-6


@pytest.mark.parametrize("triton", [False, True])
@torch.no_grad()
def test_parts_of_maps_are_resized_like_the_whole(interpreted_kernels, triton):
    x = seeded(1, 2, 7, 9, 16)
    whole, part = resize(x, (9, 8)), Part(1, 2, (7, 9))
    inner = x[:, :, 1:6, 2:9].contiguous()
    target = slice(2, 7), slice(3, 8)
    assert read_span(7, 9, Span(2, 7), False) == (1, 6) and read_span(9, 8, Span(3, 8), False) == (3, 9)
    result = resize_part(inner, part, target, (9, 8), False, triton)
    assert relative_error(result, whole[:, :, target[0], target[1]]) < 1e-6
    region = Region(slice(2, 6), slice(4, 8), (1, 2, 2))
    windows = part_to_windows(inner, part, (9, 8), region, False, triton)
    assert relative_error(windows, to_windows(x, (9, 8), region, False, False)) < 1e-6
