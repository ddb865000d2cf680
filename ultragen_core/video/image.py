"""One picture of a file, as ComfyUI's Load Image reads it."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..printable import printable


def read_image(path: Path) -> Tensor:
    """(1, height, width, 3) in 0..1: turned as the camera says, the alpha dropped, of several frames the first.

    Raises ValueError where the file is no picture that Pillow reads whole.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                picture = ImageOps.exif_transpose(file)
                if picture.mode.startswith("I"):  # 16 bits: converting would cut all that is above 255
                    pixels = np.asarray(picture, dtype=np.float32)[..., None].repeat(3, axis=2) / 65535
                else:
                    pixels = np.asarray(picture.convert("RGB"), dtype=np.float32) / 255
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{printable(path.name)} cannot be read as a picture: {printable(str(error))}") from error
    return torch.from_numpy(pixels)[None]
