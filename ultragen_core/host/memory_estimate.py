"""ComfyUI's estimate of the memory that a run needs, by which it frees the GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def estimated_memory(base, estimate: Callable[..., int]) -> Iterator[None]:
    """Replace base.memory_required for one run, and restore what an outer run needs.

    A sampler's callback may itself sample with a clone on the same base; ComfyUI then loses the outer run's patcher.
    """
    before, patcher = vars(base).get("memory_required"), base.current_patcher
    base.memory_required = estimate
    try:
        yield
    finally:
        base.current_patcher = patcher
        if before is None:
            del base.memory_required
        else:
            base.memory_required = before
