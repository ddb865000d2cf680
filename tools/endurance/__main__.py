"""Endurance runs, which must lose nothing.

    python3 -m tools.endurance faults [--prompts 500]
    python3 -m tools.endurance kills [--kills 20]
    python3 -m tools.endurance together [--videos 50]

Run it with the Python of a ComfyUI environment (`tools/dev.py` makes one in its cache) and COMFYUI_PATH set.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from tools.console import say
from tools.demo import DEMO_NODES, make_tiny_models
from tools.endurance import faults, kills, together
from tools.server import Server, make_base


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python3 -m tools.endurance", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=int(time.time()))
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("faults").add_argument("--prompts", type=int, default=500)
    commands.add_parser("kills").add_argument("--kills", type=int, default=20)
    commands.add_parser("together").add_argument("--videos", type=int, default=50)
    args = parser.parse_args()
    tree = Path(os.environ["COMFYUI_PATH"])
    with tempfile.TemporaryDirectory(prefix="ultragen-endurance-") as folder:
        base = make_base(Path(folder), DEMO_NODES)
        make_tiny_models(Path(sys.executable), tree, base, "--random")

        def new_server(name: str = "server") -> Server:
            return Server(Path(sys.executable), tree, base, name=name)

        say(f"seed {args.seed}, ComfyUI {tree.name}")
        if args.command == "faults":
            measured = tuple(range(100, args.prompts + 1, 100))
            say(str(faults.run(new_server, args.prompts, args.seed, say, measured)))
        elif args.command == "kills":
            say(str(kills.run(new_server, args.kills, args.seed, say)))
        else:
            with new_server("one") as one, new_server("other") as other:
                together.run((one, other), args.videos, say)


if __name__ == "__main__":
    main()
