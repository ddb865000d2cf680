"""A cache for functions that the threads of several GPUs call at the same time."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from threading import Lock
from typing import TypeVar

Function = TypeVar("Function", bound=Callable)


def built_once(maxsize: int) -> Callable[[Function], Function]:
    """As `functools.lru_cache`, but threads that ask for the same result at the same time do not all compute it: the
    first does, the others wait for it. Different results are computed at the same time.

    A function that fails is called again by the next thread that waits.
    """

    def decorate(function: Function) -> Function:
        built, guard, waiting = lru_cache(maxsize)(function), Lock(), {}

        @lru_cache(maxsize)  # what is in this cache costs threads no lock
        @wraps(function)
        def once(*key):
            with guard:
                lock, users = waiting.get(key, (Lock(), 0))
                waiting[key] = lock, users + 1
            try:
                with lock:
                    return built(*key)
            finally:
                with guard:
                    lock, users = waiting.pop(key)
                    if users > 1:
                        waiting[key] = lock, users - 1

        return once

    return decorate
