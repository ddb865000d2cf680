"""The `test` command: what it leaves out on the older version, what shares a worker, and what runs alone."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT
from helpers import schedule

from tools import browser, overlays, suite

CI_SCRIPT = re.compile(r'python -c "([^"]+)"')


def test_what_ci_asks_of_the_tools_is_there():
    files = ROOT.glob(".github/workflows/*.yml")
    scripts = [script for file in files for script in CI_SCRIPT.findall(file.read_text(encoding="utf-8"))]
    assert len(scripts) >= 2
    for script in scripts:
        assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, check=True).stdout


@pytest.mark.parametrize("module", ["training", "tools.bench", "tools.cluster", "tools.endurance"])
def test_commands_call_themselves_what_one_types(module):
    done = subprocess.run([sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith(f"usage: python3 -m {module} ")


def test_the_readme_names_the_frontend_that_is_tested():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    (row,) = (line for line in lines if line.startswith("| 0.30.0 |"))
    assert row.split("|")[2].split(", ")[-1].strip() == browser.TESTED.split("==")[1]


def test_what_runs_on_the_newest_version_only_exists():
    """A name that nothing has any more would let its successor run twice, unseen."""
    for name in suite.NEWEST_ONLY:
        file, *test = name.split("::")
        assert (ROOT / "tests" / file).exists(), name
        if test:
            assert f"def {test[0].split('[')[0]}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), name


@pytest.mark.parametrize(
    ("arguments", "together", "alone"),
    [
        ([], [], [suite.ALONE]),
        (["-k", "lora", "-x"], ["-k", "lora", "-x"], ["-k", "lora", "-x", suite.ALONE]),
        (["tests/tools", "tests/host", "-x"], ["tests/tools", "tests/host", "-x"], ["-x", suite.ALONE]),
        ([f"{suite.ALONE}::test_a", "tests/tools"], ["tests/tools"], [f"{suite.ALONE}::test_a"]),
        ([suite.ALONE, "-x"], None, ["-x", suite.ALONE]),
        (["tests/host", "-x"], ["tests/host", "-x"], None),
        (["tests/tools/cluster/test_run.py::test_a"], ["tests/tools/cluster/test_run.py::test_a"], None),
    ],
)
def test_what_runs_alone_runs_if_it_is_asked_for(arguments, together, alone):
    assert suite.split_arguments(arguments) == (together, alone)
    assert (ROOT / suite.ALONE).is_file()


@pytest.mark.parametrize(
    ("runs", "code"), [((0, 5, 0, 0), 0), ((5, 5, 5), 5), ((0, 0, 1, 0), 1), ((5, 0, 5), 0), ((1, 5, 2), 2)]
)
def test_any_failure_fails_the_command(runs, code):
    assert suite.exit_code(runs) == code


# Instead of pytest and ruff. Fails where nothing is ignored: in the run of what runs in a phase of its own.
PROGRAM = """#!/bin/sh
echo "ran $@ with $PYTHONPATH"
case "$1 $*" in check*|*--ignore*) exit 0;; *) exit 1;; esac
"""


def test_a_failure_of_each_run_is_named_before_the_last_summary(tmp_path, monkeypatch, capfd):
    program = tmp_path / "program"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    monkeypatch.setattr(suite, "tool", lambda name: str(program))
    for module, name in ((suite.browser, "install_chromium"), (suite.browser, "install_frontends")):
        monkeypatch.setattr(module, name, lambda *_: None)
    monkeypatch.setattr(suite.package_tools, "install", lambda cache: None)
    monkeypatch.setattr(suite.overlays, "fetch", lambda venv, requirement, folder: None)
    monkeypatch.setattr(suite.comfyui, "tree_of", lambda release, cache: tmp_path / release.version)
    assert suite.run(tmp_path, []) == 1
    lint, older, alone, failure, newer = (
        line for line in capfd.readouterr().out.splitlines() if line.startswith("ran ") or "FAILED" in line
    )
    assert lint.startswith("ran check") and suite.ALONE in alone.split() and "-n" not in alone.split()
    assert failure.startswith(f"{suite.ALONE}: FAILED")
    assert {f"--ignore={suite.ALONE}", "-n"} <= set(older.split()) & set(newer.split())
    assert "--ignore=tests/weights" in older.split() and "--ignore=tests/weights" not in newer.split()
    assert ["av-14.2.0" in line for line in (older, newer, alone)] == [True, False, False]


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
    assert overlays.versions(tmp_path) == "comfy-aimdo 3.4.5, comfy-kitchen 1.2"


def test_groups_of_the_schedule_exist():
    assert schedule.missing(ROOT) == []


@pytest.mark.parametrize(
    ("node_id", "group"),
    [
        ("tests/browser/test_canvas.py::test_a[b::c]", schedule.BROWSER),
        ("tests/nodes/test_plan.py::TestPlan::test_a", schedule.SERVER),
        ("tests/tools/test_demo.py::test_a", schedule.SERVER),
        ("tests/tools/test_compare.py::test_a", schedule.SERVER),
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
