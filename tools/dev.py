#!/usr/bin/env python3
"""All developer commands: `python3 tools/dev.py COMMAND` (--help lists them). Needs Python 3.10 and nothing else."""

from __future__ import annotations

import os
import sys

if sys.version_info < (3, 10):  # noqa: UP036 - older Pythons get this far
    sys.exit(f"tools/dev.py needs Python 3.10 or newer; this is {sys.version.split()[0]}.")

import argparse
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

# The repository takes the place of tools/ on the path, where tools/server.py would hide ComfyUI's server.py.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from tools import comfyui, environment, workflow  # noqa: E402
from tools.console import Trouble, end_with  # noqa: E402

CLIENTS = ("demo", "serve")  # with --comfyui they only talk to a ComfyUI that brings its own Python


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        description="UltraGen for ComfyUI: demo, server, tests and templates. Every command sets up what it needs."
    )
    commands = top.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="make a video: the shipped workflow with a tiny model in a real ComfyUI")
    demo.add_argument("--prompt", help="what to paint, such as: a foggy lake at dusk, peaks, the sun on the left")
    compare = commands.add_parser("compare", help="draw docs/compare.jpg: one caption by three ways, with tiny models")
    compare.add_argument("--prompt", required=True, help="what to paint, in the words of the demo")
    compare.add_argument(
        "--dense", type=file, required=True, help="dense.safetensors of `python3 -m training miniature --out FOLDER`"
    )
    compare.add_argument("--out", type=picture, required=True, help="the picture, a .jpg or .png")
    for command in (demo, compare):
        command.add_argument("--width", type=int, help="in pixels (default: %(default)s)")
        command.add_argument("--height", type=int, help="in pixels (default: %(default)s)")
        command.add_argument("--frames", type=int, help="4n + 1 (default: %(default)s)")
        command.add_argument("--steps", type=int, help="of sampling (default: %(default)s)")
        command.add_argument("--seed", type=int, default=0, help="of the noise (default: %(default)s)")
        command.set_defaults(**workflow.SMALL)
    serve = commands.add_parser("serve", help="start ComfyUI with the pack and the tiny model for your browser")
    templates = commands.add_parser("templates", help="write workflows/: every template and its thumbnail")
    for command in (demo, compare, serve, templates):
        command.add_argument(
            "--comfyui",
            metavar="PATH",
            default=os.environ.get("COMFYUI_PATH"),
            help="use this ComfyUI instead of a downloaded one",
        )
        command.add_argument(
            "--python", metavar="PATH", help="the Python that runs it (default: its venv's, else this one)"
        )
        command.add_argument("--gpu", action="store_true", help="run on the GPU, and install PyTorch for it")
        command.add_argument("--port", type=int, help="default: a free one")
    for command in (demo, serve):
        command.add_argument(
            "--random", action="store_true", help="use an untrained model, which paints clouds of colour"
        )
    add_test(commands)
    return top


def file(name: str) -> Path:
    if not Path(name).is_file():
        raise argparse.ArgumentTypeError(f"{name} is not a file")
    return Path(name)


def picture(name: str) -> Path:
    path = Path(name)
    if path.suffix.lower() not in (".jpg", ".png"):
        raise argparse.ArgumentTypeError(f"{name} must end with .jpg or .png")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{path.parent} is not a folder")
    return path


def add_test(commands) -> None:
    test = commands.add_parser(
        "test",
        help="run all tests on ComfyUI 0.30.0, and those that depend on ComfyUI on 0.3.75 too; further arguments go to"
        " pytest",
    )
    test.add_argument("--tree", metavar="PATH", help="run on this ComfyUI alone, such as a newer one")
    test.add_argument(
        "--newest",
        action="store_true",
        help="run on one ComfyUI alone (0.30.0, or that of --tree), with the registry's newest frontend, comfy-kitchen"
        " and comfy-aimdo",
    )
    test.set_defaults(gpu=False, comfyui=None)


def enter(cache: Path, args: argparse.Namespace) -> None:
    """Continue in the environment that the command needs. It is created if it does not exist."""
    if args.comfyui and args.command in CLIENTS:
        python = environment.client_only(cache)
    elif tree := getattr(args, "tree", None):
        python = environment.with_tree(cache, comfyui.own_install(tree))
    else:
        python = environment.with_comfyui(cache, args.gpu, ray=args.command == "test")
    if Path(sys.prefix).resolve() == python.parent.parent.resolve():
        return
    arguments = sys.argv[1:]
    if args.comfyui and not args.python:  # the default is this Python, which changes now
        arguments += ["--python", str(comfyui.python_of(Path(args.comfyui)))]
    os.execv(python, [str(python), __file__, *arguments])


def main() -> int:
    args, rest = parser().parse_known_args()
    if rest and args.command != "test":
        parser().error(f"unknown arguments: {' '.join(rest)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers are stopped
    if vars(args).get("python") and not args.comfyui:
        raise Trouble("--python names the Python of your own ComfyUI. Name that in --comfyui.")
    if args.comfyui:
        args.comfyui = str(comfyui.own_install(args.comfyui))
        if args.python and not shutil.which(args.python):
            raise Trouble(f"{args.python} is not a program. Name the Python that your ComfyUI runs with in --python.")
    cache = environment.cache_folder()
    environment.keep_bytecode(cache)
    enter(cache, args)
    if args.command == "test":
        from tools import suite

        if args.tree or args.newest:
            tree = comfyui.own_install(args.tree) if args.tree else comfyui.tree_of(comfyui.NEWEST, cache)
            return suite.run_on_tree(cache, tree, rest, args.newest)
        return suite.run(cache, rest)
    return command(args.command)(cache, args)


def command(name: str) -> Callable[[Path, argparse.Namespace], int]:
    """Return what runs a command. Those in CLIENTS are imported without PyTorch, the others draw with the miniature."""
    from tools import demo

    if name in CLIENTS:
        return demo.run if name == "demo" else demo.serve
    from tools import compare
    from tools.templates import write as templates

    return compare.run if name == "compare" else templates.run


if __name__ == "__main__":
    end_with(main)
