"""Text that every log, console and browser can encode. File names may hold bytes that are not text."""

from __future__ import annotations

import os
import re
from pathlib import PurePath

MAX_LENGTH = 300


def printable(text: object, longest: int = MAX_LENGTH) -> str:
    r"""Escape what cannot be encoded or breaks a line; shorten text of more than `longest` characters in the middle.

    Bytes of a file name that are not UTF-8 (lone surrogates in Python) become \xf6, control characters \n or \x07,
    and characters that reverse the text direction \u202e. Everything else, CJK and emoji included, is unchanged.
    """
    text = os.fspath(text) if isinstance(text, PurePath) else str(text)
    escaped = "".join(character if character.isprintable() else _escaped(character) for character in text)
    if len(escaped) <= longest:
        return escaped
    half = (longest - 3) // 2
    return f"{escaped[:half]}...{escaped[-half:]}"


def encodable(text: str) -> str:
    """Escape only what cannot be encoded, for whole messages: their lines and length stay."""
    return re.sub("[\ud800-\udfff]", lambda match: _escaped(match[0]), text)


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte that Python could not decode in a file name
        return f"\\x{ord(character) - 0xDC00:02x}"
    # Joiners combine emoji and Indic letters.
    return character if character in "\u200c\u200d\u3000\u00a0" else repr(character)[1:-1]
