"""Which operations of a block give other bits for a batch of two prompts than for the first prompt alone: a CFG step on
two GPUs, with a prompt each, then differs from one GPU, which computes both prompts in one batch."""

from __future__ import annotations

import argparse
from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ultragen_core.sizes import SPATIAL_RATIO, VideoSize, latent_shape
from ultragen_core.wan import WAN_1_3B

# Operations whose kernels a library chooses by the sizes. All others compute each token alone.
CHOSEN_BY_SIZE = ("mm", "addmm", "bmm", "baddbmm", "convolution", "_softmax", "_scaled_dot_product")
SIZES = {"1080P": VideoSize(1920, 1088, 81), "480P": VideoSize(832, 480, 81)}


class FirstHalfAlone(TorchDispatchMode):
    """Computes such operations once more for the first half of a batch.

    calls, differing: how often each ran, and how often the first half of its result had other bits, by name and shapes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.differing: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        name, out = function.overloadpacket.__name__, result[0] if isinstance(result, tuple) else result
        if not name.startswith(CHOSEN_BY_SIZE) or out.shape[0] % 2:
            return result
        half = out.shape[0] // 2
        batched = [torch.is_tensor(each) and each.shape[:1] == out.shape[:1] for each in args]
        if any(batched):
            alone = function(*(each[:half] if cut else each for each, cut in zip(args, batched, strict=True)), **kwargs)
            alone = alone[0] if isinstance(alone, tuple) else alone
            key = f"{name} {' '.join(str(tuple(each.shape)) for each in args if torch.is_tensor(each))}"
            self.calls[key] += 1
            self.differing[key] += not torch.equal(out[:half], alone)
        return result


def add_parser(subjects: argparse._SubParsersAction) -> None:
    parser = subjects.add_parser("bits", help=__doc__)
    parser.add_argument("--sizes", nargs="+", default=["1080P"], choices=SIZES)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from ultragen_core.host.speed.evaluation import few_blocks

    print(torch.cuda.get_device_name(), torch.__version__, "cuDNN", torch.backends.cudnn.version())
    models = few_blocks(WAN_1_3B, torch.device("cuda"))
    for size in options.sizes:
        for rule, model in models.items():
            report(f"{size} {rule}", model, SIZES[size], "cuda")


def report(title: str, model, size: VideoSize, device: str) -> None:
    """Print a line for each operation that depends on the batch, and how many do not."""
    from ultragen_core.host.speed.evaluation import SIGMAS, evaluating, inputs

    dm = model.model.diffusion_model
    shape = latent_shape(size, 2, dm.out_dim, SPATIAL_RATIO[dm.out_dim])
    with torch.inference_mode(), evaluating(model, SIGMAS) as evaluate:
        x, text = inputs(shape, device)
        with FirstHalfAlone() as seen:
            evaluate(x, text.repeat(2, 1, 1), SIGMAS[0])
    found = {key: count for key, count in seen.differing.items() if count}
    print(f"{title}: {len(found)} of {len(seen.calls)} operations depend on the batch")
    for key, count in found.items():
        print(f"  {count} of {seen.calls[key]} calls: {key}")
