"""Reads ComfyUI's Wan VAE (2.1 and 2.2) as a list of layers, in the order in which they run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from .layers import Attention, Conv, Downsample, Head, Layer, Residual, Upsample
from .wan22 import AddShortcut, Patchify, SaveShortcut, Unpatchify


class UnsupportedLayer(TypeError):
    """The VAE has a module whose receptive field is not known here, so it cannot be tiled exactly."""


def decoder_layers(vae: nn.Module) -> list[Layer]:
    """The layers from latents (1, c, t, h, w) to pixels. `vae`: ComfyUI's WanVAE. Raises UnsupportedLayer."""
    _check_variant(vae)
    decoder = vae.decoder
    layers = [Conv(_conv(vae.conv2)), Conv(_conv(decoder.conv1)), *_middle(decoder.middle)]
    layers += [*_blocks(decoder.upsamples, "up"), _head(decoder.head)]
    return layers if _patch_size(vae) == 1 else [*layers, Unpatchify(_patch_size(vae))]


def encoder_layers(vae: nn.Module) -> list[Layer]:
    """The layers from pixels to mean and log variance of the latents. `vae`: ComfyUI's WanVAE.

    Raises UnsupportedLayer.
    """
    _check_variant(vae)
    encoder = vae.encoder
    layers = [Conv(_conv(encoder.conv1)), *_blocks(encoder.downsamples, "down"), *_middle(encoder.middle)]
    layers += [_head(encoder.head), Conv(_conv(vae.conv1))]
    return layers if _patch_size(vae) == 1 else [Patchify(_patch_size(vae)), *layers]


def channels_in(layers: Sequence[Layer]) -> int:
    """Channels of the first layer's input, before Wan 2.2's folding of pixels."""
    if isinstance(layers[0], Patchify):
        return layers[1].conv.in_channels // layers[0].n ** 2
    return layers[0].conv.in_channels


def channels_out(layers: Sequence[Layer]) -> int:
    """Channels of the last layer's output, after Wan 2.2's unfolding of pixels."""
    if isinstance(layers[-1], Unpatchify):
        return layers[-2].conv.out_channels // layers[-1].n ** 2
    return layers[-1].conv.out_channels


def _check_variant(vae: nn.Module) -> None:
    """Raise UnsupportedLayer for what newer versions of ComfyUI build from Wan's classes, such as VAEs for images."""
    _expect(vae, "WanVAE")
    patch, expected = getattr(vae, "patch_size", _patch_size(vae)), _patch_size(vae)
    frames = _conv(vae.decoder.conv1).kernel_size[0]
    if (patch, frames) != (expected, 3):
        raise UnsupportedLayer(
            f"Expected patches of {expected} pixels and convolutions over 3 frames, got {patch} and {frames}."
        )


def _patch_size(vae: nn.Module) -> int:
    """Side of the pixel block that is folded into channels: 2 in Wan 2.2, 1 in Wan 2.1."""
    return 2 if any(_name(module) == "Up_ResidualBlock" for module in vae.decoder.upsamples) else 1


def _blocks(modules: Sequence[nn.Module], key: str) -> Iterator[Layer]:
    for index, module in enumerate(modules):
        yield from _block(module, f"{key}{index}")


def _block(module: nn.Module, key: str) -> Iterator[Layer]:
    name = _name(module)
    if name == "ResidualBlock":
        yield _residual(module)
    elif name == "Resample":
        yield _resample(module)
    elif name == "Up_ResidualBlock" and module.avg_shortcut is None:
        yield from _blocks(module.upsamples, key)
    elif name == "Up_ResidualBlock":
        duplicate = _expect(module.avg_shortcut, "DupUp3D")
        yield from (SaveShortcut(key), *_blocks(module.upsamples, key))
        yield AddShortcut(key, duplicate, up=duplicate.factor_s)
    elif name == "Down_ResidualBlock":
        average = _expect(module.avg_shortcut, "AvgDown3D")
        yield from (SaveShortcut(key), *_blocks(module.downsamples, key))
        yield AddShortcut(key, lambda x, first: average(x), down=average.factor_s)
    else:
        raise UnsupportedLayer(f"A Wan VAE has residual and resample blocks around one attention, got a {name}.")


def _middle(modules: nn.Sequential) -> list[Layer]:
    """The middle block, with the decoder's or encoder's only attention."""
    before, attention, after = _parts(modules, ["ResidualBlock", "AttentionBlock", "ResidualBlock"])
    qkv, proj = _expect(attention.to_qkv, "Conv2d"), _expect(attention.proj, "Conv2d")
    return [_residual(before), Attention(_norm(attention.norm), qkv, proj), _residual(after)]


def _residual(module: nn.Module) -> Residual:
    names = ["RMS_norm", "SiLU", "CausalConv3d", "RMS_norm", "SiLU", "Dropout", "CausalConv3d"]
    norm1, _, conv1, norm2, _, _, conv2 = _parts(module.residual, names)
    shortcut = None if isinstance(module.shortcut, nn.Identity) else _conv(module.shortcut)
    return Residual(_norm(norm1), _conv(conv1), _norm(norm2), _conv(conv2), shortcut)


def _head(module: nn.Sequential) -> Head:
    norm, _, conv = _parts(module, ["RMS_norm", "SiLU", "CausalConv3d"])
    return Head(_norm(norm), _conv(conv))


def _resample(module: nn.Module) -> Layer:
    time_conv = _conv(module.time_conv, stride=(2, 1, 1)) if module.mode == "downsample3d" else None
    time_conv = _conv(module.time_conv) if module.mode == "upsample3d" else time_conv
    if module.mode in ("upsample2d", "upsample3d"):
        up, conv = _parts(module.resample, ["Upsample", "Conv2d"])
        if tuple(up.scale_factor) == (2.0, 2.0) and up.mode in ("nearest", "nearest-exact"):
            return Upsample(time_conv, conv)
    if module.mode in ("downsample2d", "downsample3d"):
        pad, conv = _parts(module.resample, ["ZeroPad2d", "Conv2d"])
        if tuple(pad.padding) == (0, 1, 0, 1) and tuple(conv.stride) == (2, 2) and tuple(conv.padding) == (0, 0):
            return Downsample(conv, time_conv)
    raise UnsupportedLayer(f"A Wan VAE doubles or halves rows and columns, got a Resample of mode {module.mode!r}.")


def _parts(modules: nn.Sequential, names: list[str]) -> list[nn.Module]:
    found = [_name(module) for module in modules]
    if found != names:
        raise UnsupportedLayer(f"Expected {', '.join(names)}, got {', '.join(found)}.")
    return list(modules)


def _conv(module: nn.Module, stride: tuple[int, int, int] = (1, 1, 1)) -> nn.Module:
    _expect(module, "CausalConv3d")
    plain = tuple(module.dilation) == (1, 1, 1) and module.groups == 1 and tuple(module.stride) == stride
    if not plain or any(side % 2 == 0 for side in module.kernel_size):
        raise UnsupportedLayer(f"Expected a plain causal convolution of stride {stride} and odd kernel, got {module}.")
    return module


def _norm(module: nn.Module) -> nn.Module:
    _expect(module, "RMS_norm")
    if not module.channel_first:
        raise UnsupportedLayer("Expected a norm over the channel dimension, got one over the last.")
    return module


def _expect(module: nn.Module, name: str) -> nn.Module:
    if _name(module) != name:
        raise UnsupportedLayer(f"Expected a {name}, got a {_name(module)}.")
    return module


def _name(module: nn.Module) -> str:
    return type(module).__name__
