"""cuDNN's fp8 attention, through NVIDIA's package nvidia-cudnn-frontend, which users install themselves."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from ...ops import dispatch
from ...ops.quantize import Quantized, dequantize, quantize
from ..memory import is_out_of_memory
from .kernel import INSTEAD, describe_device, import_package, join_heads, version_of

PACKAGE = "nvidia-cudnn-frontend"
OLDEST_FRONTEND = (1, 14)
# Constant factors. The softmax's numerators, at most 1, are scaled to 256, so that small ones keep their mantissa.
FACTORS = {"descale_v": 1.0, "scale_s": 256.0, "descale_s": 1 / 256, "scale_o": 1.0}

PROBE, PROBE_HEADS = torch.Size((2, 3000, 1536)), 12  # shape of queries and keys, which ran on an H100 and an H200

_of_thread = threading.local()  # cuDNN's handles, and the plans that are made with them, belong to one thread


class Fp8Kernel:
    """cuDNN's fp8 attention, forward alone, on Hopper and on Blackwell's data-centre GPUs.

    q, k, v, the softmax's numerators and, on Hopper, the result are e4m3, with one scale for each. Keys are quantised
    without their mean over the tokens, which cancels in the softmax; values without theirs, which is added to the
    result, because the weights of the softmax sum to 1.
    """

    name = "cuDNN fp8"
    max_head_dim = 128
    fewest_keys = 4096  # below, quantising takes longer than is saved
    held_maps = 1  # keys and values in 8 bits

    device_types = ("cuda",)
    capabilities = (9, 10)  # major numbers. cuDNN has no such kernel for the RTX 50 series (12.0).

    def __init__(self):
        """Import the package. Raises ValueError where it is missing or too old."""
        self._cudnn = import_package("cudnn", _needs_package)
        if not hasattr(self._cudnn, "pygraph") or _numbers(version_of(PACKAGE)) < OLDEST_FRONTEND:
            raise _needs_package(f"{version_of(PACKAGE)} is installed")

    def require_device(self, device: torch.device) -> None:
        if device.type not in self.device_types or torch.version.hip:
            raise _needs_gpu(f"this model runs on {'an AMD GPU' if torch.version.hip else device.type}")
        if torch.cuda.get_device_capability(device)[0] not in self.capabilities:
            raise _needs_gpu(f"got {describe_device(device)}")
        try:
            self._plan(device, PROBE, PROBE, PROBE_HEADS)
        except Exception as error:  # cuDNN's own, which may be too old; it would come in the first evaluation
            if is_out_of_memory(error):
                raise
            cudnn = f"cuDNN {torch.backends.cudnn.version()} has no kernel for it"
            raise _needs_gpu(f"got {describe_device(device)}, and {cudnn} ({error})") from error

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.attention_([q, k, v])

    @torch.compiler.disable
    def attention_(self, operands: list[Tensor]) -> Tensor:
        dtype, heads = operands[0].dtype, operands[0].shape[1]
        triton = dispatch.triton_for(operands[0], dispatch.FP8_KERNEL_MODULES)
        quantized = []
        for centred in (False, True, True):
            quantized.append(quantize(join_heads(operands.pop(0)).contiguous(), centred, triton))
        out = self._attend(*quantized, heads)
        return dequantize(out, dtype, triton).unflatten(2, (heads, -1)).transpose(1, 2)

    def _attend(self, q: Quantized, k: Quantized, v: Quantized, heads: int) -> Quantized:
        values = torch.empty_like(q.values)
        plan = self._plan(values.device, q.values.shape, k.values.shape, heads)
        plan.run({"q": q.values, "k": k.values, "v": v.values, "o": values, "descale_q": q.scale, "descale_k": k.scale})
        # The plan takes v as it is: no weighted mean of values is beyond the largest, so v's scale fits the result.
        return Quantized(values, v.scale, v.mean)

    def _plan(self, device: torch.device, queries: torch.Size, keys: torch.Size, heads: int) -> Plan:
        plans = vars(_of_thread).setdefault("plans", {})
        key = (device, queries, keys, heads)
        if key not in plans:
            handles = vars(_of_thread).setdefault("handles", {})
            with torch.cuda.device(device):
                if device not in handles:
                    handles[device] = self._cudnn.create_handle()
                plans[key] = Plan(self._cudnn, handles[device], device, queries, keys, heads)
        return plans[key]


class Plan:
    """cuDNN's plan for queries and keys (b, tokens, c) of these shapes, with their heads side by side in c."""

    def __init__(self, cudnn, handle, device: torch.device, queries: torch.Size, keys: torch.Size, heads: int):
        """Raises cuDNN's own error where it has no kernel for these shapes."""
        self._cudnn, self._handle, self._device = cudnn, handle, device
        kinds = cudnn.data_type
        graph = cudnn.pygraph(
            io_data_type=kinds.FP8_E4M3,
            intermediate_data_type=kinds.FLOAT,
            compute_data_type=kinds.FLOAT,
            handle=handle,
        )

        def describe(name: str, shape: torch.Size | None = None) -> object:
            dim, stride = _by_head(shape, heads) if shape else ([1] * 4, [1] * 4)
            return graph.tensor(name=name, dim=dim, stride=stride, data_type=kinds.FP8_E4M3 if shape else kinds.FLOAT)

        operands = {"q": describe("q", queries), "k": describe("k", keys), "v": describe("v", keys)}
        scales = {name: describe(name) for name in ("descale_q", "descale_k", *FACTORS)}
        out, _, *largest = graph.sdpa_fp8(
            **operands, **scales, attn_scale=(queries[-1] // heads) ** -0.5, generate_stats=False
        )
        dim, stride = _by_head(queries, heads)
        out.set_output(True).set_dim(dim).set_stride(stride).set_data_type(kinds.FP8_E4M3)
        for scalar in largest:  # of the softmax and of the result, which nobody asks for
            scalar.set_output(False).set_dim([1] * 4).set_stride([1] * 4).set_data_type(kinds.FLOAT)
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
        graph.check_support()
        graph.build_plans()
        self._graph, self._tensors = graph, {**operands, **scales, "o": out}
        self._workspace_bytes = graph.get_workspace_size()
        self._factors = {name: torch.full((1,), value, device=device) for name, value in FACTORS.items()}

    def run(self, tensors: dict[str, Tensor]) -> None:
        """Compute attention of "q", "k" and "v" with their scales into "o", on the current stream."""
        stream = torch.cuda.current_stream(self._device).cuda_stream
        workspace = torch.empty(self._workspace_bytes, dtype=torch.uint8, device=self._device)
        self._cudnn.set_stream(handle=self._handle, stream=stream)
        pack = {self._tensors[name]: tensor for name, tensor in {**tensors, **self._factors}.items()}
        self._graph.execute(pack, workspace, handle=self._handle)


def _by_head(shape: torch.Size, heads: int) -> tuple[list[int], list[int]]:
    """Dimensions (b, heads, tokens, head_dim) and strides of a contiguous (b, tokens, c)."""
    b, tokens, c = shape
    return [b, heads, tokens, c // heads], [tokens * c, c // heads, c, 1]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def _needs_package(found: str) -> ValueError:
    return ValueError(
        f"attention_kernel fp8 needs {PACKAGE} {'.'.join(map(str, OLDEST_FRONTEND))} or newer, but {found}. Install it"
        f" with pip in ComfyUI's Python, or {INSTEAD}."
    )


def _needs_gpu(found: str) -> ValueError:
    return ValueError(
        "attention_kernel fp8 needs an NVIDIA GPU of compute capability 9.0 or 10.x (H100, H200, B200), but"
        f" {found}. On this device {INSTEAD}."
    )
