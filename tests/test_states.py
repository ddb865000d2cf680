"""Files of states: whole, found again, and the only ones that are ever removed."""

from __future__ import annotations

import os

import pytest
import torch
from support import seeded

from ultragen_core.states import KEPT, State, StateFolder

RUN = {"node": "5 0", "graph": "a", "noise": "b"}


@pytest.fixture
def states(tmp_path):
    return StateFolder(tmp_path)


def files(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_state_comes_back_bit_for_bit(states, dtype):
    x = seeded(1, 4, 2, 3, 5).to(dtype).transpose(3, 4)
    states.save(RUN, State(torch.zeros(1), 1))
    states.save(RUN, State(x, 7, draws=9))
    state = states.load(RUN)
    assert torch.equal(state.x, x) and state.x.dtype == dtype and (state.step, state.draws) == (7, 9)


def test_another_run_has_no_state(states):
    states.save(RUN, State(seeded(2), 7))
    other = RUN | {"graph": "c"}
    assert states.load(other) is None
    assert states.changes(other, same="node") == ("7", ["graph"])
    assert states.changes(other | {"node": "6 0"}, same="node") is None


@pytest.mark.parametrize("damage", [lambda whole: whole[: len(whole) // 2], lambda whole: b""], ids=["half", "empty"])
def test_a_damaged_file_is_no_state(states, tmp_path, caplog, damage):
    states.save(RUN, State(seeded(100), 7))
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert states.load(RUN) is None and states.changes(RUN, same="node") is None
    assert f"{path} cannot be read" in caplog.text


def test_a_failed_write_leaves_the_former_state(states, monkeypatch):
    states.save(RUN, State(seeded(3), 7))

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        states.save(RUN, State(seeded(3), 8))
    assert states.load(RUN).step == 7


def test_removing_takes_what_a_killed_process_left_and_nothing_else(states, tmp_path):
    states.save(RUN, State(seeded(3), 7))
    (path,) = tmp_path.iterdir()
    path.with_name(path.name + ".part").write_bytes(b"half")
    states.save(RUN | {"graph": "c"}, State(seeded(3), 7))
    (tmp_path / "mine.safetensors").touch()
    states.remove(RUN)
    assert len(files(tmp_path)) == 2 and path.name not in files(tmp_path) and "mine.safetensors" in files(tmp_path)


def test_the_newest_states_stay(states, tmp_path):
    (tmp_path / "mine.safetensors").touch()
    for number in range(KEPT + 3):
        run = RUN | {"graph": str(number)}
        states.save(run, State(seeded(3), number))
        os.utime(states._path(run), (number, number))
    states.save(RUN, State(seeded(3), 99))
    assert len(files(tmp_path)) == KEPT + 1 and "mine.safetensors" in files(tmp_path)
    assert states.load(RUN).step == 99
    assert [states.load(RUN | {"graph": str(number)}) is None for number in range(KEPT + 3)] == [True] * 4 + [False] * 3
