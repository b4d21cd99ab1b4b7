"""Keep a torchvision that was built for another torch importable.

A CPU build of torch beside a CUDA build of torchvision is a common mix. torchvision's compiled operators don't load
then, and its import stops with "operator torchvision::nms does not exist", which takes timm, torchmetrics, Lightning
and transformers with it. This package needs none of these operators. So their names are declared, without kernels (a
call still fails), and the import is tried again. Where torchvision imports as it is, nothing is touched.
"""

import re
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

_DECLARED: list[Any] = []  # a library's names vanish with it, so it is held


class _Mending(Loader):
    """Run torchvision; where its operators keep it from importing, declare them and run it again."""

    def __init__(self, own: Any) -> None:
        self.own = own

    def __getattr__(self, name: str) -> Any:
        return getattr(self.own, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Return the module that torchvision's own loader makes."""
        return self.own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module."""
        try:
            self.own.exec_module(module)
            return
        except RuntimeError as error:
            if "operator torchvision::" not in str(error):
                raise
        assert module.__spec__ is not None
        assert module.__spec__.origin is not None
        _declare_operators(Path(module.__spec__.origin).parent)
        for name in [name for name in sys.modules if name.startswith("torchvision.")]:
            del sys.modules[name]
        self.own.exec_module(module)


class _Finder(MetaPathFinder):
    """Import finder that loads torchvision through `_Mending`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec that the other finders have for torchvision, with our loader; None for others."""
        if fullname != "torchvision":
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None and spec.origin is not None:
                    spec.loader = _Mending(spec.loader)
                return spec
        return None


_FINDER = _Finder()


def make_importable() -> None:
    """Declare torchvision's missing operators if they keep it from importing, once something imports it.

    Modules call it before they import timm, torchmetrics or Lightning, which import torchvision. The call itself
    imports nothing.
    """
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)


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
