"""A copy of the repository, for tools that write into it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def repository(tmp_path_factory) -> Path:
    """The pack's files as they are now, committed to a repository of their own."""
    from helpers.repository import command, tracked

    from tools.server import ROOT

    folder = tmp_path_factory.mktemp("repository")
    for name in tracked():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    git = ("git", "-c", "user.name=test", "-c", "user.email=test@localhost")
    for arguments in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message=all"]):
        command(*git, *arguments, cwd=folder)
    return folder
