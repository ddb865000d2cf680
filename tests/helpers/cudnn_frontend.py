"""A stand-in for nvidia-cudnn-frontend, which needs a GPU: its graph of fp8 attention, computed in float32."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from ultragen_core.host.attention import fp8_kernel
from ultragen_core.host.attention.fp8_kernel import Fp8Kernel

FP8 = torch.float8_e4m3fn


class Description:
    """A tensor of a graph: what was set, by name."""

    def __init__(self, **attributes):
        self.__dict__.update(attributes)

    def __getattr__(self, name: str):
        if not name.startswith("set_"):
            raise AttributeError(name)

        def set_attribute(value):
            setattr(self, name.removeprefix("set_"), value)
            return self

        return set_attribute


class Graph:
    """cudnn.pygraph, as far as the pack uses it: one sdpa_fp8."""

    def __init__(self, frontend: CudnnFrontend):
        self.frontend, self.steps = frontend, []

    def tensor(self, **attributes) -> Description:
        return Description(**attributes)

    def sdpa_fp8(self, *, attn_scale: float, generate_stats: bool, **inputs) -> tuple:
        assert generate_stats is False
        self.attn_scale, self.inputs = attn_scale, inputs
        self.out = Description()
        return self.out, None, Description(), Description()

    def validate(self):
        assert self.out.output and self.out.data_type == "FP8_E4M3", "on Hopper the result is in 8 bits"
        for name in ("q", "k", "v"):
            assert self.inputs[name].data_type == "FP8_E4M3" and self.inputs[name].dim[3] <= 128
        self.steps.append("validate")

    def build_operation_graph(self):
        self.steps.append("build_operation_graph")

    def create_execution_plans(self, modes):
        self.steps.append("create_execution_plans")

    def check_support(self):
        if self.frontend.unsupported:
            raise RuntimeError(self.frontend.unsupported)
        self.steps.append("check_support")

    def build_plans(self):
        self.steps.append("build_plans")
        self.frontend.built.append((self.inputs["q"].dim, self.inputs["k"].dim))

    def get_workspace_size(self) -> int:
        return 16

    def execute(self, pack: dict, workspace: Tensor, handle) -> None:
        assert self.steps[-1] == "build_plans" and workspace.numel() == 16 and handle in self.frontend.streams
        self.frontend.freed.append(all(original.expired() for original in self.frontend.originals))
        given = {name: pack[described] for name, described in self.inputs.items()}

        def heads(name: str) -> Tensor:
            described = self.inputs[name]
            assert given[name].dtype == FP8
            return torch.as_strided(given[name], described.dim, described.stride).float()

        q, k, v = (heads(name) for name in ("q", "k", "v"))
        scores = q @ k.transpose(-1, -2) * (given["descale_q"] * given["descale_k"] * self.attn_scale)
        numerators = (scores - scores.amax(-1, keepdim=True)).exp()
        rounded = (numerators * given["scale_s"]).to(FP8).float() * given["descale_s"]
        out = rounded @ v * given["descale_v"] / numerators.sum(-1, keepdim=True) * given["scale_o"]
        torch.as_strided(pack[self.out], self.out.dim, self.out.stride).copy_(out.to(FP8))
        self.frontend.calls.append((q.shape, k.shape))


class CudnnFrontend(ModuleType):
    """built, calls: shapes (b, heads, tokens, head_dim) of q and k, of all plans and of all runs.

    streams: the last stream of each handle. originals: references that keep nothing alive; freed: for every run whether
    they were all gone. unsupported: why no plan can be made.
    """

    def __init__(self):
        super().__init__("cudnn")
        self.data_type = SimpleNamespace(FP8_E4M3="FP8_E4M3", FLOAT="FLOAT")
        self.heur_mode = SimpleNamespace(A="A", FALLBACK="FALLBACK")
        self.built: list[tuple] = []
        self.calls: list[tuple] = []
        self.streams: dict[str, int | None] = {}
        self.originals: list[StorageWeakRef] = []
        self.freed: list[bool] = []
        self.unsupported: str | None = None

    def create_handle(self) -> str:
        handle = f"handle {len(self.streams)}"
        self.streams[handle] = None
        return handle

    def set_stream(self, handle: str, stream: int) -> None:
        self.streams[handle] = stream

    def pygraph(self, *, handle, **types) -> Graph:
        return Graph(self)


@contextlib.contextmanager
def installed(monkeypatch) -> Iterator[CudnnFrontend]:
    """Inside, the package is there, new enough, on a device that can; kernels compute any number of keys."""
    package = CudnnFrontend()
    monkeypatch.setitem(sys.modules, "cudnn", package)
    monkeypatch.setattr(fp8_kernel, "version_of", lambda name: "1.32.0")
    monkeypatch.setattr(Fp8Kernel, "device_types", ("cpu",))
    monkeypatch.setattr(Fp8Kernel, "fewest_keys", 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=7))
    vars(fp8_kernel._of_thread).clear()
    yield package
    vars(fp8_kernel._of_thread).clear()
