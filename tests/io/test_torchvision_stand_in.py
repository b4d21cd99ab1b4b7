"""A torchvision without its operators becomes importable; one that imports is left alone."""

import subprocess
import sys

import pytest

MISSING = """
import torch
from torchvision import _meta_registrations
"""
REGISTERS = """
import torch

@torch.library.register_fake("torchvision::l2c_test_operator")
def shapes(x):
    return x
"""
USE = """
import sys
from l2c.io import torchvision_stand_in as stand_in
stand_in.make_importable()
stand_in.make_importable()
import torchvision
print(torchvision.__file__, len(stand_in._DECLARED))
"""


@pytest.mark.parametrize(("source", "declared"), [("ready = True", 0), (MISSING, 1)])
def test_operators_are_declared_only_where_they_are_missing(tmp_path, source, declared):
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(source)
    (package / "_meta_registrations.py").write_text(REGISTERS)
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{USE}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(package / "__init__.py"), str(declared)]


def test_a_pickled_backbone_finds_them_declared():
    """A process that loads one imports its class first, then timm's."""
    program = "import sys, l2c.backbones, l2c.io.torchvision_stand_in as it; print(it._FINDER in sys.meta_path)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=900, check=True)
    assert done.stdout.split() == ["True"]
