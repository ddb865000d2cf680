"""LPIPS and I3D against their reference implementations, through files in the published form."""

from __future__ import annotations

import re
from pathlib import Path

import lpips
import pytest
import torch
import torchvision
from helpers.backbones import seeded_i3d
from helpers.support import DATA, relative_error, seeded
from safetensors.torch import load_file

from ultragen_core.metrics.backbones import load_i3d, load_lpips
from ultragen_core.metrics.i3d import I3D
from ultragen_core.weights.files import WeightsError

PUBLISHED_HEADS = Path(lpips.__file__).parent / "weights" / "v0.1" / "alex.pth"


@pytest.fixture(scope="module")
def reference():
    """The lpips package with its trained heads on a random AlexNet."""
    torch.manual_seed(0)
    return lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()


@pytest.fixture
def alexnet(reference, tmp_path):
    """The same AlexNet as torchvision publishes it, with its classifier."""
    trunk = {key: value for key, value in reference.state_dict().items() if key.startswith("net.")}
    state = torchvision.models.alexnet().state_dict()
    state |= {re.sub(r"net\.slice\d", "features", key): value for key, value in trunk.items()}
    torch.save(state, tmp_path / "alexnet.pth")
    return tmp_path / "alexnet.pth"


@pytest.mark.parametrize("size", [(64, 64), (37, 90)])
def test_lpips_is_that_of_the_package(reference, alexnet, size):
    a, b = (seeded(2, 3, *size, seed=seed).tanh() for seed in (1, 2))
    expected = reference(a, b)
    assert expected.min() > 1e-3
    torch.testing.assert_close(load_lpips(alexnet, PUBLISHED_HEADS)(a, b), expected, rtol=1e-5, atol=0)


def test_i3d_gives_the_published_networks_features(tmp_path):
    """Golden: a transcript of github piergiaj/pytorch-i3d with the same weights; 9, 196 and 210 pad unevenly."""
    state = seeded_i3d({key: value.shape for key, value in I3D().state_dict().items()})
    torch.save(state, tmp_path / "i3d.pt")
    clips = torch.rand(1, 3, 9, 196, 210, generator=torch.Generator().manual_seed(1)) * 2 - 1
    features = load_i3d(tmp_path / "i3d.pt")(clips)
    assert relative_error(features, load_file(DATA / "i3d_io.safetensors")["features"]) < 1e-5


def test_a_wrong_file_is_named_with_the_right_one(alexnet, tmp_path):
    with pytest.raises(WeightsError, match=r"must hold lin0\.model\.1\.weight .* missing.*alex\.pth from github"):
        load_lpips(alexnet, alexnet)
    vgg = tmp_path / "vgg.pth"
    torch.save({"lin0.model.1.weight": torch.zeros(1, 64, 1, 1), "features.0.weight": torch.zeros(64, 3, 3, 3)}, vgg)
    with pytest.raises(WeightsError, match=r"features\.0\.weight of shape \(64, 3, 11, 11\), got \(64, 3, 3, 3\)"):
        load_lpips(vgg, PUBLISHED_HEADS)
    with pytest.raises(WeightsError, match=r"rgb_imagenet\.pt from github\.com/piergiaj"):
        load_i3d(PUBLISHED_HEADS)
