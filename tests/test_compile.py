"""Each block compiles to four graphs, whatever the plan, and computes what the eager one does."""

from __future__ import annotations

from collections import Counter

import pytest
import torch


@pytest.mark.parametrize(("kind", "depth"), [("dit", 3), ("uvit", 4)])
def test_four_graphs_a_kind_of_block_whatever_the_plan(kind, depth, make_dit, make_uvit, make_batch, random_rows):
    eager = make_dit(depth=depth) if kind == "dit" else make_uvit(depth=depth)
    compiled = make_dit(depth=depth) if kind == "dit" else make_uvit(depth=depth)
    graphs: Counter[str] = Counter()

    def counting(name):
        def backend(module, inputs):
            graphs[name] += 1
            return module.forward

        return backend

    torch._dynamo.reset()
    if kind == "dit":
        kinds = {"block": list(compiled.blocks)}
    else:
        kinds = {"plain": [*compiled.in_blocks, compiled.mid_block], "with skip": list(compiled.out_blocks)}
    for name, blocks in kinds.items():
        backend = counting(name)  # one for all its blocks: another backend would be another reason to compile
        for block in blocks:
            block.compile(backend=backend, fullgraph=True)

    n = eager.num_layers
    cache, compiled_cache = None, None
    with torch.no_grad():
        for e, row in enumerate(random_rows(20, n, seed=7)):
            batch = make_batch(eager, seed=e)
            expected, cache = eager.forward_cached(*batch, row, cache)
            output, compiled_cache = compiled.forward_cached(*batch, row, compiled_cache)
            torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    torch._dynamo.reset()
    assert set(graphs) == set(kinds)  # something was compiled at all
    assert max(graphs.values()) <= 4, graphs
