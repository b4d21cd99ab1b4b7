"""Modules as their authors write them: compiled, averaged, with outputs of any class; mistakes are noticed."""

from __future__ import annotations

import dataclasses
from collections import namedtuple

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import l2c
from l2c.backbones.backbone import fingerprint
from l2c.calibration.cost import count_macs
from l2c.diffusion import NoiseSchedule
from l2c.policies.context import PolicyContext

Pair = namedtuple("Pair", "hidden_states other")


@dataclasses.dataclass
class Found:
    hidden_states: torch.Tensor
    other: object = None


KINDS = {
    "tensor": lambda h: h,
    "tuple": lambda h: (h, "other"),
    "list": lambda h: [h],
    "dict": lambda h: {"hidden_states": h, "other": 3},
    "named tuple": lambda h: Pair(h, 3),
    "dataclass": lambda h: Found(h, 3),
}


class Block(nn.Module):
    def __init__(self, width, kind):
        super().__init__()
        self.attn, self.mlp = nn.Linear(width, width), nn.Linear(width, width)
        self.kind = KINDS[kind]

    def forward(self, *, hidden_states, scale=1.0):
        hidden_states = hidden_states + self.attn(hidden_states) * scale
        return self.kind(hidden_states + self.mlp(torch.tanh(hidden_states)))


class Video(nn.Module):
    """Blocks in a dictionary, called by keyword on (N, F, H, W, D), whose outputs are of any class."""

    def __init__(self, kind="tensor", width=6):
        super().__init__()
        self.embed, self.time, self.out = nn.Linear(4, width), nn.Linear(1, width), nn.Linear(width, 4)
        self.blocks = nn.ModuleDict({f"b{i}": Block(width, kind) for i in range(3)})
        self.kind = KINDS[kind]

    def forward(self, x, t):
        h = self.embed(x.movedim(1, -1)) + self.time(t[:, None] / 1000)[:, None, None, None]
        for block in self.blocks.values():
            output = block(hidden_states=h)
            h = output if isinstance(output, torch.Tensor) else _member(output)
        return self.kind(self.out(h).movedim(-1, 1))


def _member(output):
    if isinstance(output, dict):
        return output["hidden_states"]
    return output.hidden_states if hasattr(output, "hidden_states") else output[0]


def video(kind="tensor"):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Video(kind).eval()


def wrapped(module, layers=("blocks.*.attn", "blocks.*.mlp"), **given):
    return l2c.wrap(module, layers, input_shape=(4, 2, 3, 3), name="Video", **given)


@pytest.fixture
def noise():
    return torch.randn(2, 4, 2, 3, 3, generator=torch.Generator().manual_seed(1))


def alternating(net):
    sampler = l2c.Sampler(net, solver="ddim", num_evaluations=4)
    rows = [[e % 2 == 0 or i % 2 == 0 for i in range(net.num_layers)] for e in range(4)]
    return l2c.CacheGraph(
        rows=rows, layers=net.layer_names, timesteps=sampler.timesteps, model="Video", solver="ddim"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_whole_blocks_may_return_what_they_like(kind, noise):
    module, blocks = video(kind), {"layers": ["blocks.*"], "residual": ["blocks.*"]}
    net = wrapped(module, **blocks)
    t = torch.full((2,), 500.0)
    with torch.no_grad():
        assert torch.equal(net.forward_cached(noise, t, None, (True,) * 3)[0], _of(module(noise, t)))
        _, cache = net.forward_cached(noise, t, None, (True,) * 3)
        reused, _ = net.forward_cached(noise + 1, t, None, (True, False, True), cache)
        skipped = module.blocks["b1"]  # by hand: what the block added before is added to its new input
        before = module.embed(noise.movedim(1, -1)) + module.time(t[:, None] / 1000)[:, None, None, None]
        before = _tensor(module.blocks["b0"](hidden_states=before))
        added = _tensor(skipped(hidden_states=before)) - before
        module.blocks["b1"] = _Adds(added)
        torch.testing.assert_close(reused, _of(module(noise + 1, t)))
        module.blocks["b1"] = skipped


class _Adds(nn.Module):
    def __init__(self, added):
        super().__init__()
        self.added = added

    def forward(self, hidden_states):
        return hidden_states + self.added


def _tensor(output):
    return output if isinstance(output, torch.Tensor) else _member(output)


_of = _tensor


def compiled_in_place(module):
    for block in module.blocks.values():
        block.compile(fullgraph=True, backend="eager")
    module.compile(backend="eager")
    return module


def compiled_layers(module):
    for block in module.blocks.values():
        block.attn.compile(backend="eager")
        block.mlp = torch.compile(block.mlp, backend="eager")
    return module


def compiled_blocks(module):
    for name in list(module.blocks):
        module.blocks[name] = torch.compile(module.blocks[name], backend="eager", fullgraph=True)
    return torch.compile(module, backend="eager")


@pytest.mark.parametrize("made", [compiled_in_place, compiled_layers, compiled_blocks, AveragedModel])
def test_compiled_and_averaged_modules_are_the_plain_one(made, noise):
    plain, other = wrapped(video()), wrapped(made(video()))
    assert other.layer_names == plain.layer_names
    assert fingerprint(other) == fingerprint(plain)  # so that a graph of one fits the other
    assert count_macs(other) == count_macs(plain)
    graph = alternating(plain).replace(fingerprint=fingerprint(plain))
    images = [l2c.Sampler(net, graph=graph).sample(noise=noise) for net in (plain, other, other)]
    assert torch.equal(images[0], images[1])
    assert torch.equal(images[0], images[2])
    t = torch.full((2,), 500.0)
    assert torch.equal(other(noise, t), plain(noise, t))  # after the evaluations its calls are its own


def test_whole_blocks_taken_for_branches_are_noticed(caplog):
    net = wrapped(video("dataclass"), layers=["blocks.*"])
    with torch.no_grad():
        count_macs(net)
    (record,) = [record.getMessage() for record in caplog.records if "residual" in record.getMessage()]
    assert record.startswith("3 of the 3 layers of Video return their input plus what they add to it")
    assert record.endswith("residual=['blocks.b*']")
    caplog.clear()
    count_macs(wrapped(video(), layers=["blocks.*"], residual=["blocks.*"]))
    count_macs(wrapped(video()))  # branches
    assert "residual" not in caplog.text


class Narrow(Video):
    def forward(self, x, t):
        return super().forward(x, t)[:, :1]


def test_mistakes_in_modules_are_one_sentence(noise):
    t = torch.full((2,), 500.0)
    module = video()
    net = wrapped(module)
    module.train()
    with pytest.raises(ValueError, match=r"Video is in training mode, .* call .eval\(\) on it"):
        net.forward_cached(noise, t, None, (True,) * 6)
    with pytest.raises(ValueError, match=r"returns \(2, 1, 2, 3, 3\) for an input of shape \(2, 4, 2, 3, 3\)"):
        wrapped(Narrow().eval())(noise, t)
    with pytest.raises(ValueError, match=r"got one of torch.jit \(Linear\), inside which nothing can be reused"):
        l2c.wrap(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), ["weight"])
    with pytest.raises(ValueError, match="OptimizedModule; give the backbone that was compiled"):
        l2c.Sampler(torch.compile(net.eval(), backend="eager"), solver="ddim", num_evaluations=2)
    with torch.device("meta"):
        nowhere = Video()
    with pytest.raises(ValueError, match="the weights of Video are on the device meta"):
        l2c.Sampler(wrapped(nowhere), solver="ddim", num_evaluations=2).sample(noise=noise)
    with pytest.warns(UserWarning, match="those of a wrapped module are its own; compile its layers themselves"):
        l2c.Sampler(wrapped(video()), solver="ddim", num_evaluations=2).compile(1, progress=False)


def test_a_server_that_has_inference_mode_on_may_calibrate():
    sampler = l2c.Sampler(wrapped(video()), solver="ddim", num_evaluations=4)
    few = {"num_trajectories": 2, "true_errors": 0, "responses": {"num_probes": 1}}
    plain = l2c.Calibration.measure(sampler, **few)
    with torch.inference_mode():
        calibration = l2c.Calibration.measure(sampler, **few)
    assert torch.equal(calibration.tensors["responses"], plain.tensors["responses"])
    assert PolicyContext.of(sampler, calibration).calibration is not None
    assert "ddim, 4 evaluations, guidance cfg none, uncached" in repr(sampler)


def test_a_flow_predicts_a_flow_unless_another_prediction_is_given():
    assert wrapped(video(), schedule="flow").conventions.prediction == "flow"
    assert wrapped(video()).conventions.prediction == "noise"
    assert wrapped(video(), schedule="flow", prediction="noise").conventions.prediction == "noise"


@pytest.mark.parametrize("betas", ["cosine", torch.linspace(1e-3, 0.2, 100)])
def test_a_schedule_of_ones_own_is_followed_and_kept(betas, noise, tmp_path):
    """DDIM by hand, from betas that are no published ones; the calibration carries them to other steps."""
    module = video()
    net = wrapped(module, schedule=betas, prediction="data")
    sampler = l2c.Sampler(net, solver="ddim", num_evaluations=5)
    own = NoiseSchedule("cosine").betas if isinstance(betas, str) else betas.double().numpy()
    level = torch.cumprod(1 - torch.as_tensor(own), 0)
    x, times = noise, [int(t) for t in sampler.timesteps]
    assert times[0] == len(own) - 1
    with torch.no_grad():
        for t, after in zip(times, [*times[1:], None], strict=True):
            x_0 = module(x, torch.full((2,), float(t)))
            now, then = level[t], torch.ones(()) if after is None else level[after]
            eps = (x - now.sqrt() * x_0) / (1 - now).sqrt()
            x = (then.sqrt() * x_0 + (1 - then).sqrt() * eps).float()
    torch.testing.assert_close(sampler.sample(noise=noise), x, rtol=1e-3, atol=1e-3)
    few = {"num_trajectories": 2, "true_errors": 0, "responses": {"num_probes": 1}}
    calibration = l2c.Calibration.measure(sampler, **few)
    calibration.save(tmp_path / "own.safetensors")
    graph = l2c.Calibration.load(tmp_path / "own.safetensors").graph(0.6, num_steps=8)
    assert graph == calibration.graph(0.6, num_steps=8)
    assert graph.timesteps == l2c.Sampler(net, graph=graph).timesteps


def test_layers_that_hand_on_or_pass_no_gradients_are_counted_as_they_are(caplog):
    class Layer(nn.Module):
        def __init__(self, numpy):
            super().__init__()
            self.linear, self.drop, self.numpy = nn.Linear(6, 6), nn.Dropout(), numpy

        def forward(self, h):
            if self.numpy and h.requires_grad:
                h.numpy()  # as kernels without a backward pass stop
            return self.linear(h)

    class Net(nn.Module):
        def __init__(self, numpy):
            super().__init__()
            self.blocks = nn.ModuleList(Layer(numpy) for _ in range(2))

        def forward(self, x, t):
            for block in self.blocks:
                x = x + block.drop(block(x))
            return x

    def costs(numpy):
        return count_macs(
            l2c.wrap(
                Net(numpy).eval().requires_grad_(False),
                layers=["blocks.*.linear", "blocks.*.drop"],
                timestep="t",
                input_shape=(2, 6),
            )
        )

    assert costs(True) == costs(False)
    assert "residual" not in caplog.text


def test_a_module_without_parameters_is_one_sentence():
    with pytest.raises(ValueError, match="has no parameters"):
        l2c.wrap(nn.Sequential(nn.Tanh(), nn.Tanh()), layers=["0"], timestep="input")
