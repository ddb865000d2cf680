"""Files get their names when they are complete, and no file takes another's."""

from __future__ import annotations

import errno
import os
from itertools import count
from types import SimpleNamespace

import pytest

from ultragen_core.storage import files
from ultragen_core.storage.files import NotPublished, check_folder, file_within, finished_file, new_file


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)


def names(folder, start=1):
    return (folder / f"a_{number}.txt" for number in count(start))


def write(folder, text, start=1):
    with new_file(names(folder, start)) as file:
        file.part.write_text(text)
    return file.path


def failing(action, times, number):
    """`action`, which raises OSError with this number the first `times` times."""
    left = [times]

    def attempt(*args):
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(number, os.strerror(number))
        return action(*args)

    return attempt


class TestReplacingOnesOwn:
    def test_a_file_gets_its_name_when_it_is_complete(self, tmp_path):
        path = tmp_path / "a.txt"
        path.write_text("old")
        with pytest.raises(RuntimeError), finished_file(path) as part:
            part.write_text("half")
            raise RuntimeError
        assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]
        with finished_file(path) as part:
            part.write_text("new")
            assert path.read_text() == "old"
        assert path.read_text() == "new" and os.listdir(tmp_path) == ["a.txt"]

    def test_no_two_writers_share_a_part(self, tmp_path):
        path = tmp_path / "a.txt"
        with finished_file(path) as first, finished_file(path) as second:
            assert first != second
            for part in (first, second):
                assert part.name.startswith("a.txt.") and part.name.endswith(files.UNFINISHED)
                part.write_text(part.name)
        assert path.read_text() == first.name

    def test_a_name_that_fits_has_a_part_that_fits(self, tmp_path):
        for name in ("y" * 255, "湖" * 85):
            with finished_file(tmp_path / name) as part:
                part.write_text("x")
        assert len(os.listdir(tmp_path)) == 2

    def test_a_file_that_is_held_for_a_moment(self, tmp_path, monkeypatch):
        monkeypatch.setattr(os, "replace", failing(os.replace, 3, errno.EACCES))
        with finished_file(tmp_path / "a.txt") as part:
            part.write_text("x")
        assert os.listdir(tmp_path) == ["a.txt"]


class TestNewFiles:
    def test_nothing_that_exists_is_replaced(self, tmp_path):
        (tmp_path / "a_1.txt").write_text("mine")
        os.symlink(tmp_path / "nowhere", tmp_path / "a_2.txt")
        assert write(tmp_path, "new") == tmp_path / "a_3.txt"
        assert (tmp_path / "a_1.txt").read_text() == "mine" and not (tmp_path / "nowhere").exists()

    def test_a_name_is_taken_when_it_is_chosen(self, tmp_path):
        with new_file(names(tmp_path)) as first, new_file(names(tmp_path)) as second:
            first.part.write_text("1")
            second.part.write_text("2")
        assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a_1.txt": "1", "a_2.txt": "2"}

    def test_what_a_killed_process_left_is_not_touched(self, tmp_path):
        (tmp_path / "a_1.txt.part").write_text("half")
        assert write(tmp_path, "new").name == "a_2.txt"
        assert (tmp_path / "a_1.txt.part").read_text() == "half"

    @pytest.mark.parametrize("links", [True, False])
    def test_a_name_that_another_program_took_meanwhile(self, tmp_path, monkeypatch, links):
        if not links:
            monkeypatch.setattr(os, "link", failing(None, 99, errno.EPERM))
        (tmp_path / "a_2.txt.part").touch()  # of a process that works on it
        with new_file(names(tmp_path)) as file:
            file.part.write_text("ours")
            (tmp_path / "a_1.txt").write_text("theirs")
        assert file.path.name == "a_3.txt" and file.path.read_text() == "ours"
        assert sorted(os.listdir(tmp_path)) == ["a_1.txt", "a_2.txt.part", "a_3.txt"]
        assert (tmp_path / "a_1.txt").read_text() == "theirs"

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    def test_an_error_leaves_nothing(self, tmp_path, error):
        with pytest.raises(error), new_file(names(tmp_path)) as file:
            file.part.write_text("half")
            raise error
        assert os.listdir(tmp_path) == []

    def test_one_name_that_is_taken_is_an_error(self, tmp_path):
        (tmp_path / "a.json").write_text("mine")
        with pytest.raises(FileExistsError, match="exists already"), new_file([tmp_path / "a.json"]):
            pass
        assert os.listdir(tmp_path) == ["a.json"]

    def test_a_name_that_cannot_be_written_is_said(self, tmp_path):
        with pytest.raises(OSError, match="Choose another, shorter name"), new_file([tmp_path / ("y" * 254)]):
            pass


class TestTheFinishedFile:
    @pytest.mark.parametrize("name", ["link", "fsync"])
    def test_a_moments_failure_is_waited_out(self, tmp_path, monkeypatch, name):
        monkeypatch.setattr(os, name, failing(getattr(os, name), 3, errno.EIO))
        write(tmp_path, "x")
        assert os.listdir(tmp_path) == ["a_1.txt"]

    @pytest.mark.parametrize(("broken", "number"), [(["link", "rename"], errno.EACCES), (["fsync"], errno.EIO)])
    def test_it_stays_under_the_name_that_the_error_gives(self, tmp_path, monkeypatch, broken, number):
        for name in broken:
            monkeypatch.setattr(os, name, failing(None, 99, number))
        with pytest.raises(NotPublished, match=r"could not be named a_1.txt \(.*\).*a_1.txt.part. Rename it"):
            write(tmp_path, "complete")
        assert (tmp_path / "a_1.txt.part").read_text() == "complete"

    @pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
    def test_a_file_system_without_fsync_is_no_error(self, tmp_path, monkeypatch, number):
        monkeypatch.setattr(os, "fsync", failing(None, 99, number))
        assert write(tmp_path, "x").read_text() == "x"

    def test_a_full_disk_is_not_waited_for(self, tmp_path, monkeypatch):
        monkeypatch.setattr(os, "fsync", failing(os.fsync, 1, errno.ENOSPC))
        with pytest.raises(OSError, match="No space") as raised:
            write(tmp_path, "x")
        assert files.is_full(raised.value) and os.listdir(tmp_path) == []


@pytest.mark.parametrize("report", [OSError(errno.ENOSYS, "no"), 0, 10**9])
def test_free_room_that_is_not_known_is_no_error(tmp_path, monkeypatch, report):
    def usage(_):
        if isinstance(report, OSError):
            raise report
        return SimpleNamespace(free=report)

    monkeypatch.setattr(files.shutil, "disk_usage", usage)
    check_folder(tmp_path, 1000, "video")
    if report == 10**9:
        with pytest.raises(OSError, match="needs about 2.00 GB in .*, but its disk has only 1.00 GB free"):
            check_folder(tmp_path, 2 * 10**9, "video")


@pytest.mark.parametrize(
    "name", ["../a.txt", "sub/../../a.txt", "/a.txt", "//machine/share/a.txt", "\\\\machine\\a.txt"]
)
def test_a_name_that_leads_out_is_not_looked_up(tmp_path, looked_up, name):
    """On Windows it may be another machine's, which Windows would tell who the user is."""
    with pytest.raises(ValueError, match="a.txt must be a file in"):
        file_within(tmp_path, name)
    assert looked_up == []
