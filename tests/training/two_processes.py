"""`two_processes.py BASE FOLDER ARGUMENT...`, run by test_run.py in each of two processes: tools/train.py with these
arguments; then weights sharded by PyTorch's fully_shard, as accelerate's FSDP does it on GPUs, are saved, gone on from
and published to FOLDER.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def sharded(base: Path, folder: Path) -> None:
    import torch
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    from tools.training.checkpoint import States, publish
    from tools.training.ema import AveragedWeights
    from tools.training.model import build
    from tools.training.recipe import Recipe
    from ultragen_core.weights.files import read_state_dict

    writes = dist.get_rank() == 0
    recipe = Recipe(rank=4, dense_blocks="0,3")
    generator = torch.Generator().manual_seed(0)
    x, text = torch.randn(1, 16, 2, 8, 10, generator=generator), torch.randn(1, 512, 4096, generator=generator)

    class Run:
        def __init__(self, shard: bool):
            self.model = build(read_state_dict(base), base.name, recipe)
            if shard:
                mesh = dist.init_device_mesh("cpu", (2,))
                for block in self.model.wan.blocks:
                    fully_shard(block, mesh=mesh)
                fully_shard(self.model, mesh=mesh)
            learning = list(self.model.parameters())
            self.optimizer, self.averages = torch.optim.AdamW(learning, 1e-3), AveragedWeights(learning)
            self.states = States(folder, self.model, self.optimizer, self.averages)

        def go(self, steps: int) -> None:
            for _ in range(steps):
                self.model(x, torch.tensor([500.0]), text).square().mean().backward()
                self.optimizer.step()
                self.optimizer.zero_grad()
                self.averages.update(0.5)

        def publish(self, name: str) -> None:
            (folder / name).mkdir(parents=True, exist_ok=True)
            with self.averages.applied():
                publish(folder / name, 3, self.model, self.model, recipe, writes)

    alone, begun = Run(shard=False), Run(shard=True)
    alone.go(3)
    alone.publish("one")
    begun.go(2)
    begun.states.save(2, writes, "")
    dist.barrier()
    resumed = Run(shard=True)
    resumed.states.restore(resumed.states.newest())
    resumed.go(1)
    resumed.publish("two")


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    from tools import train

    (base, folder), sys.argv = map(Path, sys.argv[1:3]), [sys.argv[0], *sys.argv[3:]]
    train.main()
    sharded(base, folder)
