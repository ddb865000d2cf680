"""The `run` command: jobs from a list, hosts on a cluster, results in a folder."""

from __future__ import annotations

import argparse
import os
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from tools import comfyui, demo, environment, workflow
from tools.cluster import sheet
from tools.cluster.display import Display
from tools.cluster.drive import Driver
from tools.cluster.host import Setup
from tools.cluster.jobs import Job, make_jobs, read_graph
from tools.cluster.ledger import DoneJob, Ledger, read_done
from tools.cluster.ray_cluster import connect
from tools.cluster.ray_hosts import RayHosts
from tools.cluster.results import Results, is_whole
from tools.console import Trouble, say
from tools.server import make_base

TINY = {"width": 320, "height": 176, "frames": 9, "steps": 12}
READERS = 4


def run(cache: Path, args: argparse.Namespace) -> int:
    """Return 0 if all jobs are done, 1 if some have failed."""
    graph = read_graph(args.workflow)
    graph = workflow.with_stand_ins(workflow.make_small(graph, **TINY, seed=0)) if args.tiny else graph
    filled, jobs = make_jobs(graph, args.prompts, args.set, say)
    setup = make_setup(cache, args)
    if args.dry_run:
        show_jobs(jobs, whole_jobs(args.out, jobs))
        say("Starting the servers to see what they have ...")
        connect(args.address)
        return show_hosts(RayHosts(setup, filled, Results(args.out), gpus_of(args), say))
    with Ledger(args.out) as ledger:
        done = whole_jobs(args.out, jobs)
        waiting = [job for job in jobs if job.id not in done]
        say(f"{len(jobs)} jobs, {len(done)} of them done.")
        failed = []
        if waiting:
            connect(args.address, args.dashboard)
            results = Results(args.out)
            results.clean()
            hosts = RayHosts(setup, filled, results, gpus_of(args), say)
            failed = drive(waiting, hosts, ledger, len(done))
        page = sheet.write(args.out, jobs, read_done(args.out), failed)
    say(f"{len(jobs) - len(failed)} of {len(jobs)} jobs are done, {len(failed)} have failed. Contact sheet: {page}")
    return 1 if failed else 0


def gpus_of(args: argparse.Namespace) -> float:
    return 0 if args.cpu or args.tiny else args.gpus_per_host


def drive(jobs: Sequence[Job], hosts: RayHosts, ledger: Ledger, before: int) -> list[tuple[Job, str]]:
    """Run jobs, and return those that failed. Ctrl-C and errors end the servers, too."""
    display = Display(before, hosts.step_of, hosts.starting)
    hosts.say = display.say
    driver = Driver(jobs, hosts, ledger, display)
    try:
        driver.run()
        display.show(driver)
    except KeyboardInterrupt:
        say(f"\nStopped. Jobs done in this run: {len(driver.seconds)}. Run the same command again to continue.")
        raise
    finally:
        driver.finish(hosts.close())
        hosts.results.clean()
    return driver.failures


def show_jobs(jobs: Sequence[Job], done: Collection[str]) -> None:
    """List all jobs. done: ids."""
    for job in jobs:
        state = "done" if job.id in done else "to do"
        say(f"{job.name}  {state}, seed {job.seed}{f', image {job.image.name}' if job.image else ''}")
    say(f"{len(jobs)} jobs, {sum(job.id in done for job in jobs)} of them done.")


def show_hosts(hosts: RayHosts) -> int:
    """Start every host, name its devices and what it lacks, and stop it. Returns 1 if none can run the workflow."""
    try:
        hosts.events()
        while hosts.starting():
            hosts.events()
        for actor in hosts.actors.values():
            say(f"{actor.name} is ready: {', '.join(actor.facts['devices'])}")
        return 0 if hosts.actors else 1
    finally:
        hosts.close()


def whole_jobs(folder: Path, jobs: Sequence[Job]) -> dict[str, DoneJob]:
    """Return the jobs whose results are complete and unchanged. Reads all of their files."""
    wanted = {job.id for job in jobs}
    done = [each for key, each in read_done(folder).items() if key in wanted]
    with ThreadPoolExecutor(READERS) as pool:
        whole = pool.map(lambda each: is_whole(each, folder), done)
        return {each.id: each for each, is_there in zip(done, whole, strict=True) if is_there}


def make_setup(cache: Path, args: argparse.Namespace) -> Setup:
    shared = str(args.out.resolve()) if args.shared else None
    threads = os.environ.get("OMP_NUM_THREADS")
    setup = Setup(args.comfyui, args.python, args.base_directory, args.cpu, shared, threads)
    if not args.tiny:
        return setup
    if args.address:
        raise Trouble("--tiny runs on this machine alone. Leave --address out and unset RAY_ADDRESS.")
    python = environment.with_comfyui(cache, gpu=False)
    tree, base = comfyui.tree_of(comfyui.NEWEST, cache), make_base(cache / "cluster" / "tiny", demo.DEMO_NODES)
    demo.make_tiny_models(python, tree, base, "--trained")
    return replace(setup, comfyui=str(tree), python=str(python), base=str(base), cpu=True)
