"""What a person sees in the terminal while jobs run."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable

from tools.cluster.drive import Driver
from tools.cluster.pack import printable
from tools.console import say

LIVE, LOGGED = 0.5, 30.0  # seconds between two pictures: on a terminal, in a log file
MOST_HOSTS = 12  # lines
PROMPT_WIDTH = 48


class Display:
    """Prints failures and lost hosts once, and below them the state of all jobs, which a terminal rewrites in place."""

    def __init__(self, before: int, step_of: Callable[[str], str], starting: Callable[[], int]):
        """before: jobs that were done in earlier runs. step_of: tells what a busy host does."""
        self.before, self.step_of, self.starting = before, step_of, starting
        self.live = sys.stdout.isatty()
        self.height = self.said_failures = self.said_lost = 0
        self._next = 0.0

    def __call__(self, driver: Driver) -> None:
        self._say_news(driver)
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + (LIVE if self.live else LOGGED)
            self.show(driver)

    def show(self, driver: Driver) -> None:
        lines = self.lines(driver)
        if self.live:
            self.erase()
            width = shutil.get_terminal_size().columns - 1
            lines = [line[:width] for line in lines]
            self.height = len(lines)
        say("\n".join(lines))

    def erase(self) -> None:
        if self.height:
            sys.stdout.write(f"\x1b[{self.height}A\x1b[J")
            self.height = 0

    def say(self, text: str) -> None:
        self.erase()
        say(text)

    def _say_news(self, driver: Driver) -> None:
        for job, reason in driver.failures[self.said_failures :]:
            self.say(f"FAILED  {job.name}: {printable(reason)}")
        for lost in driver.lost_hosts[self.said_lost :]:
            self.say(f"LOST    host {lost.host}: {printable(lost.reason)}")
        self.said_failures, self.said_lost = len(driver.failures), len(driver.lost_hosts)

    def lines(self, driver: Driver) -> list[str]:
        """Return the picture: one line for all jobs, and one for each busy host."""
        now, running = driver.clock(), driver.running
        waiting = len(driver.waiting)
        done = self.before + len(driver.seconds)
        total = done + len(driver.failures) + len(running) + waiting
        parts = [f"{done} of {total} done", f"{len(running)} running", f"{waiting} waiting"]
        parts += [f"{len(driver.failures)} failed"] if driver.failures else []
        parts += [f"{self.starting()} host{'s' * (self.starting() > 1)} starting"] if self.starting() else []
        left = seconds_left(driver)
        parts += ["no machine is there now"] if not driver.present and not self.starting() else []
        parts += [f"about {duration(left)} left"] if left else []
        lines = [", ".join(parts)]
        for host, attempts in list(running.items())[:MOST_HOSTS]:
            job = attempts.job
            step, prompt = self.step_of(host), printable(job.prompt, PROMPT_WIDTH)
            lines.append(f"  {host:20} {step:24} {duration(now - attempts.started):>8}  {job.number:05} {prompt}")
        if len(running) > MOST_HOSTS:
            lines.append(f"  and {len(running) - MOST_HOSTS} more hosts")
        return lines


def seconds_left(driver: Driver) -> float | None:
    """Estimate the time until all jobs are done from the mean of those that are. None before the first is."""
    if not driver.seconds or not driver.present:
        return None
    mean = sum(driver.seconds) / len(driver.seconds)
    now = driver.clock()
    under_way = sum(max(mean - (now - attempts.started), 0) for attempts in driver.running.values())
    return (under_way + mean * len(driver.waiting)) / len(driver.present)


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
