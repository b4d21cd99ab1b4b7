"""Pipelines that change states and predictions between scheduler and network: read off a run without the model."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers", reason="needs the package diffusers: pip install '.[diffusers]'")
pytest.importorskip("transformers", reason="needs the package transformers: pip install '.[diffusers]'")

from tiny_pipelines import STEPS, tiny_pipeline
from whole_pipelines import calibrated_as_drawn

import l2c
from l2c.calibration.measuring import _grid
from l2c.integrations.diffusers.pipeline_backbone import pipeline_backbone
from l2c.integrations.diffusers.recorded import preconditioning
from l2c.integrations.diffusers.recorded.preconditioning import fitted


def backbone_of(tiny, **options):
    return pipeline_backbone(
        tiny.pipe, tiny.prompts, num_evaluations=STEPS, guidance_scale=tiny.scale, options=tiny.options, **options
    )


def test_data_from_state_and_prediction():
    """Cosmos 2: with a picture in the first frame, under guidance."""
    tiny, ran = tiny_pipeline("cosmos2_video"), []
    assert calibrated_as_drawn(tiny) == "yes"
    tiny.pipe.transformer.proj_out.register_forward_hook(lambda *_: ran.append(1))
    backbone = backbone_of(tiny)
    # the first step plain and guided, one answer as a model, three that tell what moves: the run needs none
    assert len(ran) == 7
    sigma = tiny.pipe.scheduler.sigmas[:STEPS]
    around = backbone.own_solver.around
    assert around.start == pytest.approx(80.0)  # sigma_max
    for factors in (around.inputs, around.outputs, around.states):
        torch.testing.assert_close(torch.tensor(factors), 1 / (1 + sigma), rtol=1e-4, atol=1e-4)
    assert backbone.conventions.guidance == "uvit"
    assert _grid(backbone.own_solver) is None


def test_angles_and_noise():
    """Sana Sprint: our steps are the pipeline's, from the same noise at the start and at every step."""
    tiny = tiny_pipeline("sana_sprint")
    backbone = backbone_of(tiny, fewer_steps=True)
    assert {count: solver.around is not None for count, solver in backbone.fewer_steps.items()} == {2: True, 3: True}
    noise = torch.randn(1, *backbone.input_shape, generator=torch.Generator().manual_seed(3))
    theirs = tiny.draw(latents=noise, output_type="latent", generator=torch.Generator().manual_seed(1))
    label = torch.zeros(1, dtype=torch.long)
    with torch.no_grad():
        ours = backbone.own_solver.sample(
            lambda x, t: backbone(x, torch.full((1,), t), label),
            noise,
            generator=torch.Generator().manual_seed(1),
        )
    torch.testing.assert_close(ours / tiny.pipe.scheduler.config.sigma_data, theirs, rtol=1e-3, atol=1e-3)


def test_what_is_no_sum_is_refused(monkeypatch):
    tiny = tiny_pipeline("sana_sprint")
    monkeypatch.setattr(preconditioning, "fitted", lambda *_: None)
    with pytest.raises(ValueError, match=r"SanaSprintPipeline changes what its SanaTransformer2DModel predicts"):
        backbone_of(tiny)
    assert "step" not in vars(tiny.pipe.scheduler)
    assert "forward" not in vars(tiny.pipe.transformer)


def test_factors_of_a_sum():
    one, other = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(fitted(2 * one - 0.5 * other, one, other), (2.0, -0.5))
    assert fitted(one * other, one, other) is None
    assert fitted(one, one[:2]) is None


def test_a_graph_finds_its_rows_by_angles(tmp_path):
    tiny = tiny_pipeline("sana_sprint")
    graph = l2c.accelerate(
        tiny.pipe,
        tiny.prompts,
        policy="interval",
        num_inference_steps=STEPS,
        guidance_scale=tiny.scale,
        options=tiny.options,
        num_trajectories=2,
        folder=tmp_path,
    )
    assert graph.num_reused
    cached = tiny.draw()
    l2c.remove(tiny.pipe)
    assert not torch.equal(tiny.draw(), cached)
    with pytest.raises(ValueError, match="was made for num_evaluations 4, got 2"), l2c.applied(tiny.pipe, graph):
        tiny.draw(num_inference_steps=2)
