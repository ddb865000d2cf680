"""Names as file systems hold them, made fit for logs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ultragen_core.printable import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("lake.ckpt", "lake.ckpt"),
        ("湖 größe 🏔️ 👩‍🚀.ckpt", "湖 größe 🏔️ 👩‍🚀.ckpt"),
        (os.fsdecode(b"gr\xf6\xdfe.ckpt"), r"gr\xf6\xdfe.ckpt"),
        (Path("a\nb\t\x07\x1b[31m"), r"a\nb\t\x07\x1b[31m"),
        ("\x00\ud800\u202etxt", r"\x00\ud800\u202etxt"),
        (12, "12"),
    ],
)
def test_only_what_breaks_a_log_is_escaped(text, shown):
    assert printable(text) == shown
    printable(text).encode("utf-8")


def test_long_names_are_cut_in_the_middle():
    shown = printable("a" * 4000 + ".safetensors")
    assert len(shown) <= 300 and shown.startswith("aaa") and "..." in shown and shown.endswith(".safetensors")
