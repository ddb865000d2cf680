"""What the `test` command leaves out on the older version, and how it spreads the rest over workers."""

from __future__ import annotations

import pytest
from conftest import ROOT
from helpers import schedule

from tools import suite


def test_what_runs_on_the_newest_version_only_exists():
    """A name that nothing has any more would let its successor run twice, unseen."""
    for name in suite.NEWEST_ONLY:
        file, *test = name.split("::")
        assert (ROOT / "tests" / file).exists(), name
        if test:
            assert f"def {test[0].split('[')[0]}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), name


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
