"""attention_kernel fp8: error, plans, where it acts and what is refused, with a stand-in for NVIDIA's package."""

from __future__ import annotations

import math
import sys
import threading
from functools import partial

import comfy.ldm.modules.attention as core
import pytest
import torch
from helpers.comfy_run import RULES, attention_passed_on, patched, sample, velocity
from helpers.cudnn_frontend import CudnnFrontend, installed
from helpers.support import dense_attention, relative_error, seeded
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from ultragen_core.host.attention import fp8_kernel
from ultragen_core.host.attention.fp8_kernel import Fp8Kernel
from ultragen_core.host.attention.kernels import KernelOverride, load_kernel
from ultragen_core.host.attention.load import load_extras_file, load_model
from ultragen_core.host.attention.patch import Settings, apply, runtime_of
from ultragen_core.host.plan import plan_of
from ultragen_core.ops.dispatch import use_triton
from ultragen_core.wan import WanShape

TEXT, HEADS, HEAD_DIM = 7, 2, 128
LATENT, CONTEXT = seeded(1, 16, 3, 16, 24), seeded(1, TEXT, 4096)
TOKENS = 3 * 8 * 12
PYTORCH = core.attention_pytorch.__wrapped__


@pytest.fixture
def frontend(monkeypatch):
    with installed(monkeypatch) as package:
        yield package


@pytest.fixture
def fp8(frontend, dense):
    """`fp8(rule, **settings)`: the tiny model with that kernel."""
    return partial(patched, dense, attention_kernel="fp8")


def operands(n: int, tokens: int, shift: float = 0.0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """q, k and v; keys and values with a mean that all tokens share, which differs between channels and items."""
    q, k, v = (seeded(n, tokens, HEADS * HEAD_DIM, seed=i) for i in range(3))
    mean = shift * seeded(n, 1, HEADS * HEAD_DIM, seed=3)
    return [q.to(dtype), (k + mean).to(dtype), (v + mean).to(dtype)]


def attend(given: list[Tensor], heads: int = HEADS) -> Tensor:
    return KernelOverride(load_kernel("fp8"), None).self_attention_(list(given), heads)


def exact(given: list[Tensor]) -> Tensor:
    return dense_attention(*(x.double() for x in given), HEADS)


@pytest.mark.parametrize(("n", "tokens"), [(3, 40), (1, 1500)], ids=["a batch", "many tokens"])
@pytest.mark.parametrize("shift", [0.0, 4.0], ids=["plain", "a shared mean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_its_error_does_not_depend_on_a_mean_that_all_tokens_share(frontend, n, tokens, shift, dtype):
    given = operands(n, tokens, shift, dtype)
    result = attend(given)
    assert result.dtype == dtype and result.shape == given[0].shape and result.is_contiguous()
    error = (result.double() - exact(given)).norm() / exact(operands(n, tokens)).norm()
    assert 1e-2 < error < 6.5e-2


@pytest.mark.parametrize("centred", [1, 2], ids=["keys", "values"])
def test_without_centring_the_error_would_grow(frontend, monkeypatch, centred):
    """Of the keys, and of the values: the test above would see it if either were left out."""
    order = iter(range(3))
    original = fp8_kernel.quantize

    def quantize(x, mean_is_taken_out, triton):
        return original(x, mean_is_taken_out and next(order) != centred - 1, triton)

    monkeypatch.setattr(fp8_kernel, "quantize", quantize)
    given = operands(3, 40, 4.0)
    assert (attend(given).double() - exact(given)).norm() / exact(operands(3, 40)).norm() > 0.1


def test_one_key_gives_its_value(frontend):
    given = operands(2, 1, 4.0)
    assert torch.equal(attend(given), given[2])


def test_few_queries_and_no_others(frontend):
    q, k, v = given = operands(2, 300)
    few = [q[:, 100:140], k, v]  # a view with the strides of all
    assert relative_error(attend(few), exact(given)[:, 100:140].float()) < 6.5e-2
    assert frontend.calls == [((2, HEADS, 40, HEAD_DIM), (2, HEADS, 300, HEAD_DIM))]


@torch.no_grad()
def test_in_triton_it_gives_the_same(frontend, interpreted_kernels):
    given = operands(2, 20, 4.0)
    with use_triton(False):
        plain = attend(given)
    assert 0 < relative_error(attend(given), plain) < 5e-3
    few = [given[0][:, 3:9], *given[1:]]
    assert relative_error(attend(few), exact(given)[:, 3:9].float()) < 6.5e-2


def test_plans_are_made_once_for_a_thread_and_a_shape(frontend):
    first = attend(operands(2, 40))
    assert torch.equal(attend(operands(2, 40)), first)  # by another Fp8Kernel, as of another model
    assert len(frontend.built) == 1 and len(frontend.calls) == 2
    for given, heads in ((operands(1, 40), 2), (operands(2, 41), 2), (operands(2, 40), 4)):
        attend(given, heads)
    attend([operands(2, 40)[0][:, :30], *operands(2, 40)[1:]])
    assert len(frontend.built) == 5 and len(frontend.streams) == 1

    thread = threading.Thread(target=lambda: attend(operands(2, 40)))
    thread.start()
    thread.join()
    assert len(frontend.built) == 6 and len(frontend.streams) == 2  # with a handle of its own
    assert set(frontend.streams.values()) == {7}  # the current stream


def test_q_k_and_v_are_gone_before_the_attention(frontend):
    given = operands(2, 40)
    frontend.originals = [StorageWeakRef(x.untyped_storage()) for x in given]
    KernelOverride(load_kernel("fp8"), None).self_attention_(given, HEADS)
    assert given == [] and frontend.freed == [True]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("memory", ["all at once", "bounded"])
def test_it_computes_all_self_attention_and_no_other(frontend, fp8, dense, rule, memory, request):
    if memory == "bounded":
        request.getfixturevalue("bounded")()
    expected = velocity(patched(dense, rule), LATENT, CONTEXT, 0.5)
    model = fp8(rule)
    left = attention_passed_on(model)
    assert 1e-4 < relative_error(velocity(model, LATENT, CONTEXT, 0.5), expected) < 5e-2
    assert left and {keys for _, keys in left} == {TEXT}  # cross-attention alone
    assert TEXT not in [k[2] for _, k in frontend.calls]
    whole = [q[2] for q, k in frontend.calls if k[2] == TOKENS]
    assert whole == {
        ("ultragen", "all at once"): [TOKENS] * 2,
        ("ultragen", "bounded"): [TOKENS // 3] * 6,
    }.get((rule, memory), [TOKENS])  # of "t3" the windows of a strided cut that is not cut at all


@pytest.mark.parametrize("rule", RULES)
def test_windows_of_few_keys_are_computed_as_without_it(frontend, fp8, rule, monkeypatch):
    monkeypatch.setattr(Fp8Kernel, "fewest_keys", TOKENS)
    model = fp8(rule)
    left = attention_passed_on(model)
    velocity(model, LATENT, CONTEXT, 0.5)
    assert {k[2] for _, k in frontend.calls} == {TOKENS}
    keys = {keys for _, keys in left}
    assert len(keys) > 1 and max(keys) < TOKENS


def test_nothing_uses_it_unasked(frontend, dense):
    velocity(patched(dense, "ultragen"), LATENT, CONTEXT, 0.5)
    velocity(dense, LATENT, CONTEXT, 0.5)
    assert frontend.calls == [] and Settings().attention_kernel == "comfyui"


def test_a_batch_and_a_negative_prompt(frontend, fp8):
    model = fp8("ultragen")
    one, two = (velocity(model, LATENT.repeat(n, 1, 1, 1, 1), CONTEXT.repeat(n, 1, 1), 0.5) for n in (1, 2))
    assert relative_error(two, one.repeat(2, 1, 1, 1, 1)) < 1e-4
    assert torch.isfinite(sample(model, LATENT.shape, CONTEXT)).all()


def test_log_plan_and_estimate_name_it(frontend, fp8, dense, tiny_path, caplog):
    caplog.set_level("INFO")
    model = fp8("ultragen")
    sample(model, LATENT.shape, CONTEXT, steps=1, cfg=1.0)
    assert caplog.text.count("UltraGen: attention cuDNN fp8 (set by attention_kernel)") == 1
    assert plan_of(model, LATENT.shape).rule.endswith("attention cuDNN fp8")
    plain = runtime_of(apply(dense, Settings(), load_extras_file(tiny_path)))
    ours = runtime_of(model)
    more = [each.memory_required(dense.model, LATENT.shape) for each in (ours, plain)]
    assert more[0] - more[1] == TOKENS * HEADS * HEAD_DIM * 4  # keys and values in 8 bits: one map in float32


def test_compiled_graphs_break_there(frontend):
    given = operands(1, 40)
    kernel = load_kernel("fp8")
    compiled = torch.compile(lambda *qkv: KernelOverride(kernel, None)(PYTORCH, *qkv, HEADS) + 1, backend="eager")
    assert torch.equal(compiled(*given), attend(given) + 1)


@pytest.mark.parametrize("found", ["missing", "too old", "another package", "broken"])
def test_without_the_package_nothing_is_loaded(frontend, dense, monkeypatch, tmp_path, found):
    if found == "missing":
        monkeypatch.setitem(sys.modules, "cudnn", None)
    elif found == "too old":
        monkeypatch.setattr(fp8_kernel, "version_of", lambda name: "1.13.0")
    elif found == "another package":
        monkeypatch.delattr(CudnnFrontend, "pygraph")
    else:
        monkeypatch.delitem(sys.modules, "cudnn")
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / "cudnn.py").write_text("raise OSError('libcudnn.so.9 not found')")
    words = {
        "missing": "but it is not installed",
        "too old": "but 1.13.0 is installed",
        "another package": "is installed",
        "broken": "but its import fails (OSError: libcudnn.so.9 not found)",
    }
    for load in (
        lambda: apply(dense, Settings(rule="t3", attention_kernel="fp8")),
        lambda: load_model("not there.safetensors", "t3", attention_kernel="fp8"),
    ):
        with pytest.raises(ValueError, match="fp8 needs nvidia-cudnn-frontend 1.14 or newer.*pip.*set atten") as error:
            load()
        assert words[found] in str(error.value)


@pytest.mark.parametrize(
    ("device_types", "hip", "capability", "found"),
    [
        (("cuda",), None, (9, 0), "this model runs on cpu"),
        (("cpu",), "6.4", (9, 0), "this model runs on an AMD GPU"),
        (("cpu",), None, (8, 9), "got RTX 4090, 8.9"),
        (("cpu",), None, (12, 0), "got RTX 4090, 12.0"),
    ],
)
def test_a_device_without_it_is_refused_before_sampling(fp8, monkeypatch, device_types, hip, capability, found):
    monkeypatch.setattr(Fp8Kernel, "device_types", device_types)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "RTX 4090")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    model, evaluations = fp8("ultragen"), []
    model.set_model_unet_function_wrapper(lambda *args: evaluations.append(args))
    message = f"compute capability 9.0 or 10.x .*but {found}. On this device set attention_kernel to comfyui"
    with pytest.raises(ValueError, match=message):
        sample(model, LATENT.shape, CONTEXT)
    assert evaluations == []
    with pytest.raises(ValueError, match=message):  # another GPU than the model's may run a part of it
        velocity(fp8("ultragen"), LATENT, CONTEXT, 0.5)


def test_a_cudnn_without_the_kernel_is_refused_before_sampling(fp8, frontend, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H100")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 90100)
    frontend.unsupported = "No valid engine configs"
    message = r"but got H100, 9.0, and cuDNN 90100 has no kernel for it \(No valid engine configs\). On this device set"
    with pytest.raises(ValueError, match=message):
        sample(fp8("t3"), LATENT.shape, CONTEXT)
    assert frontend.calls == []
    frontend.unsupported = None
    sample(fp8("t3"), LATENT.shape, CONTEXT)
    assert frontend.calls


def test_wide_heads_and_the_dense_rule_are_refused(frontend):
    with pytest.raises(ValueError, match="fp8 .* at most 128 channels, but this model's have 256. .*comfyui"):
        load_kernel("fp8", WanShape(blocks=1, channels=512, heads=2, ffn_channels=8))
    with pytest.raises(ValueError, match="attention_rule dense is ComfyUI's own attention, got attention_kernel fp8"):
        load_model("not there.safetensors", "dense", attention_kernel="fp8")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@torch.no_grad()
def test_the_real_kernel_is_near_exact_attention():
    device = torch.device("cuda")
    try:
        load_kernel("fp8").require_device(device)
    except ValueError as refusal:
        pytest.skip(str(refusal))
    for shift in (0.0, 4.0):
        for dtype in (torch.bfloat16, torch.float16):
            given = [x.to(device) for x in operands(2, 1500, shift, dtype)]
            expected = dense_attention(*(x.float() for x in given), HEADS)
            centre = expected.mean(1, keepdim=True)
            few = [given[0][:, 200:400], *given[1:]]
            for result, whole in ((attend(given), expected), (attend(few), expected[:, 200:400])):
                rounding = relative_error(whole.to(dtype).float() - centre, whole - centre)
                assert relative_error(result.float() - centre, whole - centre) < math.hypot(0.1, rounding)
