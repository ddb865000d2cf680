"""A copy of ComfyUI's VAE object whose decode and encode run in exact tiles, for any node that takes a VAE."""

from __future__ import annotations

import copy
import functools
import inspect
import logging
from collections.abc import Callable

from .exact import check_gpus, check_tile, decode, encode
from .support import fallback_reason

# They trade accuracy for memory in ComfyUI's tiles; exact tiles do not need them.
IGNORED_PARAMETERS = {"vae_options", "tile_x", "tile_y", "tile_t", "overlap", "overlap_t"}

log = logging.getLogger(__name__)


class ExactMethods:
    """The methods that `exact_vae` puts before those of a VAE's class, each with ComfyUI's parameters.

    IGNORED_PARAMETERS have no effect. A call that sets another one runs ComfyUI's method, which knows its meaning.
    Everything is looked up on the VAE itself, so that copies with another model or device use their own.
    """

    exact_tile: int | None = None
    exact_gpus: int = 1

    def decode(self, samples_in, *args, **kwargs):
        if _needs_comfyui(self, super().decode, args, kwargs):
            return super().decode(samples_in, *args, **kwargs)
        return decode(self, samples_in, self.exact_tile, self.exact_gpus)

    def decode_tiled(self, samples, *args, **kwargs):
        if _needs_comfyui(self, super().decode_tiled, args, kwargs):
            return super().decode_tiled(samples, *args, **kwargs)
        return decode(self, samples, self.exact_tile, self.exact_gpus)

    def encode(self, pixel_samples, *args, **kwargs):
        if _needs_comfyui(self, super().encode, args, kwargs):
            return super().encode(pixel_samples, *args, **kwargs)
        return encode(self, pixel_samples, self.exact_tile)

    def encode_tiled(self, pixel_samples, *args, **kwargs):
        if _needs_comfyui(self, super().encode_tiled, args, kwargs):
            return super().encode_tiled(pixel_samples, *args, **kwargs)
        return encode(self, pixel_samples, self.exact_tile)


def _needs_comfyui(vae, method: Callable, args: tuple, kwargs: dict) -> bool:
    """Whether ComfyUI's method(samples, *args, **kwargs) has to run; logs the parameters that are the reason.

    May run the trial of `fallback_reason`. Raises TypeError for parameters that the method does not have.
    """
    _, *more = inspect.signature(method).bind(None, *args, **kwargs).arguments.items()
    unknown = [name for name, value in more if value is not None and name not in IGNORED_PARAMETERS]
    if unknown:
        which = " and ".join(unknown) + (" is" if len(unknown) == 1 else " are")
        log.warning("UltraGen VAE: running ComfyUI's own %s, because %s set.", method.__name__, which)
    return bool(unknown or fallback_reason(vae))


ExactMethods.exact_methods = ExactMethods  # tells replaced_method that they are not another pack's


def exact_vae(vae, tile: int | None = None, gpus: int = 1):
    """A copy of the VAE whose decode, decode_tiled, encode and encode_tiled run in exact tiles; same patcher.

    tile: side in pixels; None takes the largest that fits into free device memory. gpus: how many decode, 0 for all;
    one encodes. A VAE with a fallback reason is returned unchanged. Raises ValueError for a tile below SMALLEST_TILE
    and for `gpus` below 0.
    """
    check_tile(tile)
    check_gpus(gpus)
    if fallback_reason(vae):
        return vae
    exact = copy.copy(vae)
    exact.__class__ = _exact_class(type(vae))
    exact.exact_tile, exact.exact_gpus = tile, gpus
    return exact


@functools.cache
def _exact_class(base: type) -> type:
    return base if issubclass(base, ExactMethods) else type(f"Exact{base.__name__}", (ExactMethods, base), {})
