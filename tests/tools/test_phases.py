"""Commands that run at the same time."""

from __future__ import annotations

import sys

import pytest

from tools.phases import Phase, running

# Waits for a file, at most two minutes. Exits with 3 if it does not come.
WAIT = """
import pathlib, sys, time
file = pathlib.Path({!r})
end = time.monotonic() + 120
while not file.exists():
    if time.monotonic() > end:
        sys.exit(3)
    time.sleep(0.01)
print({!r})
"""


def phase(title, script, folder):
    return Phase(title, [sys.executable, "-S", "-c", script], folder)


def test_lanes_run_at_the_same_time_and_their_outputs_follow_one_another(tmp_path, capsys):
    """Each lane's first phase waits for what the other lane writes."""
    one, other = (str(tmp_path / name) for name in ("one", "other"))
    first = phase("First", f"open({one!r}, 'w')" + WAIT.format(other, "gr\u00fcn"), tmp_path)
    second = phase("Second", "print('second'); raise SystemExit(2)", tmp_path)
    third = phase("Third", "print('third', flush=True)" + WAIT.format(one, "last") + f"open({other!r}, 'w')", tmp_path)
    with running([[first, second], [third]]):
        assert [each.show() for each in (first, second, third)] == [0, 2, 0]
    assert capsys.readouterr().out.split() == ["First", "gr\u00fcn", "Second", "second", "Third", "third", "last"]


def test_a_killed_phase_has_failed(tmp_path):
    killed = phase("Killed", "import os; os.kill(os.getpid(), 9)", tmp_path)
    with running([[killed]]):
        assert killed.show() == 9


def test_a_phase_that_cannot_start_is_an_error(tmp_path):
    none = Phase("None", [str(tmp_path / "none")], tmp_path)
    with pytest.raises(FileNotFoundError, match="none"), running([[none]]):
        none.show()


def test_when_we_are_asked_to_end_what_runs_is_interrupted_and_the_rest_does_not_begin(tmp_path, monkeypatch, capsys):
    """What the interrupted phase still says is shown."""
    ready, begun = tmp_path / "ready", tmp_path / "begun"
    wait = f"""
import pathlib, time
try:
    pathlib.Path({str(ready)!r}).touch()
    time.sleep(120)
except KeyboardInterrupt:
    time.sleep(0.2)
    print("interrupted")
"""
    waits, following = phase("Waits", wait, tmp_path), phase("Next", f"open({str(begun)!r}, 'w')", tmp_path)
    until_ready = phase("Until ready", WAIT.format(str(ready), "ready"), tmp_path)
    monkeypatch.setattr(waits.ended, "wait", lambda seconds: sys.exit(143))
    with pytest.raises(SystemExit), running([[waits, following], [until_ready]]):
        assert until_ready.show() == 0
        waits.show()
    assert capsys.readouterr().out.split() == ["Until", "ready", "ready", "Waits", "interrupted"]
    assert not begun.exists()
