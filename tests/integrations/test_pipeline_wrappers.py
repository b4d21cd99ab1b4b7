"""Pipelines whose models lie inside of something that calls them: compiled ones, and those of peft."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("diffusers", reason="needs the package diffusers: pip install '.[diffusers]'")
pytest.importorskip("transformers", reason="needs the package transformers: pip install '.[diffusers]'")

from tiny_pipelines import STEPS, tiny_pipeline

import l2c
from l2c.integrations.diffusers import applied, apply, denoisers_of, remove
from l2c.integrations.diffusers.denoisers import unwrapped, without_wrappers
from l2c.integrations.diffusers.layers import find_layers
from l2c.integrations.diffusers.pipeline_backbone import pipeline_backbone
from l2c.integrations.diffusers.placing import root_of
from l2c.integrations.diffusers.recorded.turns import graphs_of
from l2c.sampling.binding import binding_of


def never(graph, inputs):
    """Stand for a compiler, at moments when nothing must be compiled."""
    raise AssertionError("compiled while the pipeline was read")


class Tuned(nn.Module):
    """A model in the form of peft's."""

    def __init__(self, model):
        super().__init__()
        self.base_model = nn.Module()
        self.base_model.model = model

    def get_base_model(self):
        return self.base_model.model

    def forward(self, *args, **kwargs):
        return self.base_model.model(*args, **kwargs)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base_model").model, name)


@pytest.mark.parametrize("name", ["flux", "wan22"])
@pytest.mark.parametrize("wrap", [lambda model: torch.compile(model, backend=never), Tuned])
def test_a_wrapped_model_is_read_as_itself(name, wrap):
    tiny = tiny_pipeline(name)
    pipe = tiny.pipe
    models = denoisers_of(pipe)
    wrapped = {part: wrap(model) for part, model in models.items()}
    vars(pipe).update(wrapped)
    assert denoisers_of(pipe) == models
    backbone = pipeline_backbone(
        pipe, tiny.prompts[:1], num_evaluations=4, guidance_scale=tiny.scale, options=tiny.options
    )
    assert {part: vars(pipe)[part] for part in models} == wrapped
    assert backbone.module is next(iter(models.values()))
    sampler = l2c.Sampler(backbone, solver="pipeline", num_evaluations=4, cfg_scale=tiny.scale)
    binding = binding_of(backbone, sampler.solver, weights_bound=True, guidance=sampler.guidance)
    with applied(pipe, graphs_of(l2c.CacheGraph.blank(binding), backbone)):
        assert all(root_of(model) is not None for model in models.values())
        with without_wrappers(pipe):
            tiny.draw()
    assert all(root_of(model) is None for model in models.values())


def test_a_model_whose_blocks_ran_compiled_is_read_as_it_was_written():
    tiny = tiny_pipeline("dit")
    pipe, compiled = tiny.pipe, []
    plain = pipeline_backbone(pipe, tiny.prompts[:1], num_evaluations=2, options=tiny.options)

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    for block in pipe.transformer.transformer_blocks:
        block.compile(backend=backend, fullgraph=True)
    tiny.draw(num_inference_steps=2)
    before = len(compiled)
    read = pipeline_backbone(pipe, tiny.prompts[:1], num_evaluations=2, options=tiny.options)
    assert read.layer_names == plain.layer_names
    assert len(compiled) == before > 0
    torch._dynamo.reset()


def test_layers_in_compiled_blocks_have_the_names_of_plain_ones(random_rows):
    tiny = tiny_pipeline("dit")
    model, layers = tiny.pipe.transformer, find_layers(tiny.pipe.transformer)
    tiny.pipe.scheduler.set_timesteps(STEPS)
    given = {"model": type(model).__name__, "solver": type(tiny.pipe.scheduler).__name__}
    given["timesteps"] = tuple(tiny.pipe.scheduler.timesteps.tolist())
    graph = l2c.CacheGraph(rows=random_rows(STEPS, len(layers)), layers=layers, **given)
    with applied(tiny.pipe, graph):
        expected = tiny.draw()

    blocks = model.transformer_blocks
    blocks[0] = torch.compile(blocks[0], backend="eager")
    blocks[1].ff = torch.compile(blocks[1].ff, backend="eager")
    assert find_layers(model) == layers
    read = pipeline_backbone(tiny.pipe, tiny.prompts[:1], num_evaluations=2, options=tiny.options)
    assert read.layer_names == layers
    older = graph.replace(layers=[name.replace("blocks.0.", "blocks.0._orig_mod.") for name in layers])
    for named in (graph, older):
        with applied(tiny.pipe, named):
            assert torch.equal(tiny.draw(), expected)
    torch._dynamo.reset()


def test_wrappers_are_taken_off_one_after_the_other():
    model = nn.Linear(1, 1)
    assert unwrapped(model) is model
    assert unwrapped(nn.DataParallel(torch.compile(Tuned(model)))) is model


def test_copies_on_several_devices_are_refused():
    tiny = tiny_pipeline("flux")
    spread = nn.DataParallel(tiny.pipe.transformer)
    spread.device_ids = [0, 1]
    vars(tiny.pipe)["transformer"] = spread
    for refused in (lambda: apply(tiny.pipe, "dit_digits_ddim20"), lambda: remove(spread)):
        with pytest.raises(ValueError, match=r"runs as copies on 2 devices \(DataParallel\).* take the model inside"):
            refused()
