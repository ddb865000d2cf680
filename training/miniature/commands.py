"""The miniature's commands of `python3 -m training`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from tools.console import say

from . import search_variants
from .ablation import Ablation
from .make import MAIN, PARTS, Making, Miniature
from .scoring import Scoring
from .search import Search
from .study import FULL, ON_DEMAND, VARIANTS, Study
from .table import table


def add_to(commands: argparse._SubParsersAction) -> None:
    parser = _add(commands, "miniature", miniature)
    parser.add_argument(
        "--parts", nargs="+", default=MAIN, choices=PARTS, help="what to make; t3 and i2v start from the dense model"
    )
    parser.add_argument(
        "--files", type=int, nargs="+", help="with --parts latents: files to encode, from 0; processes may share them"
    )
    _add_shared(_add(commands, "ablation", ablation), list(VARIANTS), ON_DEMAND)
    parser = _add(commands, "search", search)
    _add_shared(parser, list(search_variants.VARIANTS))
    parser.add_argument(
        "--round", type=int, choices=(1, 2), help="only the variants of this round; 2: also what they are compared with"
    )
    parser.add_argument(
        "--share", type=int, nargs=2, default=(0, 1), metavar=("I", "N"), help="only every N-th variant, from number I"
    )
    parser.add_argument("--start-image", action="store_true", help="on the image-to-video model, from start images")
    parser.add_argument("--videos", type=int, default=Scoring.videos, help="videos of each variant and seed")


def _add(commands: argparse._SubParsersAction, name: str, run: Callable) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=run.__doc__, description=run.__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the results; existing results are kept")
    parser.add_argument("--minutes", type=float, default=10_000, help="stop after so many minutes, to be continued")
    parser.set_defaults(run=run)
    return parser


def _add_shared(parser: argparse.ArgumentParser, variants: list[str], more: Sequence[str] = ()) -> None:
    """Add options for processes that share a comparison."""
    parser.add_argument("--seeds", type=int, nargs="+", default=Scoring.seeds, help="seeds to run")
    choices = [*variants, *more]
    parser.add_argument("--variants", nargs="+", default=variants, choices=choices, metavar="NAME", help="which to run")


def _making(options: argparse.Namespace) -> Making:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Making(Miniature(), options.out, device, options.minutes, getattr(options, "files", None))


def miniature(options: argparse.Namespace) -> None:
    """Train the demo's small VAE and models on painted landscapes, or continue."""
    _making(options).run(options.parts)


def ablation(options: argparse.Namespace) -> None:
    """Run the ablation of UltraGen's parts on the finished miniature, or continue."""
    study = Ablation(Study(tuple(options.seeds), variants=tuple(options.variants)), _making(options))
    if study.run() and set(options.variants) == set(VARIANTS):
        study.draw(options.out / "ablation.jpg")
    if results := study.results():
        say(table(results, [*VARIANTS, *ON_DEMAND], FULL))


def search(options: argparse.Namespace) -> None:
    """Compare settings for UltraGen's attention without trained weights, on the miniature's dense model."""
    scoring = Scoring(tuple(options.seeds), options.videos)
    first, step = options.share
    chosen = [
        name for name in options.variants if options.round is None or name in search_variants.ROUNDS[options.round]
    ]
    variants = {name: search_variants.VARIANTS[name] for name in chosen[first::step]}
    searched = Search(_making(options), scoring, variants, options.start_image)
    if searched.run():
        searched.draw(searched.folder / f"seed-{options.seeds[0]}.jpg")
    if results := searched.results():
        say(table(results, list(search_variants.VARIANTS), search_variants.DENSE))
