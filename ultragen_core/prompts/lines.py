"""Parses plain text: one prompt per line or per paragraph."""

from __future__ import annotations

import re

from .entries import Entry, PromptList

COMMENT = re.compile(r"\s*#+(\s|$)")  # "#1 dad mug" and "#sunset" are prompts

_LINE_END = re.compile(r"\r\n|\r|\n")  # only these: pasted text may hold U+2028


def split_lines(text: str) -> list[str]:
    return _LINE_END.split(text)


def without_comments(text: str) -> str:
    """Blank out comment lines. Line numbers stay the same for error messages."""
    return "\n".join("" if COMMENT.match(line) else line for line in split_lines(text))


def read_lines(text: str, name: str) -> PromptList:
    lines = [line.strip() for line in split_lines(without_comments(text))]
    return PromptList(tuple(Entry(line) for line in lines if line))


def read_paragraphs(text: str, name: str) -> PromptList:
    """Read blocks separated by blank lines. Line breaks inside a block are kept."""
    lines = [line.strip() for line in split_lines(text) if not COMMENT.match(line)]
    blocks = [block.strip() for block in re.split(r"\n{2,}", "\n".join(lines))]
    return PromptList(tuple(Entry(block) for block in blocks if block))
