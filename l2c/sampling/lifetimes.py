"""Lifetimes of cached outputs, worked out from a graph: which are stored, in which slot, until which read.

Pure data, worked out once per graph. A stored output lives from the block that computes it to the last block that
reads it; outputs whose lives do not overlap share a slot, so the number of slots is the peak of the cache, reached
inside an evaluation or between two.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from l2c.graph.cache_graph import CacheGraph
from l2c.graph.layer_names import ends_in_output
from l2c.graph.predictor import Weights

ATTENTION, MLP, SUM = range(3)  # the parts of a block that can be stored
Read = tuple[tuple[int, float], ...]  # (evaluation, weight) of what is read, newest first
Reads = dict[int, Read]  # by part


@dataclass(frozen=True)
class Source:
    """The source of a reused output: stored outputs, newest first, and their weights, which add up to 1.

    The entry (evaluation, layer) says which correction applies.
    """

    slots: tuple[int, ...]
    weights: tuple[float, ...]
    entry: tuple[int, int]


@dataclass(frozen=True)
class BlockStep:
    """The actions at one block of one evaluation, in this order.

    Attributes:
        fresh: (attention, MLP), True = compute.
        sources: source of each reused layer; None for a computed one, and where `total` serves for both.
        total: source of the sum of both layers, where a sum was stored.
        frees: slots that nobody reads after this block.
        stores: (part, slot) of what is stored; the part is 0 attention, 1 MLP, or 2 their sum.

    """

    fresh: tuple[bool, bool]
    sources: tuple[Source | None, Source | None]
    total: Source | None
    frees: tuple[int, ...]
    stores: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Lifetimes:
    """The steps of a whole trajectory.

    Attributes:
        steps: the steps of each evaluation and block.
        num_slots: outputs (N, T, D) that the cache holds at its peak.
        whole: the steps of each evaluation for the whole output, where it is the last of several layers.
        num_whole: whole outputs (N, C, H, W) that the cache holds at its peak, in slots after the others.

    """

    steps: tuple[tuple[BlockStep, ...], ...]
    num_slots: int
    whole: tuple[BlockStep, ...] = ()
    num_whole: int = 0

    @classmethod
    def of(cls, graph: CacheGraph, *, sums: bool = False, layers_per_block: int = 2) -> Lifetimes:
        """Work out a graph's lifetimes.

        Args:
            graph: rows and ways of reuse.
            sums: store the sum of a block's two outputs where both are computed at the same evaluation and all
                reads of them are of both; for backbones without gates.
            layers_per_block: 2, or 1: then a block's second place is never reused, and as blocks that were found by
                name may run in another order, none stores where another one has read at the same evaluation.

        """
        num_layers = graph.num_layers - ends_in_output(graph.layers)
        blocks = _blocks_of(graph, range(num_layers), layers_per_block)
        for block in blocks if sums and graph.correction is None else ():
            block.merge()
        slots = _Slots(at_once=layers_per_block > 1)
        steps = []
        for e in range(graph.num_evaluations):
            steps.append(tuple(_step(block, e, b * layers_per_block, slots) for b, block in enumerate(blocks)))
            slots.end_row()
        last = _Slots(at_once=False, first=slots.count)
        whole = [
            _step(block, e, num_layers, last)
            for block in _blocks_of(graph, range(num_layers, graph.num_layers), 1)
            for e in range(graph.num_evaluations)
        ]
        return cls(tuple(steps), slots.count, tuple(whole), last.count - slots.count)


def _blocks_of(graph: CacheGraph, layers: Sequence[int], layers_per_block: int) -> list[_Block]:
    """Return the computed and read outputs of each block of some layers."""
    columns = [tuple(row[layer] for row in graph.rows) for layer in layers]
    weights = [tuple(row[layer] for row in graph.entry_weights) for layer in layers]
    if layers_per_block == 1:
        columns = [column for layer in columns for column in (layer, (True,) * graph.num_evaluations)]
        weights = [of_layer for layer in weights for of_layer in (layer, layer)]
    reads = [_column_reads(*column) for column in zip(columns, weights, strict=True)]
    pairs = zip(columns[::2], columns[1::2], reads[::2], reads[1::2], strict=True)
    return [_Block((a, m), (reads_a, reads_m)) for a, m, reads_a, reads_m in pairs]


def _step(block: _Block, e: int, first: int, slots: _Slots) -> BlockStep:
    """Return the actions at evaluation e of the block whose first layer is `first`, and assign and free its slots."""
    found: list[Source | None] = [None] * 3
    for part, read in block.reads[e].items():
        of = tuple(slots.of[first, source, part] for source, _ in read)
        found[part] = Source(of, tuple(weight for _, weight in read), (e, first + part))
    frees = slots.give_back([(first, source, part) for source, part in block.lives.dying[e]])
    stores = tuple((part, slots.take((first, e, part))) for part in block.lives.born[e])
    return BlockStep(block.fresh[e], (found[0], found[1]), found[SUM], frees, stores)


class _Slots:
    """Slots shared by outputs whose lifetimes do not overlap; the smallest free number is taken first.

    Args:
        at_once: whether a slot may be taken again within the evaluation that gives it back.
        first: number of the first slot.

    Attributes:
        count: slots in use at the peak, those before the first one included.
        of: the slot of each stored output (first layer of its block, evaluation, part).

    """

    def __init__(self, *, at_once: bool, first: int = 0) -> None:
        self.count = first
        self.of: dict[tuple[int, int, int], int] = {}
        self._at_once = at_once
        self._free: list[int] = []
        self._later: list[int] = []

    def take(self, output: tuple[int, int, int]) -> int:
        """Return the slot of an output that is stored now."""
        if not self._free:
            self._free, self.count = [self.count], self.count + 1
        self.of[output] = heapq.heappop(self._free)
        return self.of[output]

    def give_back(self, outputs: list[tuple[int, int, int]]) -> tuple[int, ...]:
        """Return the slots of outputs that nobody reads any more."""
        given = tuple(self.of[output] for output in outputs)
        self._later += given
        if self._at_once:
            self.end_row()
        return given

    def end_row(self) -> None:
        """Make all returned slots available again."""
        while self._later:
            heapq.heappush(self._free, self._later.pop())


@dataclass(frozen=True)
class _Lives:
    """For each evaluation, the keys (evaluation, part) that it reads last, and the parts created in it."""

    dying: dict[int, list[tuple[int, int]]]
    born: dict[int, list[int]]


class _Block:
    """The computed outputs of one block that each evaluation reads, with their weights.

    Attributes:
        fresh: for each evaluation, (attention, MLP), True = compute.
        reads: the reads of each evaluation.
        lives: evaluations at which stored outputs are created and freed.

    """

    def __init__(
        self, columns: tuple[tuple[bool, ...], tuple[bool, ...]], reads: tuple[list[Read], list[Read]]
    ) -> None:
        self.fresh = list(zip(*columns, strict=True))
        attention, mlp = reads
        self.reads: list[Reads] = [
            {part: read for part, read in ((ATTENTION, a), (MLP, m)) if read}
            for a, m in zip(attention, mlp, strict=True)
        ]

    def merge(self) -> None:
        """Replace two outputs by their sum where one evaluation computes both and all reads take both."""
        readers: dict[int, set[int]] = defaultdict(set)
        for e, reads in enumerate(self.reads):
            for read in reads.values():
                for source, _ in read:
                    readers[source].add(e)
        merged = {e for e in readers if all(self.fresh[e])}
        before: set[int] = set()
        while merged != before:  # a linear read needs a sum at both of its ends
            before = merged
            merged = {
                e
                for e in merged
                if all(
                    self.reads[r].get(ATTENTION) == self.reads[r].get(MLP)
                    and {source for source, _ in self.reads[r][MLP]} <= merged
                    for r in readers[e]
                )
            }
        self.reads = [
            {SUM: reads[MLP]} if MLP in reads and reads[MLP][0][0] in merged else reads for reads in self.reads
        ]

    @cached_property
    def lives(self) -> _Lives:
        """Evaluations at which stored outputs are created and freed; call after `merge`."""
        last: dict[tuple[int, int], int] = {}
        for e, reads in enumerate(self.reads):
            for part, read in reads.items():
                last.update({(source, part): e for source, _ in read})
        dying, born = defaultdict(list), defaultdict(list)
        for (source, part), e in sorted(last.items()):
            dying[e].append((source, part))
            born[source].append(part)
        return _Lives(dying, born)


def _column_reads(bits: tuple[bool, ...], weights: tuple[Weights, ...]) -> list[Read]:
    """Return for each evaluation the (evaluation, weight) that a layer reads, newest first."""
    computed: list[int] = []  # newest first
    result: list[Read] = []
    for e, (fresh, of_entry) in enumerate(zip(bits, weights, strict=True)):
        result.append(() if fresh else tuple(zip(computed[: len(of_entry)], of_entry, strict=True)))
        if fresh:
            computed.insert(0, e)
    return result
