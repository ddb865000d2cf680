"""Names that tests compare with ComfyUI's, and what its newer versions alone have."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection

import pytest

from tools.templates.layout import NEWER

LACKS = "this ComfyUI lacks"  # how the reasons of `needs` begin; in CI they are valid reasons for a skip


def parameters(function: Callable) -> list[str]:
    """Names of the parameters in order, without self; those of **kwargs begin with two stars."""
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    found = inspect.signature(function).parameters.values()
    return [stars.get(each.kind, "") + each.name for each in found if each.name != "self"]


def needs(present: bool, what: str) -> pytest.MarkDecorator:
    """Skip a test of something that newer versions alone have."""
    return pytest.mark.skipif(not present, reason=f"{LACKS} {what}")


def lacking(owner: object, *names: str) -> list[str]:
    """The names that `owner` has no attribute of."""
    return [name for name in names if not hasattr(owner, name)]


def skip_without_nodes(used: Collection[str], known: Collection[str]) -> None:
    """Skip a test of a template whose newer nodes of ComfyUI are missing. No other node may be missing."""
    missing = sorted(set(used) - set(known))
    assert all(name.startswith(NEWER) for name in missing), f"No such nodes: {missing}"
    if missing:
        pytest.skip(f"{LACKS} the nodes {', '.join(missing)}")
