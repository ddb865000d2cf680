"""Files of states: whole, found again, and the only ones that are ever removed."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.support import seeded
from safetensors.torch import save_file

from ultragen_core.storage.states import State, StateFolder

RUN = {"node": "5 0", "graph family": "f", "graph": "a", "noise": "b"}


@pytest.fixture
def states(tmp_path):
    return StateFolder(tmp_path)


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def run(number):
    return RUN | {"graph": str(number)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_state_comes_back_bit_for_bit(states, dtype):
    x = seeded(1, 4, 2, 3, 5).to(dtype).transpose(3, 4)
    states.save(RUN, State(torch.zeros(1), 1))
    states.save(RUN, State(x, 7, draws=9, denoised=x[0]))
    state = states.load(RUN)
    assert torch.equal(state.x, x) and state.x.dtype == dtype and (state.step, state.draws) == (7, 9)
    assert torch.equal(state.denoised, x[0])


def test_another_run_has_no_state(states):
    states.save(RUN, State(seeded(2), 7))
    other = RUN | {"graph": "c"}
    assert states.load(other) is None
    assert states.changes(other) == (7, ["graph"])
    assert states.changes(other | {"node": "6 0"}) is None


def test_where_a_run_is_does_not_matter(states):
    states.save(RUN, State(seeded(2), 7))
    assert states.load(RUN | {"node": "9 3", "graph family": "g"}).step == 7


@pytest.mark.parametrize("damage", [lambda whole: whole[: len(whole) // 2], lambda whole: b""], ids=["half", "empty"])
def test_a_damaged_file_is_no_state(states, tmp_path, caplog, damage):
    states.save(RUN, State(seeded(100), 7))
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert states.load(RUN) is None
    assert f"{path} cannot be read" in caplog.text


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"step": "1", "draws": "0", "saved": "1"},
        {"step": "1", "draws": "0", "saved": "1", "fingerprint": "{"},
        {"step": "x", "draws": "0", "saved": "1", "fingerprint": "[]"},
    ],
    ids=["none", "no fingerprint", "cut json", "other values"],
)
def test_odd_files_stop_nobody(states, tmp_path, metadata):
    """Neither next to a run's own file, nor in its place."""
    save_file({"x": torch.zeros(2)}, tmp_path / ("0" * 64 + ".safetensors"), metadata)
    (tmp_path / ("1" * 64 + ".safetensors")).symlink_to("/gone")
    (tmp_path / ("2" * 64 + ".safetensors")).mkdir()
    assert states.changes(RUN) is None
    states.evict(0, lambda entry: False)
    save_file({"x": torch.zeros(2)}, states.path_of(RUN), metadata)
    loaded = states.load(RUN)
    assert loaded is None or loaded.step == 1
    states.save(RUN, State(torch.zeros(2), 3))
    assert states.load(RUN).step == 3


def test_runs_that_remove_files_at_once_do_not_disturb_each_other(tmp_path):
    raised = []

    def work(number):
        own = StateFolder(tmp_path)
        try:
            for step in range(30):
                own.save(run(number), State(torch.zeros(50), step))
                own.changes(RUN)
                own.evict(0, lambda entry: False)
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not raised


def test_a_failed_write_leaves_the_former_state(states, monkeypatch):
    states.save(RUN, State(seeded(3), 7))

    def full(*_):
        raise OSError(28, "disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        states.save(RUN, State(seeded(3), 8))
    assert states.load(RUN).step == 7


@pytest.mark.parametrize(("free", "written"), [(10**9, False), (2 * 10**9, True), (0, True)])
def test_the_last_gigabyte_is_left_for_the_video(states, monkeypatch, free, written):
    """0 is what some network folders say of themselves."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    if written:
        states.save(RUN, State(seeded(3), 8))
    else:
        with pytest.raises(OSError, match="1 GB stays for videos"):
            states.save(RUN, State(seeded(3), 8))
    assert (states.load(RUN) is not None) == written


def test_removing_takes_what_a_killed_process_left_and_nothing_else(states, tmp_path):
    states.save(RUN, State(seeded(3), 7))
    (path,) = tmp_path.iterdir()
    path.with_name(path.name + ".part").write_bytes(b"half")
    states.save(run("c"), State(seeded(3), 7))
    (tmp_path / "mine.safetensors").touch()
    states.remove(RUN)
    assert len(files(tmp_path)) == 2 and path.name not in files(tmp_path) and "mine.safetensors" in files(tmp_path)


def test_beyond_the_limit_those_saved_first_go(states, tmp_path, monkeypatch):
    """By the time that is written in them: files are touched by copies, and clocks are set."""
    (tmp_path / "mine.safetensors").touch()
    for number in range(6):
        monkeypatch.setattr("time.time", lambda number=number: 1e9 + number)
        states.save(run(number), State(seeded(30), number))
        os.utime(states.path_of(run(number)), (0, -number))
    size = states.path_of(run(0)).stat().st_size
    states.evict(3 * size, lambda entry: entry.step == 1)
    assert [states.load(run(number)) is not None for number in range(6)] == [False, True, False, False, True, True]
    assert "mine.safetensors" in files(tmp_path)


def test_a_folder_that_cannot_be_read_has_no_states(unreadable):
    states = StateFolder(Path(unreadable))
    assert states.load(RUN) is None and states.changes(RUN) is None


def test_parts_of_a_killed_process_go_after_a_day(states, tmp_path):
    old, young = (tmp_path / (letter * 64 + ".safetensors.part") for letter in "ab")
    for part in (old, young):
        part.write_bytes(b"half")
    os.utime(old, (0, 0))
    states.evict(10**9, lambda entry: False)
    assert files(tmp_path) == [young.name]
