"""Threads that ask for the same result at the same time wait for the first, and for nothing else."""

from __future__ import annotations

import threading

import pytest

from ultragen_core.built_once import built_once

SECONDS = 60


def in_threads(count: int, work) -> None:
    threads = [threading.Thread(target=work, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert not any(thread.is_alive() for thread in threads)


def test_the_same_result_is_built_once_and_different_ones_at_the_same_time():
    both, built, results = threading.Barrier(2, timeout=SECONDS), [], {}

    @built_once(maxsize=4)
    def build(key):
        built.append(key)
        both.wait()  # passed only if both keys are built at the same time
        return object()

    def work(index):
        results[index] = build(index % 2)

    in_threads(8, work)
    assert sorted(built) == [0, 1] and len(set(results.values())) == 2
    assert all(results[index] is results[index % 2] for index in results)


def test_after_a_failure_the_next_thread_builds():
    tries = []

    @built_once(maxsize=4)
    def build(key):
        tries.append(key)
        if len(tries) == 1:
            raise ValueError("first")
        return key

    with pytest.raises(ValueError, match="first"):
        build(7)
    assert build(7) == build(7) == 7 and tries == [7, 7]


def test_results_beyond_the_size_are_built_again():
    built = []
    build = built_once(maxsize=2)(lambda key: built.append(key) or key)
    assert [build(key) for key in (1, 2, 3, 1)] == [1, 2, 3, 1] and built == [1, 2, 3, 1]
