"""Results stay in their folder, arrive whole, and replace nothing."""

from __future__ import annotations

import hashlib
import os

import pytest

from tools.cluster.host import without_token
from tools.cluster.ledger import DoneJob, ResultFile
from tools.cluster.results import INCOMING, OUTPUTS, PIECE, Results, is_whole, path_within, pieces_of, reported_files


def file_of(name: str, content: bytes) -> ResultFile:
    return ResultFile(name, len(content), hashlib.sha256(content).hexdigest())


def take(results: Results, name: str, content: bytes) -> ResultFile:
    file = file_of(name, content)
    return results.publish(file, results.receive(file, [content[:2], content[2:]]))


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "a/../../b", "", ".", "a\0b", "..\\b", "link/b"])
def test_a_name_that_leads_out_is_refused(tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="must be inside"):
        path_within(tmp_path / "out", name)


def test_an_existing_file_is_never_replaced(tmp_path):
    results = Results(tmp_path)
    (tmp_path / "a.mp4").write_bytes(b"mine")
    assert [take(results, "a.mp4", content).name for content in (b"one", b"two", b"one")] == [
        "a-2.mp4", "a-3.mp4", "a-2.mp4",
    ]  # fmt: skip
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.mp4")} == {
        "a.mp4": b"mine", "a-2.mp4": b"one", "a-3.mp4": b"two",
    }  # fmt: skip
    assert not list((tmp_path / INCOMING).iterdir())


def test_a_damaged_file_is_not_published(tmp_path):
    with pytest.raises(ValueError, match="arrived damaged"):
        Results(tmp_path).receive(file_of("a.mp4", b"sent"), [b"se", b"mt"])
    assert [path.name for path in tmp_path.iterdir()] == [INCOMING]


def test_what_a_killed_run_left_is_removed_and_nothing_else(tmp_path):
    for name in (INCOMING, OUTPUTS, "videos"):
        (tmp_path / name).mkdir()
    Results(tmp_path).clean()
    assert [path.name for path in tmp_path.iterdir()] == ["videos"]


def test_reported_files_are_listed_once_with_their_hashes(tmp_path):
    (tmp_path / "job" / "sub").mkdir(parents=True)
    (tmp_path / "job" / "a.mp4").write_bytes(b"video")
    (tmp_path / "job" / "sub" / "b.png").write_bytes(b"image")
    first = {"filename": "a.mp4", "subfolder": "job", "type": "output"}
    outputs = {
        "1": {"images": [first, {"filename": "p.png", "subfolder": "", "type": "temp"}], "animated": [True]},
        "2": {"ultragen_files": [first], "images": [{"filename": "b.png", "subfolder": "job/sub", "type": "output"}]},
        "3": {"text": ["a.mp4"]},
    }
    found = reported_files(outputs, tmp_path)
    assert found == [file_of("job/a.mp4", b"video"), file_of("job/sub/b.png", b"image")]
    assert [without_token(file, "job").name for file in found] == ["a.mp4", "sub/b.png"]
    with pytest.raises(ValueError, match="must be inside"):
        reported_files({"1": {"images": [{**first, "subfolder": "../.."}]}}, tmp_path)


def test_a_job_is_whole_if_all_its_files_are_unchanged(tmp_path):
    results = Results(tmp_path)
    files = tuple(take(results, name, name.encode()) for name in ("a.mp4", "sub/b.json"))
    done = DoneJob("id", "host", 1.0, files)
    assert is_whole(done, tmp_path)
    (tmp_path / "a.mp4").write_bytes(b"A.mp4")
    assert not is_whole(done, tmp_path)
    os.unlink(tmp_path / "a.mp4")
    assert not is_whole(done, tmp_path)
    assert not is_whole(DoneJob("id", "host", 1.0, (file_of("../x", b""),)), tmp_path)


def test_pieces_cover_a_file():
    asked = []
    list(pieces_of(2 * PIECE + 5, lambda offset, size: asked.append((offset, size))))
    assert asked == [(0, PIECE), (PIECE, PIECE), (2 * PIECE, 5)]
    assert not list(pieces_of(0, None))
