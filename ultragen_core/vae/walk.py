"""Reads ComfyUI's Wan VAE modules into layers, in the order in which they run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from .layers import Attention, Conv, Downsample, Head, Layer, Residual, Upsample
from .wan22 import Fork, Join, Patchify, Unpatchify


class UnknownLayer(TypeError):
    """The VAE has a part that is not understood; nothing can be said about what its tiles need."""


def decoder_layers(vae: nn.Module) -> list[Layer]:
    """From latents to pixels."""
    _expect(vae, "WanVAE")
    decoder = vae.decoder
    layers = [Conv(_conv(vae.conv2)), Conv(_conv(decoder.conv1)), *_middle(decoder.middle)]
    layers += [*_blocks(decoder.upsamples, "up"), _head(decoder.head)]
    return layers if _pixels(vae) == 1 else [*layers, Unpatchify(_pixels(vae))]


def encoder_layers(vae: nn.Module) -> list[Layer]:
    """From pixels to the latents' mean and variance."""
    _expect(vae, "WanVAE")
    encoder = vae.encoder
    layers = [Conv(_conv(encoder.conv1)), *_blocks(encoder.downsamples, "down"), *_middle(encoder.middle)]
    layers += [_head(encoder.head), Conv(_conv(vae.conv1))]
    return layers if _pixels(vae) == 1 else [Patchify(_pixels(vae)), *layers]


def channels_in(layers: Sequence[Layer]) -> int:
    """Channels that the encoder or decoder takes."""
    folded = layers[0].n ** 2 if isinstance(layers[0], Patchify) else 1
    return layers[folded > 1].conv.in_channels // folded


def channels_out(layers: Sequence[Layer]) -> int:
    """Channels that the encoder or decoder makes."""
    folded = layers[-1].n ** 2 if isinstance(layers[-1], Unpatchify) else 1
    return layers[-2 if folded > 1 else -1].conv.out_channels // folded


def _pixels(vae: nn.Module) -> int:
    """Side of the block of pixels that one point of the outermost map stands for: Wan 2.2 folds 2 x 2 into channels."""
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
        yield from (Fork(key), *_blocks(module.upsamples, key), Join(key, duplicate, up=duplicate.factor_s))
    elif name == "Down_ResidualBlock":
        average = _expect(module.avg_shortcut, "AvgDown3D")
        yield from (Fork(key), *_blocks(module.downsamples, key))
        yield Join(key, lambda x, first: average(x), down=average.factor_s)
    else:
        raise UnknownLayer(f"A Wan VAE is made of residual and resample blocks around one attention, got a {name}.")


def _middle(modules: nn.Sequential) -> list[Layer]:
    """The one place where the attention over whole frames stands."""
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
    raise UnknownLayer(f"A Wan VAE doubles or halves its map, got a Resample of mode {module.mode!r}.")


def _parts(modules: nn.Sequential, names: list[str]) -> list[nn.Module]:
    found = [_name(module) for module in modules]
    if found != names:
        raise UnknownLayer(f"Expected {', '.join(names)}, got {', '.join(found)}.")
    return list(modules)


def _conv(module: nn.Module, stride: tuple[int, int, int] = (1, 1, 1)) -> nn.Module:
    _expect(module, "CausalConv3d")
    plain = tuple(module.dilation) == (1, 1, 1) and module.groups == 1 and tuple(module.stride) == stride
    if not plain or any(side % 2 == 0 for side in module.kernel_size):
        raise UnknownLayer(f"Expected a plain causal convolution of stride {stride} and odd kernel, got {module}.")
    return module


def _norm(module: nn.Module) -> nn.Module:
    _expect(module, "RMS_norm")
    if not module.channel_first:
        raise UnknownLayer("Expected a norm over the channel dimension, got one over the last.")
    return module


def _expect(module: nn.Module, name: str) -> nn.Module:
    if _name(module) != name:
        raise UnknownLayer(f"Expected a {name}, got a {_name(module)}.")
    return module


def _name(module: nn.Module) -> str:
    return type(module).__name__
