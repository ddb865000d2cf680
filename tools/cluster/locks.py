"""Locks on files, which the system releases when their process ends."""

from __future__ import annotations


class NoLocks(Exception):
    """This system or this file system has no locks."""


def lock(file, wait: bool = False) -> bool:
    """Lock an open file until it is closed. Returns False where another process has it. Raises NoLocks."""
    try:
        import fcntl
    except ImportError:
        raise NoLocks("this system has no flock") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:  # some network file systems
        raise NoLocks(str(error)) from None
    return True
