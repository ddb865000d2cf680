"""What the `test` command leaves out on the older version, and how it spreads the rest over workers."""

from __future__ import annotations

import os

import pytest
from conftest import ROOT
from helpers import schedule

from tools import newest, suite


def test_what_runs_on_the_newest_version_only_exists():
    """A name that nothing has any more would let its successor run twice, unseen."""
    for name in suite.NEWEST_ONLY:
        file, *test = name.split("::")
        assert (ROOT / "tests" / file).exists(), name
        if test:
            assert f"def {test[0].split('[')[0]}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), name


def test_the_newest_packages_go_before_those_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    assert suite.environment_of(tmp_path)["PYTHONPATH"] == "elsewhere"
    found = suite.environment_of(tmp_path, tmp_path / "newest")
    assert found["PYTHONPATH"] == f"{tmp_path / 'newest'}{os.pathsep}elsewhere"
    assert found["COMFYUI_PATH"] == str(tmp_path)


def test_versions_of_the_newest_packages_are_named(tmp_path):
    for name, version in (("comfy-kitchen", "1.2"), ("comfy-aimdo", "3.4.5")):
        folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    assert newest.versions(tmp_path) == "comfy-aimdo 3.4.5, comfy-kitchen 1.2"


def test_groups_of_the_schedule_exist():
    assert schedule.missing(ROOT) == []


@pytest.mark.parametrize(
    ("node_id", "group"),
    [
        ("tests/browser/test_canvas.py::test_a[b::c]", schedule.BROWSER),
        ("tests/nodes/test_plan.py::TestPlan::test_a", schedule.SERVER),
        ("tests/tools/test_demo.py::test_a", schedule.SERVER),
        ("tests/tools/test_bench.py::test_a[x]", "tests/tools/test_bench.py"),
    ],
)
def test_tests_that_share_a_server_or_pages_share_a_worker(node_id, group):
    assert schedule.group_of(node_id) == group


def test_long_groups_begin_first():
    ids = [
        "tests/weights/test_formats.py::test_a",
        "tests/browser/test_files.py::test_a",
        "tests/nodes/test_plan.py::a",
    ]
    assert sorted(ids, key=schedule.rank) == ids[::-1]
