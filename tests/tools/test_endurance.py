"""The long runs of tools/endurance, short. A start of a server costs more than what it does here, so they share two."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from tools.endurance import faults, kills, together


@pytest.fixture(scope="module")
def server(new_server):
    with new_server() as running:
        yield running


@pytest.fixture(scope="module")
def other_server(new_server, server):
    """Another server on the same base folder."""
    with new_server(server.base, name="other") as running:
        yield running


def test_killed_twice_a_list_loses_and_repeats_nothing(server, new_server):
    """First, because the undisturbed list must find a server as new as those that are killed."""
    running = [nullcontext(server)]
    # This seed kills at 55% and 35% of the time that the list takes undisturbed. A later kill comes after the end, and
    # costs another list and its servers.
    report = kills.run(
        lambda: running.pop() if running else new_server(server.base, name="killed"),
        kills=2, seed=29, say=print, prompts=2,
    )  # fmt: skip
    assert len(report.moments) >= 2


def test_two_servers_give_every_video_a_name_of_its_own(server, other_server):
    assert together.run((server, other_server), videos=4, say=print) == 8


def test_prompts_end_in_a_video_or_a_sentence_whatever_happens_to_files(server, new_server):
    """On the server that is there. Those that are killed meanwhile are new ones."""
    report = faults.run(
        lambda name="server": nullcontext(server) if name == "server" else new_server(server.base, name=name),
        prompts=10, seed=1, say=print, measured=(5, 10),
    )  # fmt: skip
    assert sum(report.ends.values()) == 10 and report.ends["a video"]
