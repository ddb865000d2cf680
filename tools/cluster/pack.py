"""The pack's plain Python: prompt lists and files.

`ultragen_core/__init__.py` imports torch, which drivers and hosts lack or need not load: it is left out where torch is
not loaded yet.
"""

from __future__ import annotations

import sys
import types

from tools.server import ROOT

if not {"torch", "ultragen_core"} & sys.modules.keys():
    library = types.ModuleType("ultragen_core")
    library.__path__ = [str(ROOT / "ultragen_core")]
    sys.modules["ultragen_core"] = library

from ultragen_core.printable import printable  # noqa: E402
from ultragen_core.prompts.formats import decode, parse  # noqa: E402
from ultragen_core.prompts.items import Item, chosen_items  # noqa: E402
from ultragen_core.storage.files import UNFINISHED, file_within, finished_file, rename_to_new  # noqa: E402
from ultragen_core.version import VERSION  # noqa: E402

__all__ = [
    "UNFINISHED", "VERSION", "Item", "chosen_items", "decode", "file_within", "finished_file", "parse", "printable",
    "rename_to_new",
]  # fmt: skip
