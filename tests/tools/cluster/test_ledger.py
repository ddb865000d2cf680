"""jobs.jsonl survives a kill at any byte, and one folder has one driver."""

from __future__ import annotations

import errno
import os

import pytest

from tools.cluster import orphans
from tools.cluster.ledger import NAME, Ledger, ResultFile, read_done, read_lines
from tools.cluster.simulation import fake_jobs
from tools.console import Trouble


def test_a_ledger_cut_anywhere_keeps_its_whole_lines_and_takes_new_ones(tmp_path):
    first, second, third = fake_jobs(3)
    with Ledger(tmp_path) as notes:
        for job in (first, second):
            notes.write_done(job, "a", 1.5, [ResultFile("雪.mp4", 1, "ff")])
    whole = (tmp_path / NAME).read_bytes()
    start = whole.index(b"\n") + 1
    for length in range(start, len(whole)):
        (tmp_path / NAME).write_bytes(whole[:length])
        with Ledger(tmp_path) as notes:
            notes.write_done(third, "b", 2, [])
        found = read_done(tmp_path)
        expected = {first.id, third.id, *([second.id] if length == len(whole) - 1 else [])}
        assert found.keys() == expected, length
        assert found[first.id].files == (ResultFile("雪.mp4", 1, "ff"),)


def test_a_second_driver_on_one_folder_is_refused(tmp_path):
    with Ledger(tmp_path), pytest.raises(Trouble, match="Another run writes to"), Ledger(tmp_path):
        pass
    with Ledger(tmp_path):
        pass


def without_locks(monkeypatch):
    import fcntl

    def flock(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)


def test_a_folder_without_locks_is_used_with_a_warning(tmp_path, monkeypatch, capsys):
    without_locks(monkeypatch)
    with Ledger(tmp_path) as notes:
        notes.write_done(fake_jobs(1)[0], "a", 1, [])
    assert len(read_done(tmp_path)) == 1 and "Start no second run" in capsys.readouterr().out


def test_without_locks_no_host_is_taken_for_ended(tmp_path, monkeypatch):
    without_locks(monkeypatch)
    first, second = orphans.new_folder(tmp_path), orphans.new_folder(tmp_path)
    assert first.is_dir() and second.is_dir()


def test_nothing_is_written_without_events(tmp_path):
    with Ledger(tmp_path) as notes:
        notes.sync()
    assert (tmp_path / NAME).read_bytes() == b"" and not read_done(tmp_path) and not read_done(tmp_path / "none")


def test_a_reason_that_no_encoding_knows_is_noted(tmp_path):
    reason = "cannot read \udcff.png"  # a file name whose bytes are not UTF-8, as ComfyUI's message gives it
    with Ledger(tmp_path) as notes:
        notes.write("failed", "a", "host", reason=reason)
    assert [line["reason"] for line in read_lines(tmp_path)] == [reason]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux alone has a device that is always full")
def test_a_full_disk_is_named(tmp_path):
    (tmp_path / NAME).symlink_to("/dev/full")
    with pytest.raises(Trouble, match="jobs.jsonl cannot be written: .*No space left"), Ledger(tmp_path) as notes:
        notes.write("lost", "a", "host")


def test_a_file_instead_of_the_folder_is_named(tmp_path):
    (tmp_path / "videos").touch()
    with pytest.raises(Trouble, match="videos.* cannot be written"), Ledger(tmp_path / "videos"):
        pass
