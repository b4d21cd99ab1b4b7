"""Keep a torchvision that was built for another torch importable.

A CPU build of torch beside a CUDA build of torchvision is a common mix. torchvision's compiled operators don't load
then, and its import stops with "operator torchvision::nms does not exist", which takes timm, torchmetrics, Lightning
and transformers with it. This package needs none of these operators. So their names are declared, without kernels (a
call still fails), and the import is tried again. Where torchvision imports as it is, nothing is touched.
"""

import importlib
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

_DECLARED: list[Any] = []  # a library's names vanish with it, so it is held


def make_importable() -> None:
    """Import torchvision, where there is one; declare its missing operators if they keep it from importing.

    Called by what imports timm, torchmetrics or Lightning, just before: each of them imports torchvision.
    """
    if "torchvision" in sys.modules:
        return
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    try:
        importlib.import_module("torchvision")
        return
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
    _declare_operators(Path(spec.origin).parent)
    for module in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[module]
    importlib.import_module("torchvision")


def _declare_operators(package: Path) -> None:
    """Declare the operators that torchvision's sources register shapes for."""
    import torch  # imported by torchvision already

    names = {
        name
        for source in package.glob("_*.py")
        for name in re.findall(r'register_fake\("torchvision::(\w+)"', source.read_text(encoding="utf-8"))
    }
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in sorted(names):
        library.define(f"{name}() -> ()")
    _DECLARED.append(library)
