"""Become another program that ends with its parent: python tied.py PARENT PID_FILE PROGRAM [ARGUMENT ...]

The kernel kills it when the thread that started it ends (Linux), which survives exec. PID_FILE gets its process id and
start time, with which orphans.py ends it elsewhere. A program rather than Popen's preexec_fn, which may deadlock in a
process with threads.
"""

import ctypes
import json
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def start_time(pid: int) -> int | None:
    """Return when a process started, in ticks since boot; None if it has ended or the system does not tell."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return int(file.read().rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None


def main() -> None:
    parent, pid_file, command = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the line above
        sys.exit("The parent has ended.")
    with open(pid_file, "w", encoding="utf-8") as file:
        json.dump({"pid": os.getpid(), "started": start_time(os.getpid())}, file)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
