"""Rectangles of a map against pictures of them."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from ultragen_core.rectangle import Rectangle, Span

SIZE = 7, 9


@st.composite
def rectangles(draw):
    """Draw rectangles within SIZE, empty ones too."""
    spans = []
    for side in SIZE:
        start = draw(st.integers(0, side))
        spans.append(Span(start, draw(st.integers(start, side))))
    return Rectangle(*spans)


def picture(*parts: Rectangle) -> torch.Tensor:
    """How many of the rectangles hold each position."""
    counts = torch.zeros(SIZE, dtype=torch.int)
    for part in parts:
        counts[part.slices] += 1
    return counts


@given(rectangles(), rectangles())
def test_rectangles_are_what_their_pictures_show(a, b):
    assert a.area == picture(a).sum()
    assert torch.equal(picture(*a.without(b)), picture(a) * (1 - picture(b)))


@given(rectangles(), rectangles(), st.integers(1, 3))
def test_an_inner_rectangle_is_found_in_its_outer_one(a, b, n):
    inner, outer = a, a.hull(b).grow(n)
    numbers = torch.arange(SIZE[0] * SIZE[1]).view(SIZE)
    shown = numbers[outer.clip(SIZE).slices]
    assert torch.equal(shown[inner.slices_in(outer.clip(SIZE))], numbers[inner.slices])


def test_a_hull_holds_both_and_an_empty_rectangle_adds_nothing():
    own = Rectangle(Span(0, 4), Span(2, 3))
    assert own.hull(Rectangle(Span(3, 6), Span(0, 1))) == Rectangle(Span(0, 6), Span(0, 3))
    for empty in (Rectangle(Span(0, 9), Span(5, 5)), Rectangle(Span(0, 9), Span(6, 4))):
        assert own.hull(empty) == own
