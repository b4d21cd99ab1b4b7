"""What lifetimes say is read, against the rows themselves; slots against a count of what must be alive."""

from __future__ import annotations

import numpy as np
import pytest

from l2c.graph.cache_graph import CacheGraph
from l2c.sampling.lifetimes import SUM, Lifetimes


def random_graph(seed, num_evaluations=9, num_blocks=4, modes=("hold", "linear"), fresh=0.5):
    draw = np.random.default_rng(seed)
    rows = draw.random((num_evaluations, 2 * num_blocks)) < fresh
    whole = draw.random((num_evaluations, num_blocks)) < 0.4  # blocks whose layers go together
    rows[:, 1::2] = np.where(whole, rows[:, ::2], rows[:, 1::2])
    rows[0] = True
    return CacheGraph(
        rows=rows,
        layers=[f"b{b}.{kind}" for b in range(num_blocks) for kind in ("attn", "mlp")],
        timesteps=np.sort(draw.random(num_evaluations))[::-1] * 999,
        model="m",
        solver="ddim",
        reuse=[modes[int(draw.integers(len(modes)))] for _ in range(num_evaluations)],
    )


def wanted(graph, e, layer):
    """Return what a reused layer is made of, as {evaluation: weight}, straight from the rows."""
    computed = [s for s in range(e) if graph.rows[s][layer]]
    if graph.reuse[e] == "linear" and len(computed) > 1:
        before, last = computed[-2:]
        t = graph.timesteps
        slope = (t[e] - t[last]) / (t[last] - t[before])
        return {last: 1 + slope, before: -slope}
    return {computed[-1]: 1.0}


@pytest.mark.parametrize("sums", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_every_read_finds_what_the_rows_say(seed, sums):
    graph = random_graph(seed, fresh=0.35 + 0.03 * seed)
    lifetimes = Lifetimes.of(graph, sums=sums)
    slots: dict[int, tuple[int, int, int]] = {}  # slot -> (evaluation, block, part)
    used = 0
    for e, steps in enumerate(lifetimes.steps):
        assert len(steps) == graph.num_layers // 2
        for b, step in enumerate(steps):
            assert step.fresh == graph.rows[e][2 * b : 2 * b + 2]
            if step.total is not None:
                assert step.fresh == (False, False)
                assert step.sources == (None, None)
            for part in (0, 1):
                source = step.total or step.sources[part]
                if step.fresh[part]:
                    assert source is None
                    continue
                keys = [slots[slot] for slot in source.slots]
                assert {(block, kind) for _, block, kind in keys} == {(b, SUM if step.total else part)}
                found = {s: w for (s, _, _), w in zip(keys, source.weights, strict=True)}
                assert found == pytest.approx(wanted(graph, e, 2 * b + part))
            for slot in step.frees:
                del slots[slot]
            for part, slot in step.stores:
                assert slot not in slots  # nothing that is still read is overwritten
                slots[slot] = (e, b, part)
            used = max(used, len(slots))
    assert not slots  # everything was let go of
    assert used == lifetimes.num_slots


def test_sums_are_used_where_allowed_only():
    steps = [
        [
            step.total
            for seed in range(12)
            for row in Lifetimes.of(random_graph(seed), sums=sums).steps
            for step in row
        ]
        for sums in (False, True)
    ]
    assert not any(steps[0])
    assert sum(total is not None for total in steps[1]) > 12


@pytest.mark.parametrize("seed", range(6))
def test_no_output_lives_longer_than_it_is_read(seed):
    """The slots are as many as the outputs that a later reader makes live at the fullest moment."""
    graph = random_graph(seed)
    lives = []  # (birth, death), in blocks since the start
    num_blocks = graph.num_layers // 2
    for layer in range(graph.num_layers):
        readers: dict[int, int] = {}
        for e, row in enumerate(graph.rows):
            if not row[layer]:
                readers.update(dict.fromkeys(wanted(graph, e, layer), e))
        lives += [(s * num_blocks + layer // 2, e * num_blocks + layer // 2) for s, e in readers.items()]
    moments = range(graph.num_evaluations * num_blocks)
    fullest = max(sum(birth <= moment < death for birth, death in lives) for moment in moments)
    assert Lifetimes.of(graph).num_slots == fullest
    assert fullest >= graph.peak_kept


def test_half_of_the_layers_in_each_routed_row_need_half_of_the_memory():
    n = 56
    half = [tuple(bool((i + e // 2) % 2) for i in range(n)) for e in range(20)]
    rows = [(True,) * n if e % 2 == 0 else half[e] for e in range(20)]
    graph = CacheGraph(
        rows=rows, layers=[f"l{i}" for i in range(n)], timesteps=range(20, 0, -1), model="m", solver="ddim"
    )
    assert Lifetimes.of(graph).num_slots == n // 2


def test_sums_halve_what_blocks_reused_whole_need():
    rows = [(True,) * 8, (False,) * 6 + (True, False), (True,) * 8, (False,) * 8]
    graph = CacheGraph(rows=rows, layers=list("abcdefgh"), timesteps=(4, 3, 2, 1), model="m", solver="ddim")
    assert Lifetimes.of(graph).num_slots == 8
    summed = Lifetimes.of(graph, sums=True)
    assert summed.num_slots == 4
    assert summed.steps[1][3].total is None  # one of the two is computed there
    assert all(step.total is not None for step in summed.steps[3])


def test_an_all_compute_graph_stores_nothing():
    graph = CacheGraph(rows=[(True,) * 4] * 3, layers=list("abcd"), timesteps=(3, 2, 1), model="m", solver="ddim")
    lifetimes = Lifetimes.of(graph)
    assert lifetimes.num_slots == 0
    assert not any(step.stores or step.frees for row in lifetimes.steps for step in row)


@pytest.mark.parametrize("seed", range(4))
def test_layers_found_by_name_may_run_in_any_order(seed):
    graph = random_graph(seed, fresh=0.4)
    slots: dict[int, tuple[int, int]] = {}  # slot -> (evaluation, layer)
    order = np.random.default_rng(seed)
    for e, steps in enumerate(Lifetimes.of(graph, layers_per_block=1).steps):
        for layer in order.permutation(graph.num_layers):
            step = steps[layer]
            assert step.fresh == (graph.rows[e][layer], True)
            if not step.fresh[0]:
                source = step.sources[0]
                found = dict(zip((slots[slot] for slot in source.slots), source.weights, strict=True))
                assert found == pytest.approx({(s, layer): w for s, w in wanted(graph, e, layer).items()})
            for slot in step.frees:
                del slots[slot]
            for _, slot in step.stores:
                assert slot not in slots
                slots[slot] = (e, layer)
    assert not slots
