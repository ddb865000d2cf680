"""The commands of `python3 -m training`."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from pathlib import Path

from safetensors.torch import save_file

from tools.console import Trouble, say
from ultragen_core.sizes import VideoSize, round_up
from ultragen_core.storage.files import finished_file
from ultragen_core.weights.files import read_state_dict
from ultragen_core.weights.published import has_extras

from . import encoders
from .cache import Cache, CacheSettings, fill
from .loop import Keeping, Training
from .model import build, random_base
from .recipe import Recipe


def add_to(commands: argparse._SubParsersAction) -> None:
    def command(name: str, run) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name, help=run.__doc__, description=run.__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        made.set_defaults(run=run)
        return made

    _cache_options(command("cache", cache))
    _train_options(command("train", train))
    new = command("new", new_base)
    new.add_argument("--width", type=int, default=256, help="channels, a multiple of 128")
    new.add_argument("--blocks", type=int, default=8)
    new.add_argument("--ffn", type=int, default=512, help="channels of the feed-forward layers")
    new.add_argument("--seed", type=int, default=0)
    new.add_argument("--out", type=Path, required=True, help="file")


def _cache_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, help="folder with videos/ and captions.json")
    parser.add_argument("--vae", type=Path, required=True, help="Wan's VAE")
    parser.add_argument(
        "--text-encoder",
        required=True,
        help="UMT5-XXL file, or 'words': a random vector per word, for a model trained from scratch",
    )
    parser.add_argument("--width", type=int, default=1920)
    parser.add_argument("--height", type=int, default=1088)
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--stride", type=int, default=1, help="use every n-th frame of the videos")
    parser.add_argument("--out", type=Path, required=True, help="folder")


def _train_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, required=True, help="checkpoint of Wan text-to-video or UltraGen")
    parser.add_argument("--extras", type=Path, help="extras-only file to start from, if the checkpoint has no extras")
    parser.add_argument("--cache", type=Path, required=True, help="folder that the cache command wrote")
    parser.add_argument("--micro-batch", type=int, default=1, help="clips that a process computes at once")
    parser.add_argument("--keep-activations", action="store_true", help="no gradient checkpointing: faster, larger")
    parser.add_argument("--vae", type=Path, help="Wan's VAE, for previews")
    _fields(parser.add_argument_group("output", Keeping.__doc__), Keeping)
    _fields(parser.add_argument_group("recipe", Recipe.__doc__), Recipe)


def _fields(group, settings: type) -> None:
    """Add an option for every field of a settings dataclass."""
    types = typing.get_type_hints(settings)
    for field in dataclasses.fields(settings):
        accepted = {"type": types[field.name]}
        if typing.get_origin(types[field.name]) is tuple:
            accepted = {"nargs": "*", "choices": typing.get_args(typing.get_args(types[field.name])[0])}
        elif choices := typing.get_args(types[field.name]):
            accepted = {"choices": choices}
        elif types[field.name] is bool:
            accepted = {"action": "store_true"}
        name = f"--{field.name.replace('_', '-')}"
        group.add_argument(name, default=field.default, help=field.metadata["help"], **accepted)


def _settings(settings: type, options: argparse.Namespace):
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(settings)}
    return settings(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def cache(options: argparse.Namespace) -> None:
    """Encode videos and captions for training."""
    size = VideoSize(options.width, options.height, options.frames)
    vae = encoders.load_vae(options.vae)
    wanted = round_up(size, vae.spacial_compression_encode())
    if wanted != size:
        raise Trouble(
            f"Width, height and frames must be what Wan can encode, got {size}. The next possible size is {wanted}."
        )
    encode_text = encoders.text_encoder(options.text_encoder)
    settings = CacheSettings(size, options.stride, options.vae.name, Path(options.text_encoder).name)
    fill(options.data, Cache(options.out), settings, encoders.video_encoder(vae), encode_text)


def train(options: argparse.Namespace) -> None:
    """Train, or continue the run in --out."""
    recipe, keeping = _settings(Recipe, options), _settings(Keeping, options)
    if keeping.preview_every and options.vae is None:
        raise Trouble(
            "--preview-every needs a VAE to decode previews. Name Wan's VAE in --vae, or set --preview-every 0."
        )
    state = read_state_dict(options.model)
    if options.extras:
        added = read_state_dict(options.extras)
        state |= {key: tensor for key, tensor in added.items() if has_extras({key: tensor})}
    model = build(state, options.model.name, recipe, recomputed=not options.keep_activations)
    vae = encoders.load_vae(options.vae) if keeping.preview_every else None
    Training(recipe, keeping, model, Cache(options.cache), options.micro_batch, vae).run()


def new_base(options: argparse.Namespace) -> None:
    """Write a small random Wan 2.1 model, to train from scratch with --rule dense."""
    state = random_base(options.width, options.blocks, options.ffn, options.seed)
    with finished_file(options.out) as part:
        save_file(state, part)
    say(f"{options.out}: {sum(tensor.numel() for tensor in state.values()) / 1e6:.1f} M parameters")
