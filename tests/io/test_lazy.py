"""Packages that are needed only where they are used."""

from importlib import import_module

import pytest

from l2c.io.lazy import needed


def test_only_a_missing_package_is_called_missing():
    sentence = r"a test needs the package nowhere; run pip install '\.\[extra\]' in a clone of l2c"
    with pytest.raises(ValueError, match=sentence), needed("nowhere", "a test needs", "extra"):
        import_module("nowhere.inside")
    with pytest.raises(ModuleNotFoundError, match="elsewhere"), needed("nowhere", "a test needs", "extra"):
        import_module("elsewhere")  # what is there, but lacks something itself
