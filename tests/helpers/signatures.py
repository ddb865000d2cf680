"""Names that tests compare with ComfyUI's."""

from __future__ import annotations

import inspect
from collections.abc import Callable


def parameters(function: Callable) -> list[str]:
    """Names of the parameters in order, without self; those of **kwargs begin with two stars."""
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    found = inspect.signature(function).parameters.values()
    return [stars.get(each.kind, "") + each.name for each in found if each.name != "self"]


def lacking(owner: object, *names: str) -> list[str]:
    """The names that `owner` has no attribute of."""
    return [name for name in names if not hasattr(owner, name)]
