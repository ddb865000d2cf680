"""The driver on fake hosts: what is tried again where, and that each job ends exactly once."""

from __future__ import annotations

import random
from collections import deque

import pytest

from tools.cluster import ledger
from tools.cluster.drive import Done, Driver, Ended, Failed, Joined, Lost, Refused
from tools.cluster.ledger import Ledger, ResultFile, read_done, read_lines
from tools.cluster.simulation import FakeHosts, Rates, fake_jobs, simulate


class Script:
    """Hosts that do what the test says, in its order: `act(host, job)` returns the events that follow."""

    def __init__(self, hosts, act):
        self.act, self.began, self.waiting = act, [], deque(map(Joined, hosts))

    def begin(self, host, job):
        self.began.append((host, job.number))
        self.waiting.extend(self.act(host, job))

    def events(self):
        return [self.waiting.popleft()]


def drive(folder, jobs, hosts, **options):
    with Ledger(folder) as notes:
        driver = Driver(fake_jobs(jobs), hosts, notes, **options)
        driver.run()
    return driver


def done(host):
    return [Ended(host, Done(()))]


def test_each_idle_host_gets_one_job(tmp_path):
    hosts = Script("ab", lambda host, job: done(host))
    driver = drive(tmp_path, 5, hosts)
    assert sorted(number for _, number in hosts.began) == [1, 2, 3, 4, 5] and {host for host, _ in hosts.began} == {
        *"ab"
    }
    assert len(driver.seconds) == len(read_done(tmp_path)) == 5


def test_a_refused_job_is_not_tried_again(tmp_path):
    hosts = Script("ab", lambda host, job: [Ended(host, Refused("no such codec"))] if job.number == 2 else done(host))
    driver = drive(tmp_path, 3, hosts)
    assert [(job.number, reason) for job, reason in driver.failures] == [(2, "no such codec")]
    assert sorted(number for _, number in hosts.began) == [1, 2, 3]


def test_an_error_is_tried_once_more_on_another_host(tmp_path):
    hosts = Script("ab", lambda host, job: [Ended(host, Failed("out of memory"))] if job.number == 1 else done(host))
    driver = drive(tmp_path, 4, hosts)
    assert [host for host, number in hosts.began if number == 1] == ["a", "b"]
    assert [(job.number, reason) for job, reason in driver.failures] == [(1, "out of memory")]
    assert len(driver.seconds) == 3


def test_the_only_host_tries_an_error_again_itself(tmp_path):
    tries = []

    def act(host, job):
        tries.append(host)
        return [Ended(host, Failed("once"))] if len(tries) == 1 else done(host)

    assert not drive(tmp_path, 1, Script("a", act)).failures and tries == ["a", "a"]


def test_a_lost_host_puts_its_job_first_in_line(tmp_path):
    def act(host, job):
        return [Lost(host, "killed"), Joined("c")] if (host, job.number) == ("a", 1) else done(host)

    hosts = Script("ab", act)
    driver = drive(tmp_path, 5, hosts)
    assert [number for _, number in hosts.began][:3] == [1, 2, 1] and not driver.failures
    assert "a" not in [host for host, _ in hosts.began[1:]]


def test_a_replaced_host_gets_its_lost_job_only_if_there_is_no_other(tmp_path):
    """GPUs that kill every host must not take a job three times."""

    def act(host, job):
        if host.startswith("bad"):
            return [Lost(host, "fell off the bus"), Joined(host + "'", "bad"), *done("good")]
        return [] if job.number == 2 else done(host)  # 2 ends when a bad host has taken another job

    hosts = Script([], act)
    hosts.waiting.extend([Joined("bad", "bad"), Joined("good", "good")])
    driver = drive(tmp_path, 3, hosts)
    assert [number for host, number in hosts.began if host.startswith("bad")] == [1, 3] and not driver.failures


def test_a_job_that_loses_three_hosts_has_failed(tmp_path):
    def act(host, job):
        return [Lost(host, "killed"), Joined(host + "'")] if job.number == 1 else done(host)

    driver = drive(tmp_path, 3, Script("abc", act))
    ((job, reason),) = driver.failures
    assert job.number == 1 and reason == "Hosts that were lost while they ran this job: 3. The last: killed"
    assert len(driver.lost_hosts) == 3 and len(driver.seconds) == 2


def test_results_of_a_host_that_counts_as_lost_are_ignored(tmp_path):
    def act(host, job):
        return [Lost(host, "no answer"), Joined("b"), *done("a")] if host == "a" else done(host)

    hosts = Script("a", act)
    driver = drive(tmp_path, 1, hosts)
    assert hosts.began == [("a", 1), ("b", 1)] and len(driver.seconds) == 1


def test_every_event_is_in_the_ledger(tmp_path):
    ends = deque([Failed("oh"), Done((ResultFile("a.mp4", 3, "ff"),))])
    drive(tmp_path, 1, Script("a", lambda host, job: [Ended(host, ends.popleft())]))
    events = [(line["event"], line["host"]) for line in read_lines(tmp_path)]
    assert events == [(event, "a") for event in (ledger.HANDED_OUT, ledger.RETRIED, ledger.HANDED_OUT, ledger.DONE)]
    (job,) = fake_jobs(1)
    assert read_done(tmp_path)[job.id].files == (ResultFile("a.mp4", 3, "ff"),)


@pytest.mark.parametrize("seed", range(200))
def test_whatever_fails_each_job_ends_exactly_once(tmp_path, seed):
    chance = random.Random(seed)
    rates = Rates(*(chance.uniform(0, 0.4) for _ in range(3)))
    simulate(Ledger(tmp_path), FakeHosts(chance.randint(1, 6), rates, chance), fake_jobs(chance.randint(1, 30)))


def test_a_driver_that_is_killed_anywhere_repeats_nothing_that_is_done(tmp_path):
    class Killed(BaseException):
        pass

    class Mortal(FakeHosts):
        def events(self):
            if self.now and self.chance.random() < 0.1:
                raise Killed
            return super().events()

    jobs, chance, runs = fake_jobs(40), random.Random(1), 0
    begun = []
    while waiting := [job for job in jobs if job.id not in read_done(tmp_path)]:
        hosts = Mortal(3, Rates(0, 0.1, 0.1), chance)
        begin, runs = hosts.begin, runs + 1
        already = set(read_done(tmp_path))
        hosts.begin = lambda host, job, begin=begin: (begun.append(job.id), begin(host, job))
        try:
            with Ledger(tmp_path) as notes:
                Driver(waiting, hosts, notes, clock=lambda hosts=hosts: hosts.now).run()
        except Killed:
            pass
        assert not already & set(begun)
        begun.clear()
    assert runs > 3 and len(read_done(tmp_path)) == 40
