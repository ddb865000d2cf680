"""The miniature's commands of `python3 -m training`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

from tools.console import say

from .ablation import Ablation
from .make import Making, Miniature
from .study import FULL, VARIANTS, Study
from .table import table


def add_to(commands: argparse._SubParsersAction) -> None:
    _add(commands, "miniature", miniature)
    parser = _add(commands, "ablation", ablation)
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=Study.seeds, help="seeds to run; several processes may share them"
    )
    parser.add_argument("--variants", nargs="+", default=VARIANTS, choices=VARIANTS, help="variants to train and judge")


def _add(commands: argparse._SubParsersAction, name: str, run: Callable) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=run.__doc__, description=run.__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the results; existing results are kept")
    parser.add_argument("--minutes", type=float, default=10_000, help="stop after so many minutes, to be continued")
    parser.set_defaults(run=run)
    return parser


def _making(options: argparse.Namespace) -> Making:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Making(Miniature(), options.out, device, options.minutes)


def miniature(options: argparse.Namespace) -> None:
    """Train the demo's small VAE and models on painted landscapes, or continue."""
    _making(options).run()


def ablation(options: argparse.Namespace) -> None:
    """Run the ablation of UltraGen's parts on the finished miniature, or continue."""
    study = Ablation(Study(tuple(options.variants), seeds=tuple(options.seeds)), _making(options))
    if study.run() and set(options.variants) == set(VARIANTS):
        study.draw(options.out / "ablation.jpg")
    if results := study.results():
        say(table(results, VARIANTS, FULL))
