"""The repository as a user's tools see it: tracked files, and commands run on them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tools.server import ROOT


def command(*arguments, cwd: Path | None = None, **variables: str) -> str:
    """Run a program and return its output, stdout and stderr together. Fails the test unless it exits with 0."""
    words, environment = [str(each) for each in arguments], {**os.environ, **variables}
    done = subprocess.run(
        words, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def tracked(*paths: str) -> list[str]:
    """Paths of all files that git tracks or would add, relative to the repository; those in `paths` if there are any.

    The repository may belong to another user, as in a container, which git refuses by default.
    """
    git = ("git", "-c", "safe.directory=*", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--")
    return [name for name in command(*git, *paths, cwd=ROOT).split("\0") if name and (ROOT / name).is_file()]
