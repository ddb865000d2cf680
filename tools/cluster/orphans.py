"""Folders of hosts, and the end of servers whose host was killed.

A host holds a lock on its folder. Whoever gets the lock knows that the host has ended, ends what its server left
running, and removes the folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import tempfile
from pathlib import Path

from tools.cluster.locks import NoLocks, lock
from tools.cluster.tied import start_time

PID_FILE, LOCK = "server.pid", "lock"
_held = []  # locks of this process; they end with it


def new_folder(parent: Path) -> Path:
    """Create a locked folder for a host of this process, after removing those of hosts that have ended.

    Without locks, folders of other hosts are left alone. Raises RuntimeError if another process takes the new folder.
    """
    parent.mkdir(parents=True, exist_ok=True)
    with open(parent / LOCK, "w") as one_at_a_time:  # or another host would find the new folder before it is locked
        with contextlib.suppress(NoLocks):
            lock(one_at_a_time, wait=True)
        for folder in parent.glob("host-*"):
            _remove_if_ended(folder)
        folder = Path(tempfile.mkdtemp(prefix="host-", dir=parent))
        _held.append(open(folder / LOCK, "w"))
        with contextlib.suppress(NoLocks):
            if not lock(_held[-1]):
                raise RuntimeError(f"Another process has locked the new folder {folder}.")
    return folder


def _remove_if_ended(folder: Path) -> None:
    with contextlib.suppress(NoLocks, OSError), open(folder / LOCK, "w") as file:
        if lock(file):
            end_server(folder)
            shutil.rmtree(folder, ignore_errors=True)


def end_server(folder: Path) -> None:
    """Kill the server of a host's folder with all that it started."""
    try:
        noted = json.loads((folder / PID_FILE).read_text())
        pid, started = int(noted["pid"]), noted["started"]
    except (OSError, ValueError, LookupError, TypeError):
        return
    now = start_time(pid)
    if started is None or now not in (None, started):  # the number is another process's by now
        return
    for member in _session(pid):
        with contextlib.suppress(OSError):
            os.kill(member, signal.SIGKILL)


def _session(leader: int) -> list[int]:
    """Return the processes of a session. The kernel gives its number to nobody else while it has any."""
    members = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.getsid(int(entry.name)) == leader:
                members.append(int(entry.name))
    return members
