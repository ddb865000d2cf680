"""`two_processes.py FOLDER ARGUMENT...`, run by test_run.py in each of two processes: `-m training` with these
arguments, in float32 and bfloat16, into FOLDER: `whole` as it is launched, then `sharded` by accelerate's FSDP.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
SHARDED = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "TrainingBlock",
}


def run(name: str, precision: str, *more: str) -> None:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()  # so that it reads the environment again
    os.environ["ACCELERATE_MIXED_PRECISION"] = precision
    folder, *arguments = sys.argv[1:]
    options = train.parser().parse_args([*arguments, "--out", f"{folder}/{name}-{precision}", *more])
    options.run(options)


def sharded(precision: str, *more: str) -> None:
    from accelerate.state import AcceleratorState, DistributedType, PartialState

    # accelerate shards among accelerators alone, so the processes pass for such.
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_XPU
    os.environ.update(SHARDED)
    run("sharded", precision, *more)
    assert AcceleratorState().is_fsdp2


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    from training import __main__ as train

    train.find_comfyui()
    run("whole", "no")
    run("whole", "bf16")
    sharded("no", "--minutes", "1e-6")  # ends after one step
    if os.environ["RANK"] == "0":
        shutil.copytree(Path(sys.argv[1], "sharded-no"), Path(sys.argv[1], "cut"))
    sharded("no")  # continues from its state
    sharded("bf16")
