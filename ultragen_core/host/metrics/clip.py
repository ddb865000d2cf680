"""CLIP embeddings of frames and prompts, through ComfyUI's own loaders."""

from __future__ import annotations

from pathlib import Path

import comfy.clip_vision
import comfy.sd
from torch import Tensor

from ...metrics.backbones import CLIP_L
from ...weights.files import WeightsError, read_state_dict

_VISION = ("vision_model.", "visual_projection.")
_TEXT = ("text_model.", "text_projection.")


class Clip:
    """Both halves of one CLIP model: a ComfyUI CLIP_VISION and a ComfyUI CLIP."""

    def __init__(self, vision: comfy.clip_vision.ClipVisionModel, text: comfy.sd.CLIP):
        self._vision, self._text = vision, text

    def embed(self, frame: Tensor) -> Tensor:
        """Embed a frame, (3, height, width) in 0..1 -> (1, channels). CLIP sees the centre square at 224x224."""
        return self._vision.encode_image(frame.movedim(0, -1)[None])["image_embeds"]

    def embed_text(self, prompt: str) -> Tensor:
        """Embed a prompt -> (channels). CLIP uses the first 75 tokens."""
        _, pooled = self._text.encode_from_tokens(self._text.tokenize(prompt), return_pooled=True)
        return pooled[0]


def load_clip(path: Path) -> Clip:
    """Load the published ViT-L/14 from one file with both halves. Raises WeightsError."""
    state = read_state_dict(path)
    # ComfyUI accepts other CLIP models silently, and leaves missing tensors uninitialised.
    for key, shape in _shapes().items():
        held = tuple(state[key].shape) if key in state else None
        if held != shape:
            found = "but it is missing" if held is None else f"got {held}"
            raise WeightsError(f"{path.name} must hold {key} of shape {shape}, {found}. Put {CLIP_L.where}.")
    vision, text = ({key: value for key, value in state.items() if key.startswith(half)} for half in (_VISION, _TEXT))
    return Clip(
        comfy.clip_vision.load_clipvision_from_sd(vision),
        comfy.sd.load_text_encoder_state_dicts([text], clip_type=comfy.sd.CLIPType.STABLE_DIFFUSION),
    )


def _shapes() -> dict[str, tuple[int, ...]]:
    """Return the keys and shapes of the published ViT-L/14."""
    shapes: dict[str, tuple[int, ...]] = {
        "text_projection.weight": (768, 768),
        "text_model.embeddings.token_embedding.weight": (49408, 768),
        "text_model.embeddings.position_embedding.weight": (77, 768),
        "visual_projection.weight": (768, 1024),
        "vision_model.embeddings.class_embedding": (1024,),
        "vision_model.embeddings.patch_embedding.weight": (1024, 3, 14, 14),
        "vision_model.embeddings.position_embedding.weight": (257, 1024),
    }
    for half, width, depth, norms in (
        ("text_model", 768, 12, ["final_layer_norm"]),
        ("vision_model", 1024, 24, ["pre_layrnorm", "post_layernorm"]),  # sic
    ):
        layers = [f"encoder.layers.{index}" for index in range(depth)]
        squares = [f"{layer}.self_attn.{name}_proj" for layer in layers for name in ("q", "k", "v", "out")]
        sizes = dict.fromkeys(squares, (width, width))
        sizes |= {f"{layer}.mlp.fc1": (4 * width, width) for layer in layers}
        sizes |= {f"{layer}.mlp.fc2": (width, 4 * width) for layer in layers}
        sizes |= dict.fromkeys([*norms, *(f"{layer}.layer_norm{n}" for layer in layers for n in (1, 2))], (width,))
        shapes |= {f"{half}.{name}.weight": size for name, size in sizes.items()}
        shapes |= {f"{half}.{name}.bias": size[:1] for name, size in sizes.items()}
    return shapes
