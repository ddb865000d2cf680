"""The miniature's commands of `python3 -m training`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

from tools.console import say

from .ablation import FULL, VARIANTS, Ablation, Study
from .make import Making, Miniature
from .table import table


def add_to(commands: argparse._SubParsersAction) -> None:
    _add(commands, "miniature", miniature)
    parser = _add(commands, "ablation", ablation)
    parser.add_argument("--seeds", type=int, nargs="+", default=Study.seeds, help="several processes may share them")
    parser.add_argument("--variants", nargs="+", default=VARIANTS, choices=VARIANTS, help="these as well")


def _add(commands: argparse._SubParsersAction, name: str, run: Callable) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=run.__doc__, description=run.__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder; what is there already is done")
    parser.add_argument("--minutes", type=float, default=10_000, help="end in order after so many")
    parser.set_defaults(run=run)
    return parser


def _making(options: argparse.Namespace) -> Making:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Making(Miniature(), options.out, device, options.minutes)


def miniature(options: argparse.Namespace) -> None:
    """Train the small VAE and models of the demo on painted landscapes, or go on with it."""
    _making(options).run()


def ablation(options: argparse.Namespace) -> None:
    """Compare UltraGen's parts on the finished miniature, or go on with it."""
    study = Ablation(Study(tuple(options.variants), seeds=tuple(options.seeds)), _making(options))
    if study.run() and set(options.variants) == set(VARIANTS):
        study.draw(options.out / "ablation.jpg")
    if results := study.results():
        say(table(results, VARIANTS, FULL))
