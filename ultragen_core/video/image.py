"""Reads one picture, as ComfyUI's Load Image does."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..printable import printable


def read_image(path: Path) -> Tensor:
    """Return an IMAGE (1, height, width, 3) in 0..1: EXIF rotation applied, alpha dropped, first frame only.

    Raises ValueError if Pillow cannot read the whole file.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                picture = ImageOps.exif_transpose(file)
                if picture.mode.startswith("I"):  # 16 bits: convert() would clip at 255
                    pixels = np.asarray(picture, dtype=np.float32)[..., None].repeat(3, axis=2) / 65535
                else:
                    pixels = np.asarray(picture.convert("RGB"), dtype=np.float32) / 255
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = printable(str(error)).rstrip(".")
        raise ValueError(
            f"{printable(path.name)} cannot be read as a picture: {reason}. Open it in an image editor and"
            " save it as PNG."
        ) from error
    return torch.from_numpy(pixels)[None]
