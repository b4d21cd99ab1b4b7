"""State belongs to a trajectory: threads, guidance branches without names, copies."""

from __future__ import annotations

import contextlib
import copy
import inspect
import pickle
import threading
import weakref

import pytest
import torch

pytest.importorskip("diffusers", reason="needs the package diffusers: pip install '.[diffusers]'")

pytest.importorskip("transformers", reason="needs the package transformers: pip install '.[diffusers]'")

from diffusers import DDIMScheduler, StableDiffusionPanoramaPipeline
from test_pipeline_composition import graph_of as graph_of_call
from tiny_pipelines import STEPS, tiny_pipeline

import l2c
from l2c.integrations.diffusers import applied, apply, remove
from l2c.integrations.diffusers.calls import call_of, called_elsewhere
from l2c.integrations.diffusers.histories import Branches
from l2c.integrations.diffusers.layers import find_layers, make_layer


def in_threads(*functions):
    """Run functions at once, return their results or errors."""
    results = [None] * len(functions)

    def run(place, function):
        try:
            with torch.no_grad():
                results[place] = function()
        except ValueError as error:
            results[place] = error

    threads = [threading.Thread(target=run, args=item) for item in enumerate(functions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def other_prompt(family):
    conditions = {**family.conditions, "encoder_hidden_states": torch.randn(2, 7, 24)}
    return type(family)(family.model, family.x.flip(0), conditions, family.timesteps)


@torch.no_grad()
def test_a_model_is_right_in_two_threads(make_family, family_graph):
    family = make_family("pixart")
    other = other_prompt(family)
    apply(family.model, family_graph(family))
    expected = [family.trajectory(), other.trajectory()]
    for _ in range(5):
        for ours, theirs in zip(in_threads(family.trajectory, other.trajectory), expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_second_call_at_once_is_refused_and_the_first_is_right(make_pipeline, random_rows):
    pipe = make_pipeline("dit")
    layers = find_layers(pipe.transformer)
    pipe.scheduler.set_timesteps(4)
    graph = l2c.CacheGraph(
        rows=random_rows(4, len(layers), seed=1),
        layers=layers,
        timesteps=tuple(pipe.scheduler.timesteps.tolist()),
        model="DiTTransformer2DModel",
        solver="ddim",
    )

    def call():
        generator = torch.Generator().manual_seed(0)
        return pipe([3], num_inference_steps=4, generator=generator, output_type="np").images

    with applied(pipe, graph):
        alone = call()
        first, refused = interrupted(pipe, call, call, at=1)
        assert "is being called in another thread" in str(refused)
        assert (first == alone).all()
        assert (call() == alone).all()


def interrupted(pipe, first, second, *, at):
    """Return what a call makes during one of whose steps another thread makes one, and what that one makes."""
    began, goes_on, steps = threading.Event(), threading.Event(), []
    step = pipe.scheduler.step

    def step_and_wait(*args, **kwargs):
        steps.append(1)
        if len(steps) == at:
            began.set()
            goes_on.wait(120)
        return step(*args, **kwargs)

    def other():
        began.wait(120)
        try:
            return second()
        finally:
            goes_on.set()

    pipe.scheduler.step = step_and_wait
    try:
        return in_threads(first, other)
    finally:
        del pipe.scheduler.step


def drawn_by(tiny, **changes):
    return tiny.draw(generator=torch.Generator().manual_seed(1), output_type="latent", **changes)


@pytest.mark.parametrize("later", [False, True])
def test_a_scheduler_that_remembers_steps_is_not_set_anew_by_a_call_that_is_refused(later):
    tiny = tiny_pipeline("wan21")
    pipe, kind = tiny.pipe, type(tiny.pipe.scheduler)
    pipe.scheduler.set_timesteps(STEPS)
    layers = find_layers(pipe.transformer)
    graph = l2c.CacheGraph(
        rows=((True,) * len(layers),) * STEPS,
        layers=layers,
        timesteps=tuple(pipe.scheduler.timesteps.tolist()),
        model="WanTransformer3DModel",
        solver="UniPCMultistepScheduler",
    )
    with applied(pipe, graph):
        if later:  # put in after the graph was applied
            pipe.scheduler = kind.from_config(pipe.scheduler.config)
        alone = drawn_by(tiny)
        first, refused = interrupted(pipe, lambda: drawn_by(tiny), lambda: drawn_by(tiny), at=2)
        assert "WanPipeline is being called in another thread" in str(refused)
        assert torch.equal(first, alone)
        first, refused = interrupted(pipe, lambda: drawn_by(tiny), lambda: drawn_by(tiny, guidance_scale=9.0), at=2)
        assert "WanPipeline is being called in another thread" in str(refused)
        assert str(first).startswith("another thread called WanPipeline with other arguments (guidance_scale")
        assert torch.equal(drawn_by(tiny), alone)


def test_a_scheduler_under_a_graph_is_copied_as_it_would_be_without(make_pipeline, random_rows):
    pipe = make_pipeline("dit")
    kind = type(pipe.scheduler)
    apply(pipe, graph_of(pipe, random_rows, 1))
    assert isinstance(pipe.scheduler, kind)
    assert {type(pipe.scheduler)} == {kind}  # some pipelines compare types
    assert inspect.signature(pipe.scheduler.set_timesteps) == inspect.signature(kind(beta_start=0.1).set_timesteps)
    for made in (copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))):
        copied = made(pipe.scheduler)
        assert type(copied) is kind
        copied.set_timesteps(3)
        assert (len(copied.timesteps), len(pipe.scheduler.timesteps)) == (3, 4)
    remove(pipe)
    assert type(pipe.scheduler) is kind


@torch.no_grad()
def test_a_branch_that_is_dropped_half_way(make_family, family_graph):
    """The unconditional branch runs first, and no more from the third evaluation on."""
    family = make_family("pixart")
    other = other_prompt(family)
    apply(family.model, family_graph(family))
    x = family.x
    alone = [family(x * (1 - 0.1 * e), t) for e, t in enumerate(family.timesteps)]
    remove(family.model)
    apply(family.model, family_graph(family))
    for e, t in enumerate(family.timesteps):
        if e < 3:
            other(x * (1 - 0.1 * e), t)
        assert torch.equal(family(x * (1 - 0.1 * e), t), alone[e])


def test_branches_are_known_by_conditions_that_stay():
    text, other, masks = torch.ones(2), torch.zeros(2), torch.ones(3)
    branches = Branches(1)

    def of(e, prompt):
        return branches.given(e, {"text": prompt.clone(), "mask": masks, "control": torch.randn(2)})

    cond, uncond = of(0, text), of(0, other)
    assert cond is not uncond
    for history in (cond, uncond):
        history.evaluation = 0
    assert of(1, other) is uncond  # in another order
    assert of(1, text) is cond
    assert of(2, text) is cond
    assert of(3, torch.full((2,), 7.0)) not in (cond, uncond)  # a third one begins
    assert of(0, text) is not cond  # another trajectory


def test_copies_are_refused_in_a_sentence(make_pipeline, make_family, family_graph):
    family = make_family("dit")
    apply(family.model, family_graph(family))
    for copied in (copy.deepcopy, pickle.dumps):
        with pytest.raises(ValueError, match="cannot be copied or pickled"):
            copied(family.model)
    remove(family.model)
    copy.deepcopy(family.model)


def test_a_thread_that_only_starts_is_in_no_call(make_pipeline, monkeypatch):
    """Between `start` and its first step a thread has no number, which once stood for the caller's own."""
    pipe = make_pipeline("dit")
    seen = []
    step = pipe.scheduler.step

    def look(*args, **kwargs):
        with monkeypatch.context() as patch:
            patch.setattr(threading, "enumerate", lambda: [threading.current_thread(), threading.Thread()])
            seen.append((called_elsewhere(pipe), call_of(pipe) is not None))
        return step(*args, **kwargs)

    pipe.scheduler.step = look
    pipe([3], num_inference_steps=2, output_type="np")
    assert seen == [(False, True)] * 2


def alike(pipe):
    """Return a pipeline of the same parts with a scheduler of its own."""
    made = type(pipe)(**{**pipe.components, "scheduler": type(pipe.scheduler).from_config(pipe.scheduler.config)})
    made.set_progress_bar_config(disable=True)
    return made


def picture(pipe, seed, steps=4):
    generator = torch.Generator().manual_seed(seed)
    return torch.from_numpy(pipe([3], num_inference_steps=steps, generator=generator, output_type="np").images)


def graph_of(pipe, random_rows, seed):
    layers = find_layers(pipe.transformer)
    pipe.scheduler.set_timesteps(4)
    times = tuple(pipe.scheduler.timesteps.tolist())
    rows = random_rows(4, len(layers), seed=seed)
    return l2c.CacheGraph(rows=rows, layers=layers, timesteps=times, model="DiTTransformer2DModel", solver="ddim")


def in_step(pipes):
    """Make pipelines wait for each other before each of their steps."""
    barrier = threading.Barrier(len(pipes))

    def stepping(step):
        def wait(*args, **kwargs):
            barrier.wait(120)
            return step(*args, **kwargs)

        return wait

    for pipe in pipes:
        pipe.scheduler.step = stepping(pipe.scheduler.step)


def test_pipelines_with_one_model_follow_their_own_schedulers_in_threads(make_pipeline, random_rows):
    pipe = make_pipeline("dit")
    pipes = [pipe, alike(pipe)]
    with applied(pipe, graph_of(pipe, random_rows, 1)):
        alone = [picture(one, seed) for seed, one in enumerate(pipes)]
        in_step(pipes)
        together = in_threads(lambda: picture(pipes[0], 0), lambda: picture(pipes[1], 1))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_views_of_one_step_are_reused_each_by_itself():
    """MultiDiffusion evaluates parts of a wide picture one after the other, each with the prompt of all."""
    made, runs = tiny_pipeline("sd"), []
    pipe = StableDiffusionPanoramaPipeline(**made.pipe.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    pipe.get_views = lambda *given, **named: [(0, 8, w, w + 8) for w in (0, 4, 8)]
    layers = find_layers(pipe.unet)
    pipe.scheduler.set_timesteps(STEPS)
    times = pipe.scheduler.timesteps.tolist()
    rows = [[e in (0, 2)] * len(layers) for e in range(STEPS)]
    graph = l2c.CacheGraph(
        rows=rows, layers=layers, timesteps=times, model="UNet2DConditionModel", solver="DDIMScheduler"
    )

    def draw():
        given = {"prompt": ["a red cat"], "height": 8 * pipe.vae_scale_factor, "width": 16 * pipe.vae_scale_factor}
        given |= {"num_inference_steps": STEPS, "generator": torch.Generator().manual_seed(0)}
        return pipe(**given, output_type="latent", guidance_scale=3.0, view_batch_size=1).images

    modules = [make_layer(pipe.unet, name) for name in layers]
    kept, views = {}, 3

    def by_hand(index, layer):
        def hook(module, args, kwargs, output):
            evaluation, view = divmod(len(runs) - 1, views)
            if evaluation in (0, 2):
                kept[index, view] = layer.form.branch(module, args, kwargs, output)
                return output
            return layer.form.stand_in(module, args, kwargs, kept[index, view])

        return layer.module.register_forward_hook(hook, with_kwargs=True)

    hooks = [by_hand(index, layer) for index, layer in enumerate(modules)]
    hooks.append(pipe.unet.register_forward_pre_hook(lambda *_: runs.append(1)))
    expected = draw()
    for hook in hooks:
        hook.remove()
    with applied(pipe, graph):
        assert torch.equal(draw(), expected)


def test_what_a_broken_call_held_is_freed_and_the_next_one_begins_anew(make_pipeline, random_rows, monkeypatch):
    pipe = make_pipeline("dit")

    def breaking(*args, **kwargs):
        raise KeyError("stop")

    with applied(pipe, graph_of(pipe, random_rows, 1)):
        alone = picture(pipe, 0)
        for _ in range(3):  # the frame of each call may get the place of the one before
            generator = torch.Generator().manual_seed(1)
            held = weakref.ref(generator)
            with monkeypatch.context() as patch, contextlib.suppress(KeyError):
                patch.setattr(pipe.scheduler, "step", breaking)
                pipe([3], num_inference_steps=4, generator=generator, output_type="np")
            del generator
            assert held() is None
            assert torch.equal(picture(pipe, 0), alone)


def test_a_graph_is_not_changed_under_a_call_of_another_thread(make_pipeline, random_rows):
    pipe = make_pipeline("dit")
    graph, began, goes_on = graph_of(pipe, random_rows, 1), threading.Event(), threading.Event()
    step = pipe.scheduler.step

    def wait(*args, **kwargs):
        began.set()
        goes_on.wait(120)
        return step(*args, **kwargs)

    def change(function):
        began.wait(120)
        try:
            return function()
        finally:
            goes_on.set()

    for function in (lambda: apply(pipe, graph), lambda: remove(pipe)):  # the second finds it applied
        pipe.scheduler.step = wait
        called, refused = in_threads(lambda: picture(pipe, 0), lambda one=function: change(one))
        assert "is being called in another thread" in str(refused)
        pipe.scheduler.step = step
        assert torch.equal(called, picture(pipe, 0))
        began.clear()
        goes_on.clear()
        remove(pipe)
        apply(pipe, graph)


def test_calls_of_a_model_before_the_timesteps_are_set(make_pipeline, caplog):
    """They compute everything; a call without evaluations is told of, one that goes on is not."""
    import diffusers

    class Looking(diffusers.DiTPipeline):
        def __call__(self, goes_on):
            x, label = torch.ones(1, 4, 8, 8), torch.tensor([3])
            looked = self.transformer(x, timestep=torch.tensor([7]), class_labels=label).sample
            if goes_on:
                self.scheduler.set_timesteps(2)
            for t in self.scheduler.timesteps if goes_on else ():
                x = x + self.transformer(x, timestep=t[None], class_labels=label).sample[:, :4]
            self.maybe_free_model_hooks()
            return looked, x

    pipe = make_pipeline("dit")
    pipe.__class__ = Looking
    pipe.scheduler.set_timesteps(2)
    layers = find_layers(pipe.transformer)
    plain, _ = pipe(True)
    graph = l2c.CacheGraph(
        rows=((True,) * len(layers), (False,) * len(layers)),
        layers=layers,
        timesteps=tuple(pipe.scheduler.timesteps.tolist()),
        model="DiTTransformer2DModel",
        solver="ddim",
    )
    with applied(pipe, graph):
        (looked, drawn), (again, once_more) = pipe(True), pipe(True)
        assert torch.equal(looked, plain)
        assert torch.equal(again, plain)
        assert torch.equal(drawn, once_more)
        assert not caplog.messages
        assert torch.equal(pipe(False)[0], plain)
    (message,) = caplog.messages
    assert message.startswith(
        "the pipeline set no timesteps in this call and called its model at none of the graph's (50"
    )


def test_nothing_is_left_on_schedulers_of_other_pipelines_on_the_model():
    """They carried the graph too; schedulers that were exchanged meanwhile are as before as well."""
    tiny = tiny_pipeline("sd")
    pipe, other = tiny.pipe, alike(tiny.pipe)
    others = type(tiny)(other, tiny.options, tiny.prompts, tiny.scale)
    plain, first = tiny.draw(), pipe.scheduler
    apply(pipe, graph_of_call(pipe, tiny.draw))
    assert torch.equal(others.draw(), tiny.draw())
    pipe.scheduler = type(first).from_config(first.config)
    tiny.draw()
    with_graph = [first, pipe.scheduler, other.scheduler]
    assert all(scheduler.__class__ is not DDIMScheduler for scheduler in with_graph)
    remove(pipe)
    for scheduler in with_graph:
        assert scheduler.__class__ is DDIMScheduler
        assert "_reset_stateful_cache" not in vars(scheduler)
    found = interrupted(other, others.draw, others.draw, at=1)
    assert all(torch.equal(image, plain) for image in found)


def test_any_guidance_is_for_the_pipeline_that_it_was_given_with():
    tiny = tiny_pipeline("sd")
    other = alike(tiny.pipe)
    graph = graph_of_call(tiny.pipe, tiny.draw).replace(cfg_scale=tiny.scale, guidance="cfg")
    with applied(other, graph, any_guidance=True):
        type(tiny)(other, tiny.options, tiny.prompts, tiny.scale).draw(guidance_scale=5.0)
        with pytest.raises(ValueError, match=r"made for cfg_scale"):
            tiny.draw(guidance_scale=5.0)


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_a_callback_may_draw_with_another_pipeline_on_the_model(name):
    """A preview has a trajectory of its own; the outer call's goes on as if it had not been."""
    tiny = tiny_pipeline(name)
    other = type(tiny)(alike(tiny.pipe), tiny.options, tiny.prompts, tiny.scale)
    previews = []

    def preview(pipe, step, t, kept):
        previews.append(other.draw(tiny.prompts[1]))
        return {}

    with applied(tiny.pipe, graph_of_call(tiny.pipe, tiny.draw)):
        expected, inner = tiny.draw(), other.draw(tiny.prompts[1])
        assert torch.equal(tiny.draw(callback_on_step_end=preview), expected)
        assert len(previews) == STEPS
        assert all(torch.equal(image, inner) for image in previews)
        assert torch.equal(tiny.draw(), expected)
