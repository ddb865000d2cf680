"""Which tests share a worker of pytest-xdist, and which begin first."""

from __future__ import annotations

from pathlib import Path

from xdist.scheduler import LoadScopeScheduling

# Folders whose tests share something costly. tests/browser: the pages. tests/training/miniature:
# the toy models. The others: one ComfyUI server.
BROWSER, SERVER, MINIATURE = "the browser", "the server", "the miniature"
TOGETHER = {
    "tests/browser/": BROWSER,
    "tests/nodes/": SERVER,
    "tests/workflows/": SERVER,
    "tests/training/miniature/test_making.py": MINIATURE,
    "tests/training/miniature/test_models.py": MINIATURE,
    "tests/training/miniature/test_search.py": MINIATURE,
    "tests/tools/test_compare.py": SERVER,
    "tests/tools/test_demo.py": SERVER,
    "tests/tools/test_templates.py": SERVER,
    "tests/tools/test_workflow.py": SERVER,
}
# What takes longest begins first, so that no worker is left with a long file when the others have nothing to do.
LONGEST = (
    SERVER,
    BROWSER,
    "tests/tools/test_endurance.py",
    "tests/training/test_run.py",
    "tests/host/attention/test_companions_compile.py",
    "tests/ops/test_kernels.py",
    "tests/vae/test_exact.py",
    "tests/host/multigpu/test_faults.py",
    "tests/training/miniature/test_scenes.py",
    "tests/training/miniature/test_weights.py",
    "tests/install/test_install.py",
    "tests/host/vae/test_vae.py",
    "tests/host/resume/test_resume.py",
    "tests/host/multigpu/test_runs.py",
    "tests/host/attention/test_companions_order.py",
    "tests/attention/test_golden.py",
    MINIATURE,
    "tests/host/attention/test_leaks.py",
    "tests/host/attention/test_properties.py",
    "tests/host/vae/test_vae_faults.py",
    "tests/host/multigpu/test_delays.py",
    "tests/host/attention/test_models.py",
    "tests/host/save/test_save.py",
    "tests/host/attention/test_memory.py",
    "tests/host/vae/test_vae_gpus.py",
)


def group_of(node_id: str) -> str:
    """Name the group of tests that run on one worker: a file, or several folders."""
    file = node_id.split("::")[0]
    return next((group for start, group in TOGETHER.items() if file.startswith(start)), file)


def rank(node_id: str) -> int:
    """Return 0 for the group that begins first, and so on; all groups that are not in LONGEST come last."""
    group = group_of(node_id)
    return LONGEST.index(group) if group in LONGEST else len(LONGEST)


class Groups(LoadScopeScheduling):
    """xdist's scheduler by scope, with our groups as scopes, in the order in which their tests were collected."""

    def __init__(self, config, log=None):
        super().__init__(config, log)
        config.option.loadscopereorder = False

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)


def missing(root: Path) -> list[str]:
    """Return the names above that no file or folder has any more."""
    names = [*TOGETHER, *(name for name in LONGEST if name not in (SERVER, BROWSER, MINIATURE))]
    return [name for name in names if not (root / name).exists()]
