"""Fields of JSON: names for messages are made only where something is refused."""

import re

import pytest
import torch
from safetensors.torch import save_file

import l2c
from l2c.io import json_fields
from l2c.io.json_fields import FORMS, TORCH, WEIGHTS, form_of, items


def test_long_lists_make_no_names(monkeypatch):
    monkeypatch.setattr(json_fields, "shown", None)  # a call would raise
    assert items({"a": [1, 2.5]}, "a", (int, float), "a") == [1, 2.5]
    assert items({"a": [2.0, 3]}, "a", int, "a") == [2, 3]


@pytest.mark.parametrize(("values", "kind", "wrong"), [([1, True], int, "a[1]"), (["x", None], str, "a[1]")])
def test_the_wrong_item_is_named(values, kind, wrong):
    with pytest.raises(ValueError, match="must be") as refusal:
        items({"a": values}, "a", kind, "a")
    assert f"the field {wrong} must be {kind.__name__}" in str(refusal.value)


def test_every_format_of_a_file_with_a_reader_is_known():
    from l2c.calibration import calibration_file
    from l2c.graph import correction_file, file
    from l2c.policies import ladder

    formats = {module.FORMAT for module in (calibration_file, correction_file, file, ladder)}
    assert formats | {"l2c-cache-graphs", WEIGHTS, TORCH} == set(FORMS)


def test_files_given_for_each_other_are_told_apart(tmp_path):
    torch.save({"0.prob": torch.zeros(2)}, tmp_path / "routers.pth")
    save_file({"w": torch.zeros(2)}, tmp_path / "weights.safetensors")
    save_file({"w": torch.zeros(2)}, tmp_path / "correction.safetensors", {"l2c": '{"format": "l2c-scale-shift"}'})
    (tmp_path / "graph.json").write_text('{"format": "l2c-cache-graph"}')
    forms = {path.stem: form_of(path) for path in tmp_path.iterdir()}
    known = {"weights": WEIGHTS, "correction": "l2c-scale-shift", "graph": "l2c-cache-graph"}
    assert forms == {"routers": TORCH, **known}
    for name in ("routers.pth", "weights.safetensors", "correction.safetensors"):
        what, reader = FORMS[forms[name.split(".")[0]]]
        with pytest.raises(ValueError, match=re.escape(f"is {what}, not a cache graph; it is read by {reader}")):
            l2c.CacheGraph.load(tmp_path / name)
    with pytest.raises(ValueError, match="is the correction of a cache graph, not weights"):
        l2c.load_backbone("dit_digits", checkpoint=tmp_path / "correction.safetensors")
    with pytest.raises(ValueError, match="is a cache graph, not a file that "):
        l2c.import_l2c_router(tmp_path / "graph.json", "dit_digits", solver="ddim", num_evaluations=4, threshold=0.5)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"12345678{", b"\x02" + 7 * b"\0" + b"{}", b"PK", 99 * b"\xff"]
)
def test_other_files_have_no_form_that_is_known(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    assert form_of(tmp_path / "file") in (None, WEIGHTS)
    assert form_of(tmp_path) is None
