"""The long runs of tools/endurance, short."""

from __future__ import annotations

import pytest

from tools.endurance import faults, kills, together


@pytest.fixture
def servers(new_server):
    """Servers on one base folder of their own."""
    bases = []

    def make(name="server"):
        made = new_server(bases[0] if bases else None, name=name)
        bases.append(made.base)
        return made

    return make


def test_prompts_end_in_a_video_or_a_sentence_whatever_happens_to_files(servers):
    report = faults.run(servers, prompts=10, seed=1, say=print, measured=(5, 10))
    assert sum(report.ends.values()) == 10 and report.ends["a video"]


def test_killed_twice_a_list_loses_and_repeats_nothing(servers):
    # This seed kills at 55% and 35% of the time that the list takes undisturbed. A later kill comes after the end, and
    # costs another list and its servers.
    assert len(kills.run(servers, kills=2, seed=29, say=print, prompts=2).moments) >= 2


def test_two_servers_give_every_video_a_name_of_its_own(servers):
    with servers("one") as one, servers("other") as other:
        assert together.run((one, other), videos=4, say=print) == 8
