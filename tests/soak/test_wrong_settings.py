"""Wrong settings through whole commands: what the rules refuse, and what they allow but no machine or file has."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from cheap import commands
from forked import run
from test_kills import inputs  # noqa: F401 - a fixture
from wrong_settings import cases

from l2c.commands.frame.table import COMMANDS
from l2c.io.names import as_text

HUGE = 2**31 - 1
ODD = {
    "train": [
        *("trainer.accelerator=zzz", "trainer.strategy=zzz", "trainer.devices=1000", "trainer.devices=[0]"),
        *(
            *(f"trainer.precision={name}-true" for name in ("16", "bf16", "64")),
            f"data.num_trajectories={10**6}",
            "router.init=1e30",
        ),
        *("router.learning_rate=1e30", "router.learning_rate=1e-300", "router.penalty=1e30", "router.clamp=1e30"),
        *("router.clamp=1e-300", "trainer.gradient_clip_val=1e-300", "model.schedule=zzz", "model.prediction=zzz"),
        *("model.first_timestep=1e30", "model.null_label=99", "model.sampling={a: 1}", "model.sampling=zzz"),
        *("model.args.depth=-1", "model.args.depth=0", "model.args.num_heads=0", "model.args.num_heads=5"),
        *("++model.args.zzz=1", "model.args.input_size=-1", "model.args.input_size=7", "model.args.patch_size=0"),
        *("model.args.in_channels=0", "model.checkpoint=/dev/zero", "model.checkpoint=/tmp", "resume=/dev/zero"),
        *("solver.options={eta: 1}", "solver.options={shift: 3}", "solver.name=flow_euler", "solver.name=pipeline"),
        *("solver.num_evaluations=1", "solver.cfg_scale=1000", f"trainer.accumulate_grad_batches={HUGE}"),
        *("trainer.accumulate_grad_batches=3", f"checkpoint_every_n_steps={HUGE}", "router.threshold=1"),
    ],
    "correct": [
        *("graph=zzz", "graph=/dev/zero", "checkpoint=zzz", "slope_rate=1e30", "scale_shift_rate=1e30"),
        *("accelerator=zzz", "resume=/dev/zero", "cfg_scale=1000", "+solver.name=ddpm", "solver.num_evaluations=3"),
    ],
    "sample": [
        *("graph=zzz", "graph=/dev/zero", "graph=/tmp", "checkpoint=zzz", "checkpoint=/tmp", "cache_device=zzz"),
        *("device=zzz", "device=meta", "device=cuda:99", f"labels=[{2**31 - 1}]", "labels=99", "labels=[]"),
        *("num_evaluations=1000", f"num_evaluations={HUGE}", "cfg_scale=1000", "precision=fp16", "cache_dtype=fp16"),
        *("hydra.run.dir=/dev/null/x", "hydra.run.dir=/proc/x"),
    ],
    "sample-many": [
        "trainer.num_nodes=3",
        "cache_device=zzz",
        "trainer.accelerator=zzz",
        "trainer.accelerator=gpu",
        f"shard_size={HUGE}",
    ],
    "evaluate": ["device=zzz", "num_threads=16", "reference=zzz", "reference=/dev/zero", "baselines=[]"],
    "compare": [
        *("budgets=[1e-9]", "budgets=[1e9x]", "budgets=[1e12]", "graphs={a: zzz}", "calibration=zzz"),
        *("calibration=/dev/zero", "calibration=[/tmp]", "solver.num_evaluations=1", "+methods.zzz=null"),
        *("methods.fewer_steps={solver: zzz}", f"+methods.interval={{n: {HUGE}}}"),
    ],
    "calibrate": [
        *("output=/tmp", "output=/dev/null", "output=/dev/null/x", "output=.", "solver.num_evaluations=1"),
        *("responses.num_probes=1000", "responses.max_age=1000", "changes.max_age=1000", "solver.options={eta: 1}"),
    ],
    "graph": [
        *("policy.n=1e30", "policy.n=1", f"policy.first={HUGE}", f"policy.last={HUGE}", f"policy.phase={HUGE}"),
        *("budget=1e-9", "budget=1e9x", "budget=1e12", "solver.num_evaluations=1", "calibration=/dev/zero"),
    ],
    "benchmark": [
        *("graph=zzz", "graph=/dev/zero", "graph=/tmp", "checkpoint=/tmp", "device=zzz", "device=meta"),
        *(
            "device=cuda:99",
            "cfg_scale=1000",
            "cache_device=zzz",
            f"batch_sizes=[{HUGE}]",
            "mode=[captured]",
            "matmul=[onednn]",
        ),
        *("baseline=published", "keep=0", "computed=[]", f"computed=[{HUGE}]", "hydra.run.dir=/proc/x"),
    ],
    "encode": ["images=zzz", "images=/dev/null", "vae=/tmp", "image_size=9", "output=/dev/null/x"],
    "import": [
        *("file=zzz", "file=/dev/zero", "file=/tmp", "output=/tmp", "output=/dev/null", "checkpoint=zzz"),
        *("num_evaluations=3", f"num_evaluations={HUGE}", "threshold=0", "threshold=1"),
    ],
    "train-backbone": [
        *("output=/tmp", "output=/dev/null", "learning_rate=1e30", "learning_rate=1e-300", "weight_decay=1e30"),
        *(f"warmup_steps={HUGE}", "decay_share=1e-300", "min_snr_gamma=1e30", "min_snr_gamma=1e-300", "ema_decay=0"),
        *("gradient_clip=1e-300", "accelerator=zzz", "accelerator=gpu", "resume=/dev/zero", "dataset=folder"),
        *("dataset_options={folder: zzz}", "label_dropout=1"),
    ],
    "train-classifier": ["output=/tmp", "output=/dev/null", "learning_rate=1e30", "learning_rate=1e-300"],
}
IN_SUITE = {
    "calibrate": ["output=/dev/null"],
    "train": ["model.args.num_heads=5", "trainer.devices=1000", "trainer.precision=bf16-true"],
    "sample-many": ["trainer.num_nodes=3"],
}


def line_with(cheap, setting):
    name = setting.lstrip("+~").partition("=")[0]
    kept = [part for part in cheap.line if part.lstrip("+~").partition("=")[0] != name]
    plain = setting[0] in "+~" or name.startswith("hydra.")
    return [*kept, setting if plain else f"++{setting}"]


@pytest.mark.parametrize("name", ODD)
def test_odd_settings_end_well_or_in_one_sentence(name, tmp_path, inputs, pytestconfig, counted):  # noqa: F811
    chosen = ODD[name] if pytestconfig.getoption("--soak") else IN_SUITE.get(name, [])
    if not chosen:
        pytest.skip("a part of make soak alone")
    refused, wrong = 0, []
    for i, setting in enumerate(chosen):
        ended = run(line_with(commands(inputs)[name], setting), tmp_path / str(i), memory=6 * 2**30)
        refused += ended.sentence is not None
        if ended.code and not ended.sentence:
            wrong.append((setting, ended.code, ended.err[-600:]))
    counted(tried=len(chosen), refused=refused, wrong=len(wrong))
    assert not wrong


def override(path, value):
    """Return a setting as Hydra reads it."""
    if isinstance(value, Mapping):
        text = "{" + ",".join(f"{name}: {as_text(inner)}" for name, inner in value.items()) + "}"
    else:
        text = "''" if value == "" else as_text(value)
    return f"++{'.'.join(path)}={text}"


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command.hydra])
def test_what_the_rules_refuse_ends_in_one_sentence(name, tmp_path, inputs, times, counted):  # noqa: F811
    module, most = COMMANDS[name].module, times(1 if name == "graph" else 0, 100)
    refusable = [case for case in cases() if case[0] == module and "\0" not in str(case[-1])]
    wrong = []
    chosen = refusable[:: max(1, len(refusable) // most)]
    for _, choices, _, path, value in chosen:
        line = [name, *choices, override(path, value), "hydra.run.dir=run"]
        ended = run(line, tmp_path, seconds=60)
        if not ended.sentence or any(tmp_path.iterdir()):
            wrong.append((line, ended.code, ended.err[-600:], sorted(tmp_path.iterdir())))
    counted(tried=len(chosen), wrong=len(wrong))
    assert not wrong
