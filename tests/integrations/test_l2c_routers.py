"""Router files of Learning-to-Cache as cache graphs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import l2c
from l2c.backbones.backbone import fingerprint


class Foreign:
    """Stands for any class that a file might smuggle in."""


def dit_logits(num_steps=6, num_layers=4):
    """Logits that say where they come from: router i computes layer j where bit j of i is set."""
    return {
        f"{i}.prob": torch.tensor([4.0 if i >> j & 1 else -4.0 for j in range(num_layers)]) for i in range(num_steps)
    }


@pytest.fixture
def write(tmp_path):
    def write(content, name="router.pt"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return write


def bits_of(i, num_layers=4):
    return tuple(bool(i >> j & 1) for j in range(num_layers))


def test_dit_indices_count_upwards_and_even_ones_are_routed(make_dit, write):
    path = write({"routers": dit_logits()})
    graph = l2c.import_l2c_router(path, make_dit(), solver="ddim", num_evaluations=6, threshold=0.5)
    assert graph.routed == (1, 3, 5)
    full = (True,) * 4
    assert graph.rows == (full, bits_of(4), full, bits_of(2), full, bits_of(0))
    assert graph.timesteps == (999.0, 799.0, 599.0, 400.0, 200.0, 0.0)
    assert (graph.solver, graph.guidance, graph.cfg_scale) == ("ddim", "dit", None)


def test_the_first_of_an_odd_number_of_evaluations_is_full(make_dit, write):
    path = write({"routers": dit_logits(5)})
    graph = l2c.import_l2c_router(path, make_dit(), solver="ddim", num_evaluations=5, threshold=0.5)
    assert graph.routed == (2, 4)
    assert graph.rows[0] == (True,) * 4
    assert graph.rows[2] == bits_of(2)


def test_uvit_indices_are_solver_steps(make_uvit, write):
    net = make_uvit()
    path = write(dit_logits(8, net.num_layers), "router.pth")
    graph = l2c.import_l2c_router(path, net, solver="dpm_solver_2s", num_evaluations=8, threshold=0.5)
    assert graph.routed == (2, 4, 6)
    full = (True,) * 6
    assert graph.rows == (full, full, bits_of(1, 6), full, bits_of(2, 6), full, bits_of(3, 6), full)
    assert graph.timesteps[0] == 1000


def test_threshold_is_on_the_sigmoid(make_dit, write):
    logits = torch.tensor([-3.0, -2.0, 0.0, 3.0])  # 0.047, 0.119, 0.5, 0.953
    path = write({"routers": {f"{i}.prob": logits for i in range(4)}})
    for threshold, row in ((0.1, "0111"), (0.5, "0001"), (0.9, "0001"), (0.96, "0000")):
        graph = l2c.import_l2c_router(path, make_dit(), solver="ddim", num_evaluations=4, threshold=threshold)
        assert "".join("01"[bit] for bit in graph.rows[1]) == row
    assert graph.provenance["hyperparameters"] == {"threshold": 0.96}


def test_a_backbone_leaves_its_fingerprint_and_a_name_does_not(make_dit, write):
    net = make_dit()
    path = write({"routers": dit_logits()})
    arguments = {"solver": "ddim", "num_evaluations": 6, "threshold": 0.5}
    graph = l2c.import_l2c_router(path, net, **arguments)
    assert graph.fingerprint == fingerprint(net)
    assert l2c.Sampler(net, graph=graph).timesteps == graph.timesteps
    path = write({"routers": dit_logits(6, 56)})
    graph = l2c.import_l2c_router(str(path), "dit_xl2", **arguments)
    assert (graph.fingerprint, graph.model, graph.num_layers) == (None, "dit_xl2", 56)
    assert l2c.CacheGraph.from_json(graph.to_json()) == graph


def test_a_namespace_loads_and_other_classes_do_not(make_dit, write):
    arguments = {"solver": "ddim", "num_evaluations": 6, "threshold": 0.5}
    path = write({"routers": dit_logits(), "opt": {}, "args": argparse.Namespace(lr=1e-3, wandb=False)})
    assert l2c.import_l2c_router(path, make_dit(), **arguments).routed == (1, 3, 5)
    with pytest.raises(ValueError, match=r"cannot read a router from .*holds Python objects") as caught:
        l2c.import_l2c_router(write({"routers": dit_logits(), "args": Foreign()}), make_dit(), **arguments)
    assert "\n" not in str(caught.value)


def test_wrong_depth_is_refused(make_dit, write):
    path = write({"routers": dit_logits()})
    with pytest.raises(ValueError, match="4 logits per router, but DiT has 6 layers"):
        l2c.import_l2c_router(path, make_dit(depth=3), solver="ddim", num_evaluations=6, threshold=0.5)
    with pytest.raises(ValueError, match="unknown model 'dit_xl3'; did you mean"):
        l2c.import_l2c_router(path, "dit_xl3", solver="ddim", num_evaluations=6, threshold=0.5)


@pytest.mark.parametrize("num_evaluations", [4, 5, 7, 8, 20])
def test_wrong_number_of_ddim_evaluations_is_refused(make_dit, write, num_evaluations):
    path = write({"routers": dit_logits(6)})
    with pytest.raises(ValueError, match=f"6 routers, which do not fit ddim with {num_evaluations} evaluations"):
        l2c.import_l2c_router(path, make_dit(), solver="ddim", num_evaluations=num_evaluations, threshold=0.5)


@pytest.mark.parametrize("num_evaluations", [10, 16, 24, 40])
def test_wrong_number_of_2s_evaluations_is_refused(make_uvit, write, num_evaluations):
    """The files hold one entry per evaluation, of which the first half of the indices is used."""
    path = write(dit_logits(20, 6))
    with pytest.raises(ValueError, match="do not fit dpm_solver_2s"):
        l2c.import_l2c_router(
            path, make_uvit(), solver="dpm_solver_2s", num_evaluations=num_evaluations, threshold=0.5
        )


def test_files_that_hold_no_routers_are_refused(make_dit, write, tmp_path):
    arguments = {"solver": "ddim", "num_evaluations": 6, "threshold": 0.5}
    with pytest.raises(FileNotFoundError, match=r"no router file at .*missing\.pt"):
        l2c.import_l2c_router(tmp_path / "missing.pt", make_dit(), **arguments)
    for content in ({"weights": torch.zeros(2)}, [torch.zeros(2)], {"routers": {}}, {"0.prob": "high"}):
        with pytest.raises(ValueError, match=r"holds no routers: expected tensors named '0.prob'"):
            l2c.import_l2c_router(write(content), make_dit(), **arguments)
    whole = write({"routers": dit_logits()}).read_bytes()
    for share in (0.0, 0.3, 0.9):
        cut = tmp_path / "cut.pt"
        cut.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ValueError, match=r"cannot read a router from .*cut\.pt"):
            l2c.import_l2c_router(cut, make_dit(), **arguments)


def test_keys_that_are_no_names_are_refused(make_dit, write):
    with pytest.raises(ValueError, match="holds no routers"):
        l2c.import_l2c_router(write({0: torch.zeros(4)}), make_dit(), solver="ddim", num_evaluations=6, threshold=0.5)


# --- reference files ----------------------------------------------------------------------------------------


def test_dit_reference_router_reads_as_traced(reference: Path):
    meta = json.loads((reference / "parity" / "dit_meta.json").read_text(encoding="utf-8"))
    graph = l2c.import_l2c_router(
        reference / "parity" / "dit_router_ddim20.pt",
        l2c.DiT(**meta["cfg"]),
        solver="ddim",
        num_evaluations=20,
        threshold=meta["thres"],
    )
    assert [list(map(int, row)) for row in graph.rows] == [call["computed"] for call in meta["ddim20"]["trace"]]
    assert list(graph.timesteps) == [call["t"] for call in meta["ddim20"]["trace"]]
    assert graph.routed == tuple(range(1, 20, 2))


def test_uvit_reference_router_reads_as_traced(reference: Path):
    meta = json.loads((reference / "parity" / "uvit_meta.json").read_text(encoding="utf-8"))
    arguments = {key: value for key, value in meta["cfg"].items() if key != "use_checkpoint"}
    graph = l2c.import_l2c_router(
        reference / "parity" / "uvit_router_dpm20.pth",
        l2c.UViT(**arguments),
        solver="dpm_solver_2s",
        num_evaluations=20,
        threshold=meta["thres"],
    )
    conditional = [call for call in meta["dpm20"]["trace"] if call["branch"] == "cond"]
    assert [list(map(int, row)) for row in graph.rows] == [call["computed"] for call in conditional]
    np.testing.assert_allclose(graph.timesteps, [call["t"] for call in conditional], atol=2e-3)
    assert graph.routed == tuple(range(2, 20, 2))


def test_published_ddim50_router_removes_what_was_published(reference: Path):
    """The DDIM-50 router in the form of another project's schedule: 47.43 % of the routed evaluations."""
    path = reference / "smoothcache" / "50-N-2-l2c.json"
    schedule = json.loads(path.read_text(encoding="utf-8"))
    layers = [f"blocks.{b}.{kind}" for b in range(28) for kind in ("attn", "mlp")]
    columns = [schedule[f"{kind}-{b}"] for b in range(28) for kind in ("attn", "mlp")]
    graph = l2c.CacheGraph(
        rows=tuple(zip(*columns, strict=True)),
        layers=layers,
        timesteps=range(50, 0, -1),
        model="dit_xl2",
        solver="ddim",
        routed=range(1, 50, 2),
    )
    assert 100 * graph.removed_fraction == pytest.approx(47.43, abs=0.01)
    assert 100 * graph.removed_fraction_of("mlp") == pytest.approx(47.85, abs=0.01)
    assert 100 * graph.removed_fraction_of("attn") == pytest.approx(47.00, abs=0.01)


@pytest.mark.parametrize("kind", ["sparse", "meta", "complex", "bool"])
def test_logits_that_cannot_be_read_one_by_one_are_refused(make_dit, write, kind):
    logits = dit_logits()
    given = logits["2.prob"]
    others = {"sparse": given.to_sparse(), "meta": given.to("meta"), "complex": given + 0j, "bool": given.bool()}
    logits["2.prob"] = others[kind]
    with pytest.raises(ValueError, match=r"logits in router '2\.prob' that are no finite numbers"):
        l2c.import_l2c_router(write(logits), make_dit(), solver="ddim", num_evaluations=6, threshold=0.5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_refused(make_dit, write, value):
    logits = dit_logits()
    logits["2.prob"][1] = value
    with pytest.raises(ValueError, match=r"logits in router '2\.prob' that are no finite numbers"):
        l2c.import_l2c_router(write({"routers": logits}), make_dit(), solver="ddim", num_evaluations=6, threshold=0.5)
