"""The decode benchmark on names of the CPU: rows for each number of GPUs, bits compared, phases that add up."""

from __future__ import annotations

import argparse

import comfy.model_management as mm
import pytest
import torch
from helpers.signatures import needs
from helpers.vae_models import toy_vae

from tools.bench import vae, vae_profile
from ultragen_core.host.compat import gpu_pool_class
from ultragen_core.host.speed import decode as decoding


def options(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    vae.add_parser(parser.add_subparsers())
    return parser.parse_args(["vae", "--cases", "112x72x5", "--methods", "64", *given])


@needs(gpu_pool_class() is not None, "a pool of GPU threads")
@torch.no_grad()
def test_a_row_for_each_number_of_gpus_with_its_bits(monkeypatch):
    devices = [torch.device("cpu"), torch.device("cpu", 1), torch.device("cpu", 2)]
    monkeypatch.setattr(mm, "get_all_torch_devices", lambda *given, **more: devices)
    made, decode_to_bytes = [], decoding.decode_to_bytes

    def wrong_on_three(model, z, tile, progress, gpus):
        frames = decode_to_bytes(model, z, tile, progress, gpus)
        frames[0, :2, 0, 0] += gpus == 3
        made.append(gpus)
        return frames

    monkeypatch.setattr(decoding, "decode_to_bytes", wrong_on_three)
    rows = vae.measure_case(toy_vae(width=4), "112x72x5", options("--gpus", "1", "2", "3", "--repeats", "2"))
    assert made == [1, 1, 2, 2, 3, 3] and [row.different for row in rows] == [None, 0, 2]
    for row in rows:
        assert len(row.phases) == 5 and all(seconds >= 0 for seconds in row.phases)
        assert sum(row.phases) == pytest.approx(row.peaks.seconds, rel=0.5)
    lines = vae.table(rows).splitlines()
    assert len({line.count("|") for line in lines}) == 1 and len(lines) == 2 + len(rows)
    assert f"{rows[0].peaks.seconds / rows[2].peaks.seconds:.2f}" in lines[-1]


def test_the_profile_names_convolutions_by_their_channels():
    name, flops = vae_profile.described("aten::cudnn_convolution", [[1, 96, 5, 12, 22], [48, 96, 3, 3, 3]])
    assert name == "convolution 96 to 48, 3x3x3" and flops == 2 * 3 * 10 * 20 * 48 * 96 * 27
    lines = vae_profile.profiled(lambda: torch.ones(64, 64) @ torch.ones(64, 64), torch.device("cpu")).splitlines()
    assert "aten::mm" in lines[3] + lines[4] and len({line.count("|") for line in lines[1:]}) == 1
