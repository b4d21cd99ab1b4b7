"""Keep a torchvision that was built for another torch importable.

A CPU build of torch beside the registry's CUDA build of torchvision is a common mix. Its compiled
operators don't load, and torchvision then stops at import with "operator torchvision::nms does not
exist", which takes timm, torchmetrics and Lightning with it. None of those needs the compiled operators
for what this package does, so the missing names are declared (without kernels: a call still fails) and
the import is tried again. Where torchvision imports as it is, nothing is touched.
"""

import importlib
import importlib.util
import re
import sys
from pathlib import Path

import torch

_DECLARED: list[torch.library.Library] = []  # a library's names vanish with it, so it is held


def make_importable() -> None:
    """Import torchvision, declaring its missing operators first where they keep it from importing."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    try:
        importlib.import_module("torchvision")
        return
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
    sources = Path(spec.origin).parent.glob("_*.py")
    names = {
        name
        for source in sources
        for name in re.findall(r'register_fake\("torchvision::(\w+)"', source.read_text(encoding="utf-8"))
    }
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in sorted(names):
        library.define(f"{name}() -> ()")
    _DECLARED.append(library)
    for module in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[module]
    importlib.import_module("torchvision")
