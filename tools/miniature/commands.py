"""The miniature's commands of tools/train.py."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from tools.console import say

from .ablation import DENSE, FINISHED, TRAINED, UNTRAINED, Ablation, Study
from .make import Making, Miniature
from .table import tables


def add_to(commands: argparse._SubParsersAction) -> None:
    for name, run in (("miniature", miniature), ("ablation", ablation)):
        parser = commands.add_parser(
            name, help=run.__doc__, description=run.__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        parser.add_argument("--out", type=Path, required=True, help="folder; what is there already is done")
        parser.add_argument("--minutes", type=float, default=10_000, help="end in order after so many")
        parser.set_defaults(run=run)


def _making(options: argparse.Namespace) -> Making:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Making(Miniature(), options.out, device, options.minutes)


def miniature(options: argparse.Namespace) -> None:
    """Train the small VAE and models of the demo on painted landscapes, or go on with it."""
    _making(options).run()


def ablation(options: argparse.Namespace) -> None:
    """Compare UltraGen's parts on the finished miniature, or go on with it."""
    study = Ablation(Study(), _making(options))
    if study.run():
        study.draw(options.out / "ablation.jpg")
    if results := study.results():
        say(tables(results, [DENSE, FINISHED, UNTRAINED, *TRAINED]))
