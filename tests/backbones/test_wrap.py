"""Any module as a backbone: our DiT, wrapped by name, is the DiT; a foreign one equals a loop by hand."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import l2c
from l2c.backbones.backbone import fingerprint
from l2c.backbones.dit import modulate, unpatchify
from l2c.calibration.changes import measure_changes
from l2c.calibration.cost import count_macs
from l2c.calibration.measurements import Measurements
from l2c.calibration.responses import measure_responses
from l2c.diffusion import Guidance, NoiseSchedule, make_solver
from l2c.policies.context import PolicyContext
from l2c.policies.registry import make_graph as apply_policy
from l2c.training.routers.objectives import LearningToCache
from l2c.training.routers.pairs import TrajectoryPairs
from l2c.training.routers.routers import Routers

LAYERS = ["blocks.*.attn", "blocks.*.mlp"]


class Mixer(nn.Module):
    """Three blocks of two branches on tokens, a whole block, and a branch on two streams."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(1, 6)
        self.blocks = nn.ModuleList(nn.ModuleDict({"a": nn.Linear(6, 6), "b": nn.Linear(6, 6)}) for _ in range(3))
        self.whole = nn.Linear(6, 6)
        self.tail = Whole(self.whole)
        self.joint = Joint()

    def forward(self, x, when):
        h = x.flatten(2).transpose(1, 2) + self.embed(when[:, None] / 1000)[:, None]  # (N, T, 6)
        for block in self.blocks:
            h = h + torch.tanh(when.mean() / 500) * block["a"](h)
            h = h + block["b"](torch.relu(h))
        left, right = self.joint(h[:, :2], h[:, 2:])
        h = self.tail(h + torch.cat([left, right], dim=1))
        return (h.transpose(1, 2).reshape(x.shape),)


class Whole(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, hidden_states):
        return hidden_states + self.inner(hidden_states)


class Joint(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, a, b):
        return self.left(a), self.right(b)


@pytest.fixture
def mixer():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Mixer()


@pytest.fixture
def wrapped(mixer):
    return l2c.wrap(
        mixer, ["blocks.*.?", "joint", "tail"], "when", residual=["tail"], input_shape=(6, 2, 4), name="mixer"
    )


@pytest.fixture
def twin(make_dit):
    """A DiT and itself, wrapped."""
    dit = make_dit(depth=3)
    options = {"labels": "y", "num_labels": 5, "null_label": 5, "guidance": "dit", "name": "DiT"}
    return dit, l2c.wrap(Plain(copy.deepcopy(dit)), LAYERS, "t", input_shape=dit.input_shape, **options)


class PlainBlock(nn.Module):
    def __init__(self, block):
        super().__init__()
        for name, child in block.named_children():
            self.add_module(name, child)

    def forward(self, x, c):
        s1, c1, g1, s2, c2, g2 = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + g1.unsqueeze(1) * self.attn(modulate(self.norm1(x), s1, c1))
        return x + g2.unsqueeze(1) * self.mlp(modulate(self.norm2(x), s2, c2))


class Plain(nn.Module):
    """A DiT whose forward takes (x, t, y) and whose blocks return x alone: what a foreign module looks like."""

    def __init__(self, dit):
        super().__init__()
        for name, child in dit.named_children():
            self.add_module(name, child)
        self.blocks = nn.ModuleList(map(PlainBlock, dit.blocks))
        self.pos_embed = dit.pos_embed
        self.patch_size, self.out_channels = dit.patch_size, dit.out_channels

    def forward(self, x, t, y):
        c = self.t_embedder(t) + self.y_embedder(y)
        x = self.x_embedder(x) + self.pos_embed
        for block in self.blocks:
            x = block(x, c)
        shift, scale = self.final_layer.adaLN_modulation(c).chunk(2, dim=1)
        x = self.final_layer.linear(modulate(self.final_layer.norm_final(x), shift, scale))
        return unpatchify(x, self.patch_size, self.out_channels)


def test_a_wrapped_dit_is_the_dit(twin, make_batch, random_rows, make_graph):
    dit, wrapped = twin
    assert wrapped.layer_names == dit.layer_names
    x, t, y = make_batch(dit)
    torch.testing.assert_close(wrapped(x, t, y), dit(x, t, y))
    cache = own = None
    for row in random_rows(5, dit.num_layers, seed=2):
        theirs, cache = dit.forward_cached(x, t, y, row, cache)
        ours, own = wrapped.forward_cached(x, t, y, row, own)
        torch.testing.assert_close(ours, theirs)
    soft = torch.linspace(0.1, 0.9, dit.num_layers, requires_grad=True)
    twin_soft = soft.detach().clone().requires_grad_(True)
    wrapped.forward_cached(x, t, y, soft, own)[0].square().sum().backward()
    dit.forward_cached(x, t, y, twin_soft, cache)[0].square().sum().backward()
    torch.testing.assert_close(soft.grad, twin_soft.grad, rtol=1e-4, atol=1e-4)
    graph = make_graph(dit, reuse=("hold", "hold", "linear") * 2)
    noise = torch.randn(3, *dit.input_shape)
    images = [l2c.Sampler(b, graph=graph, cfg_scale=2.0).sample([0, 1, 2], noise=noise) for b in (dit, wrapped)]
    torch.testing.assert_close(*images, rtol=1e-3, atol=1e-3)


def test_measured_macs_are_the_counted_ones(twin):
    dit, wrapped = twin
    assert count_macs(wrapped) == count_macs(dit)


def test_calibration_and_policies_are_those_of_the_dit(twin):
    noise, labels = torch.randn(2, 4, 8, 8), torch.tensor([0, 1])
    graphs = []
    for backbone in twin:
        sampler = l2c.Sampler(backbone, solver="ddim", num_evaluations=5, cfg_scale=2.0)
        tensors = measure_changes(sampler, labels, noise, batch_size=2)
        tensors["responses"] = measure_responses(sampler, labels, noise, num_probes=2, max_age=3, seed=0)
        calibration = Measurements(tensors, PolicyContext.of(sampler).blank.binding)
        context = PolicyContext.of(sampler, calibration)
        names = ("block_caching", "smoothcache", "gram", "interval", "faster_diffusion", "top_k", "late_first")
        graphs.append([apply_policy(name, context, budget=0.8).rows for name in names])
        graphs[-1].append(apply_policy("block_caching", context, budget=0.8, granularity="block").rows)
        graphs[-1].append(apply_policy("deepcache", context, budget=0.9).rows)
    assert graphs[0] == graphs[1]


def test_blocks_that_are_no_modules_of_their_own_are_left_out(wrapped):
    sampler = l2c.Sampler(wrapped, solver="ddim", num_evaluations=3)
    tensors = measure_changes(sampler, None, torch.randn(2, 6, 2, 4), batch_size=2)
    assert set(tensors) == {"layer_change"}  # a ModuleDict is never called
    assert (tensors["layer_change"][0, 1:] > 0).all()


def test_routers_train_on_it(wrapped):
    solver = make_solver("ddim", NoiseSchedule(), 4)
    routers = Routers((1, 3), wrapped.num_layers, init=0.0)
    pairs = TrajectoryPairs(wrapped, solver, (1, 3), guidance=Guidance("cfg"))
    objective = LearningToCache(wrapped, penalty=0.0, layer_weights=torch.ones(wrapped.num_layers))
    pair = pairs.draw((torch.randn(2, 6, 2, 4), torch.zeros(2, dtype=torch.long)), 0)
    objective(pair, routers.row(1)).loss.backward()
    gradient = next(p.grad for p in routers.parameters() if p.grad is not None)
    assert gradient.abs().min() > 0  # every layer, the whole block and the two streams among them
    assert all(p.grad is None for p in wrapped.parameters())


def test_a_foreign_module_equals_the_loop_by_hand(mixer, wrapped):
    x, t = torch.randn(2, 6, 2, 4), torch.tensor([500.0, 500.0])
    names = ["blocks.0.a", "blocks.0.b", "blocks.1.a", "blocks.1.b", "blocks.2.a", "blocks.2.b", "tail", "joint"]
    assert wrapped.layer_names == tuple(names)
    assert "8 layers of mixer" in wrapped.summary()
    assert "   6  tail  Whole" in wrapped.summary()
    output, cache = wrapped.forward_cached(x, t, None, (True,) * 8)
    assert torch.equal(output, mixer(x, t)[0])
    row = (True, False, False, True, True, True, False, False)
    reused, again = wrapped.forward_cached(x + 1, t - 100, None, row, cache, keep=(False, True) * 4)
    stored = {}
    hooks = [
        mixer.get_submodule(name).register_forward_hook(
            lambda m, a, o, n=name: stored.update({n: o if n != "tail" else o - a[0]})
        )
        for name in names
    ]
    mixer(x, t)
    for hook in hooks:
        hook.remove()
    hooks = [
        mixer.get_submodule(name).register_forward_hook(
            lambda m, a, o, n=name: stored[n] if n != "tail" else a[0] + stored[n]
        )
        for name, fresh in zip(names, row, strict=True)
        if not fresh
    ]
    torch.testing.assert_close(reused, mixer(x + 1, t - 100)[0])
    for hook in hooks:
        hook.remove()
    assert [entry is not None for entry in again] == [False, True] * 4
    assert torch.equal(output, mixer(x, t)[0])  # untouched


def test_keys_of_the_weights_stay(mixer, wrapped):
    assert list(wrapped.state_dict()) == list(mixer.state_dict())
    before = fingerprint(wrapped)
    wrapped.load_state_dict({k: v + 1 for k, v in mixer.state_dict().items()})
    assert fingerprint(wrapped) != before


def test_a_seven_layer_graph_runs(mixer):
    wrapped = l2c.wrap(mixer, ["blocks.*.?", "joint"], "when", input_shape=(6, 2, 4))
    sampler = l2c.Sampler(wrapped, solver="ddim", num_evaluations=4)
    context = PolicyContext.of(sampler)
    graph = apply_policy("interval", context, n=2)
    assert graph.num_layers == 7
    cached = l2c.Sampler(wrapped, graph=graph)
    noise = torch.randn(2, 6, 2, 4)
    assert not torch.equal(cached.sample(noise=noise), sampler.sample(noise=noise))


def test_bad_input_is_one_sentence(mixer, wrapped):
    with pytest.raises(ValueError, match=r"'blocks.\*.attn' matches nothing in Mixer; its modules are like embed, "):
        l2c.wrap(mixer, ["blocks.*.attn"], "when")
    with pytest.raises(ValueError, match="no parameter 't' beside its input; say timestep= one of when"):
        l2c.wrap(mixer, ["joint"])
    with pytest.raises(ValueError, match=r"layer joint.left lies inside layer joint"):
        l2c.wrap(mixer, ["joint", "joint.left"], "when")
    with pytest.raises(ValueError, match=r"input_shape=\(C, H, W\)"):
        count_macs(l2c.wrap(mixer, ["joint"], "when"))
    with pytest.raises(ValueError, match="residual= matches tail, which is no layer"):
        l2c.wrap(mixer, ["joint"], "when", residual=["tail"])
    with pytest.raises(ValueError, match=r"layer blocks is a ModuleList, which never runs itself; .* blocks.\*$"):
        l2c.wrap(mixer, ["blocks"], "when")
    mixer.output = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="layer output has the name that stands for what the whole network returns"):
        l2c.wrap(mixer, ["joint", "output"], "when")
    mixer.idle = nn.Linear(2, 2)
    idle = l2c.wrap(mixer, ["joint", "idle"], "when")
    with pytest.raises(ValueError, match="layer idle did not run"):
        idle.forward_cached(torch.zeros(1, 6, 2, 4), torch.ones(1), None, (True, True))
    mixer.blocks[1]["a"] = mixer.blocks[0]["a"]
    twice = l2c.wrap(mixer, ["blocks.0.a"], "when")
    with pytest.raises(ValueError, match="ran twice in one evaluation"):
        twice.forward_cached(torch.zeros(1, 6, 2, 4), torch.ones(1), None, (True,))


class Conditioned(nn.Module):
    """A module that takes more than a backbone is given."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x, t, text, *, mask, scale=1.0):
        raise AssertionError


def test_a_forward_that_needs_more_than_it_is_given_is_refused():
    with pytest.raises(ValueError, match=r"forward of Conditioned also needs text, mask, which .* fills them in"):
        l2c.wrap(Conditioned(), ["layer"])
    with pytest.raises(ValueError, match=r"also needs mask, which"):
        l2c.wrap(Conditioned(), ["layer"], labels="text", num_labels=1)
    with pytest.raises(ValueError, match=r"no parameter 'x' beside its input; say timestep= one of t, text, mask"):
        l2c.wrap(Conditioned(), ["layer"], "x")
    with pytest.raises(ValueError, match=r"no parameter 'x' beside its input"):
        l2c.wrap(Repeated(), ["blocks.*"], "x")


class Repeated(nn.Module):
    """A block that runs three times, and takes whatever else it is given."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(6, 6)])

    def forward(self, x, **kwargs):
        x = x.flatten(2).mT
        for _ in range(3):
            x = x + kwargs["when"].view(-1, 1, 1) / 1000 * self.blocks[0](x).tanh()
        return x.mT.unflatten(2, (2, 4))


def test_a_block_used_several_times_is_refused_in_the_sampler_too():
    wrapped = l2c.wrap(Repeated(), ["blocks.*"], "when", input_shape=(6, 2, 4))
    noise = torch.randn(1, 6, 2, 4)
    wrapped(noise, torch.ones(1))  # the plain forward is its own
    with pytest.raises(ValueError, match=r"layer blocks.0 ran twice in one evaluation"):
        wrapped.forward_cached(noise, torch.ones(1), None, (True,))
    graph = l2c.CacheGraph(
        rows=((True,), (False,)), layers=("blocks.0",), timesteps=(500, 1), model="Repeated", solver="ddim"
    )
    with pytest.raises(ValueError, match=r"layer blocks.0 ran twice in one evaluation"):
        l2c.Sampler(
            wrapped, graph=graph.replace(timesteps=l2c.Sampler(wrapped, solver="ddim", num_evaluations=2).timesteps)
        ).sample(noise=noise)


def test_compiled_and_parallel_modules_are_unwrapped(mixer):
    options = {"residual": ["tail"], "input_shape": (6, 2, 4)}
    patterns = ["blocks.*.?", "joint", "tail"]
    plain = l2c.wrap(mixer, patterns, "when", **options)
    for outer in (torch.compile(mixer), nn.DataParallel(mixer), torch.compile(nn.DataParallel(mixer))):
        wrapped = l2c.wrap(outer, patterns, "when", **options)
        assert wrapped.module is mixer
        assert wrapped.layer_names == plain.layer_names
        assert wrapped.conventions.name == "Mixer"


class Numbered(nn.Module):
    """A block that returns its own number beside its two streams."""

    def __init__(self, number):
        super().__init__()
        self.left, self.right, self.number = nn.Linear(4, 4), nn.Linear(4, 4), number

    def forward(self, x, scale):
        return self.left(x) * scale, self.right(x), self.number


class Numbers(nn.Module):
    """Three such blocks; `inside`, if any, is called in the middle of a forward."""

    inside = None

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(map(Numbered, range(3)))

    def forward(self, x, t):
        scale = torch.cos(t)[:, None, None, None]
        for block in self.blocks:
            left, right, number = block(x, scale)
            x = x + left + right.mean(dim=2, keepdim=True) + number
            if self.inside is not None:
                self.inside()
        return x


@pytest.fixture
def numbers():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Numbers()


def test_a_reused_block_returns_what_it_returned_beside_its_streams(numbers):
    net = l2c.wrap(numbers, ["blocks.*"], input_shape=(1, 4, 4))
    x, t = torch.randn(2, 1, 4, 4), torch.tensor([3.0, 500.0])
    output, cache = net.forward_cached(x, t, None, (True,) * 3)
    again, _ = net.forward_cached(x, t, None, (False, True, True), cache)
    assert torch.equal(again, output)
    for size in (6, 4):  # of other inputs than the last
        wide = torch.randn(2, 1, 4, 4) if size == 4 else torch.randn(3, 1, 6, 4)
        whole, kept = net.forward_cached(wide, torch.ones(len(wide)), None, (True,) * 3)
        if size == 6:
            first = wide, whole, kept
    wide, whole, kept = first
    assert torch.equal(net.forward_cached(wide, torch.ones(3), None, (False,) * 3, kept)[0], whole)


def test_threads_take_any_part_of_one_module(numbers, make_graph, often):
    """Two wraps of one module at work, beside its own forward and copies: no evaluation sees another's."""
    wraps = [l2c.wrap(numbers, layers, input_shape=(1, 4, 4)) for layers in (["blocks.*"], ["blocks.1"])]
    samplers = [l2c.Sampler(net, graph=make_graph(net, "ddim", reuse=("hold", "linear") * 3)) for net in wraps]
    noise, t = torch.randn(2, 1, 4, 4), torch.tensor([3.0, 500.0])
    copied = (copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it)))
    jobs = [
        *(lambda sampler=sampler: sampler.sample(noise=noise) for sampler in samplers),
        *(lambda copied=copied: copied(samplers[0]).sample(noise=noise) for copied in copied),
        lambda: numbers(noise, t),
        lambda: wraps[0](noise, t),
    ]
    expected = [job() for job in jobs]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: torch.equal(jobs[i % 6](), expected[i % 6]), range(96)))
    assert found == [True] * 96
    assert not any("forward" in vars(module) for module in numbers.modules())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))], ids=["copy", "pickle"])
def test_a_module_copied_in_the_middle_of_an_evaluation_is_a_plain_one(numbers, make_graph, copied):
    net, twins = l2c.wrap(numbers, ["blocks.*"], input_shape=(1, 4, 4)), []
    x, t = torch.randn(2, 1, 4, 4), torch.tensor([3.0, 500.0])
    expected = numbers(x, t)
    numbers.inside = lambda: twins or twins.append(copied(numbers.blocks))
    l2c.Sampler(net, graph=make_graph(net, "ddim")).sample(noise=x)
    numbers.inside = None
    scale = torch.cos(t)[:, None, None, None]
    alone = [block(x, scale)[0] for block in numbers.blocks]
    for weight in numbers.parameters():
        weight.data.zero_()
    assert all(torch.equal(a, block(x, scale)[0]) for a, block in zip(alone, twins[0], strict=True))
    assert not torch.equal(numbers(x, t), expected)


def test_a_process_forked_in_the_middle_of_an_evaluation_goes_on(numbers, make_graph):
    """The thread that makes the evaluation, and holds the lock, is not in the child."""
    net = l2c.wrap(numbers, ["blocks.*"], input_shape=(1, 4, 4))
    sampler, noise = l2c.Sampler(net, graph=make_graph(net, "ddim")), torch.randn(2, 1, 4, 4)
    expected = sampler.sample(noise=noise)
    begun, go_on = threading.Event(), threading.Event()
    other = threading.Thread(target=lambda: sampler.sample(noise=noise))
    numbers.inside = lambda: threading.current_thread() is other and (begun.set(), go_on.wait())
    other.start()
    begun.wait()
    child = os.fork()
    if not child:
        signal.alarm(20)  # ends a child that waits for ever
        os._exit(0 if torch.equal(sampler.sample(noise=noise), expected) else 1)
    go_on.set()
    other.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


class Encoder(nn.Module):
    """Torch's own encoder layers, which run as one kernel each in eval mode."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True, activation="gelu")
        self.layers = nn.ModuleList([layer, copy.deepcopy(layer)])
        self.head = nn.Linear(8, 4)

    def forward(self, x, t):
        h = self.embed(x.flatten(2).mT) + t[:, None, None] / 1000
        for layer in self.layers:
            h = layer(h)
        return self.head(h).mT.reshape(x.shape)


def test_parts_of_torchs_fused_layers_run_and_are_counted():
    backbone = l2c.wrap(
        Encoder(),
        layers=["layers.*.self_attn", "layers.*.linear1", "layers.*.dropout"],
        input_shape=(4, 2, 2),
    )
    attention, linear = 4 * (4 * 8 * 8) + 2 * 4 * 4 * 8, 4 * 8 * 16
    cost = count_macs(backbone)
    assert sorted(cost.layers) == [0, 0, linear, linear, attention, attention]
    assert cost.evaluation == 2 * (attention + 2 * linear) + 2 * 4 * 4 * 8
    sampler = l2c.Sampler(backbone, solver="ddim", num_evaluations=6)
    calibration = l2c.Calibration.measure(sampler, num_trajectories=2, true_errors=0, responses={"num_probes": 1})
    graph = calibration.graph(0.75, whole_outputs=False)
    assert graph.num_reused > 0
    empty = [layer for layer, macs in enumerate(cost.layers) if macs == 0]
    assert all(row[layer] for row in graph.rows for layer in empty)  # nothing would be saved
    noise = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    cached = l2c.Sampler(backbone, graph=graph).sample(noise=noise)
    plain = sampler.sample(noise=noise)
    assert 0 < float((cached - plain).norm() / plain.norm()) < 0.2


def test_what_is_wrapped_already_is_said_to_be():
    module = l2c.wrap(Repeated(), ["blocks.*"], "when")
    with pytest.raises(
        ValueError, match=r"wrapped already, with the layers \[blocks.0\]; use it as it is, or wrap its .module"
    ):
        l2c.wrap(module, ["blocks.*"], "when")


@pytest.mark.parametrize(
    "returned", [lambda x: object(), lambda x: {"loss": 0.5, "sample": x}, lambda x: (), lambda x: ("name", x)]
)
def test_what_does_not_begin_with_a_tensor_is_one_sentence(returned):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x, t):
            return returned(self.layer(x))

    backbone = l2c.wrap(Model(), layers=["layer"], input_shape=(1, 4, 4))
    with pytest.raises(
        ValueError, match="must return its prediction as a tensor, or a tuple, list, dict, dataclass or output"
    ):
        l2c.Sampler(backbone, solver="ddim", num_evaluations=3).sample(noise=torch.zeros(1, 1, 4, 4))
