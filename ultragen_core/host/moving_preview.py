"""Shows the video moving while it is sampled.

After each step ComfyUI shows the first frame as a still picture. A loop then takes its place: ComfyUI's previewer
colours every latent frame, and ComfyUI's progress bar sends the result, an animated WebP. Its size and number of frames
are bounded, and a new loop is made only as often as fits into SHARE of the sampling time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO

import comfy.utils
import latent_preview
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from PIL.WebPImagePlugin import WebPImageFile
from torch import Tensor

from .server import prompt_server

SHARE = 0.01  # of the sampling time that loops may take
SIDE = 384  # pixels
FRAMES = 24
FRAMES_PER_SECOND = 8  # twice Wan's pace: one latent frame is 4 of its 16 frames per second
TINY_DECODER_SCALE = 8  # pixels of ComfyUI's tiny decoders per latent pixel
COLOURS_SIDE = 128  # latent pixels; the picture is enlarged

Callback = Callable[[int, Tensor, Tensor, int], None]

log = logging.getLogger(__name__)
_declined: set[str] = set()  # ids of clients


def decline(client: str, declined: bool) -> None:
    """Send no loops to a client (`declined`), or send them again. It still gets ComfyUI's still pictures."""
    (_declined.add if declined else _declined.discard)(client)


class Loop(WebPImageFile):
    """A picture that saves itself as the whole animation, in whatever format ComfyUI asks for.

    ComfyUI sends previews as JPEG or PNG; browsers look at the content, not at the declared type.
    """

    def __init__(self, webp: bytes):
        super().__init__(BytesIO(webp))
        self._webp = webp

    def save(self, fp, *_, **__) -> None:
        fp.write(self._webp)


def outer_sample(
    executor,
    noise: Tensor,
    latent_image: Tensor,
    sampler,
    sigmas: Tensor,
    denoise_mask: Tensor | None = None,
    callback: Callback | None = None,
    *args,
    **kwargs,
):
    """Wraps a whole sampling run, with the parameters of CFGGuider.outer_sample, to show loops after each step."""
    if callback is not None and comfy.utils.PROGRESS_BAR_HOOK is not None:
        previewer = _previewer(executor.class_obj.model_patcher)
        # Another pack's previewer may have its own way to show videos.
        if isinstance(previewer, latent_preview.Latent2RGBPreviewer | latent_preview.TAEHVPreviewerImpl):
            callback = MovingPreview(callback, previewer)
    return executor(noise, latent_image, sampler, sigmas, denoise_mask, callback, *args, **kwargs)


def _previewer(patcher) -> latent_preview.LatentPreviewer | None:
    """ComfyUI's previewer for a model; None where previews are off, or where it cannot be made."""
    try:
        return latent_preview.get_previewer(patcher.load_device, patcher.model.latent_format)
    except Exception as error:  # a tiny decoder's file may be damaged
        _give_up(error)
        return None


def _give_up(error: Exception) -> None:
    """Log why there are no loops: hours of sampling must not end for a picture."""
    log.warning("UltraGen: no moving preview in this run, because %s: %s", type(error).__name__, error)


@dataclass
class MovingPreview:
    """A sampling callback that calls `callback` and then shows a loop in place of its still picture.

    The newest loop is shown after every step, so that the picture never stops. clock: returns seconds.
    """

    callback: Callback
    previewer: latent_preview.LatentPreviewer
    clock: Callable[[], float] = time.perf_counter
    loop: Loop | None = None
    next_at: float = 0.0
    failed: bool = False
    bar: comfy.utils.ProgressBar = field(default_factory=lambda: comfy.utils.ProgressBar(1))

    def __call__(self, step: int, denoised: Tensor, x: Tensor, total_steps: int) -> None:
        self.callback(step, denoised, x, total_steps)
        if self.failed or getattr(prompt_server(), "client_id", None) in _declined:
            return
        if self.clock() >= self.next_at:
            self._renew(denoised)
        if self.loop is not None:
            self.bar.update_absolute(step + 1, total_steps, ("WEBP", self.loop, None))

    def _renew(self, denoised: Tensor) -> None:
        try:
            latent = bounded(denoised, self._side)
            if latent.device.type != "cpu":
                latent.flatten()[0].item()  # wait for the step itself, whose time is not the preview's
            start = self.clock()
            self.loop = encode(pictures(self.previewer, latent))
        except Exception as error:
            _give_up(error)
            self.loop, self.failed = None, True
        else:
            end = self.clock()
            self.next_at = end + (end - start) / SHARE

    @property
    def _side(self) -> int:
        tiny = isinstance(self.previewer, latent_preview.TAEHVPreviewerImpl)
        return SIDE // TINY_DECODER_SCALE if tiny else COLOURS_SIDE


def bounded(latent: Tensor, side: int) -> Tensor:
    """Return the first video of a latent (b, c, t, h, w) with at most FRAMES frames, and h and w at most `side`."""
    video = latent[0].movedim(1, 0)
    t, _, h, w = video.shape
    if t > FRAMES:
        video = video[torch.linspace(0, t - 1, FRAMES).round().long().to(video.device)]
    scale = min(1.0, side / max(h, w))
    if scale < 1:
        video = F.interpolate(video, (max(1, round(scale * h)), max(1, round(scale * w))), mode="area")
    return video.movedim(0, 1)[None]


def pictures(previewer: latent_preview.LatentPreviewer, latent: Tensor) -> list[Image.Image]:
    """Return a picture of every frame of a latent (1, c, t, h, w), as ComfyUI's previewer shows the first."""
    frames, height = latent.shape[2:4]
    if isinstance(previewer, latent_preview.TAEHVPreviewerImpl):
        decoded = previewer.taesd.decode(latent)[0]  # several for each latent frame
        chosen = torch.linspace(0, len(decoded) - 1, frames).round().long()
        return [latent_preview.preview_to_image(decoded[index], do_scale=False) for index in chosen]
    # Below each other they are one picture to the previewer, and one copy from the device.
    stacked = previewer.decode_latent_to_preview(latent.flatten(2, 3))
    return [stacked.crop((0, top, stacked.width, top + height)) for top in range(0, frames * height, height)]


def encode(frames: list[Image.Image]) -> Loop | None:
    """Return the frames as an endless loop of at most SIDE pixels; None for a single frame."""
    if len(frames) < 2:
        return None
    first, *others = (ImageOps.contain(frame, (SIDE, SIDE), Image.Resampling.BILINEAR) for frame in frames)
    file = BytesIO()
    # Whole frames (kmax=1), because web/preview.js takes them apart.
    options = {"duration": 1000 // FRAMES_PER_SECOND, "loop": 0, "quality": 75, "method": 0, "kmin": 0, "kmax": 1}
    first.save(file, "WEBP", save_all=True, append_images=others, **options)
    return Loop(file.getvalue())
