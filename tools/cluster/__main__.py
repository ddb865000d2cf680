"""Many videos over many machines. Needs Python 3.10 and nothing else: every command sets up what it needs.

    python3 -m tools.cluster run --workflow docs/headless/ultragen_t2v_1080p.json --prompts prompts.csv --out videos
    python3 -m tools.cluster ray start --head          (and what else Ray's command line has)
    python3 -m tools.cluster simulate                  (the driver alone, on fake hosts)

The repository's docs/cluster.md explains them.
"""

from __future__ import annotations

import os
import sys

if sys.version_info < (3, 10):  # noqa: UP036 - older Pythons get this far
    sys.exit(f"tools.cluster needs Python 3.10 or newer; this is {sys.version.split()[0]}.")

import argparse
import contextlib
import signal
from pathlib import Path

from tools import comfyui, environment
from tools.console import Trouble, end_with

ROOT = Path(__file__).resolve().parents[2]


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python3 -m tools.cluster", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = top.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="make one video per line of a prompt list, on all machines of a Ray cluster")
    run.add_argument("--workflow", type=Path, required=True, help="in API format: Workflow > Export (API)")
    run.add_argument(
        "--prompts", type=Path, required=True,
        help=".txt, .csv, .tsv, .json or .jsonl, as UltraGen Prompts reads it; start images are files in its folder",
    )  # fmt: skip
    run.add_argument("--out", type=Path, required=True, help="folder of the results; run again to continue")
    run.add_argument(
        "--set", action="append", default=[], metavar="NODE.INPUT=COLUMN",
        help="the input that gets prompt, negative, seed or image, where the sampler's links do not tell",
    )  # fmt: skip
    run.add_argument("--address", default=os.environ.get("RAY_ADDRESS"), help=address_help())
    run.add_argument("--gpus-per-host", type=gpus, default=1, metavar="N", help="GPUs of each ComfyUI (default: 1)")
    run.add_argument("--cpu", action="store_true", help="run one ComfyUI on each machine's CPU")
    run.add_argument("--comfyui", metavar="PATH", default=os.environ.get("COMFYUI_PATH"), help=comfyui_help())
    run.add_argument("--python", metavar="PATH", help="the Python that runs it (default: its venv's, else this one)")
    run.add_argument("--base-directory", metavar="PATH", help="its models and custom nodes, if not in its own folder")
    run.add_argument("--shared", action="store_true", help="every machine sees --out under the same path")
    run.add_argument("--dashboard", action="store_true", help="start Ray's dashboard, if Ray is started here")
    run.add_argument(
        "--dry-run", action="store_true",
        help="list the jobs; start the servers, show their GPUs and the model files that they lack, and stop",
    )  # fmt: skip
    run.add_argument(
        "--tiny", action="store_true", help="try it: small videos of a tiny model that needs no GPU and no download"
    )
    commands.add_parser("ray", add_help=False, help="Ray's own command line, in the right environment")
    simulate = commands.add_parser("simulate", help="run the driver on fake hosts that fail at random")
    simulate.add_argument("--hosts", type=int, default=1000)
    simulate.add_argument("--jobs", type=int, default=100_000)
    simulate.add_argument("--seed", type=int, default=0)
    simulate.add_argument("--actors", type=int, default=0, help="instead: jobs on this many real, empty Ray actors")
    return top


def gpus(text: str) -> float:
    """Read a number of GPUs that Ray can give to a host."""
    with contextlib.suppress(ValueError):
        number = float(text)
        if 0 < number < 1 or (number >= 1 and number.is_integer()):
            return number
    raise argparse.ArgumentTypeError(
        f"must be a whole number of GPUs, or a share of one GPU, such as 0.5, got {text}. To use no GPU, give --cpu"
    )


def address_help() -> str:
    return "of a Ray cluster (default: RAY_ADDRESS, or a Ray of its own on this machine)"


def comfyui_help() -> str:
    return "its folder, the same on every machine (default: COMFYUI_PATH, or the one that this pack is installed in)"


def enter(cache: Path, args: argparse.Namespace) -> None:
    """Continue in the environment of Ray. It is created if it does not exist."""
    python = environment.with_ray(cache, getattr(args, "dashboard", False))
    # Ray starts processes of its own, which import tools.cluster, too.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    if args.command == "ray":
        os.execv(python.parent / "ray", ["ray", *sys.argv[2:]])
    if Path(sys.prefix).resolve() == python.parent.parent.resolve():
        return
    arguments = sys.argv[1:]
    if args.command == "run" and not args.tiny and not args.python:  # the default may be this Python, which changes now
        arguments += ["--python", str(comfyui.python_of(Path(args.comfyui)))]
    os.execv(python, [str(python), "-m", "tools.cluster", *arguments])


def find_comfyui(args: argparse.Namespace) -> str | None:
    """Return ComfyUI's folder; None with --tiny, which brings its own. Raises Trouble."""
    around = ROOT.parent.parent
    if args.tiny:
        return None
    if not args.comfyui and not (around / "main.py").is_file():
        raise Trouble(
            "No ComfyUI was found around this pack. Name its folder in --comfyui, or try a tiny model with --tiny."
        )
    return str(comfyui.own_install(args.comfyui or around))


def main() -> int:
    args, rest = parser().parse_known_args()
    if rest and args.command != "ray":
        parser().error(f"unknown arguments: {' '.join(rest)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers are stopped
    if args.command == "run":
        args.comfyui = find_comfyui(args)
    cache = environment.cache_folder()
    enter(cache, args)
    if args.command == "simulate":
        from tools.cluster import simulation

        return simulation.run(args)
    from tools.cluster import run

    return run.run(cache, args)


if __name__ == "__main__":
    end_with(main)
