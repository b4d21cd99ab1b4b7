"""The policy `best`: graphs of `gram` and of fixed rules, compared by true errors, with trained slopes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any
from weakref import WeakKeyDictionary

from tqdm.auto import tqdm

from l2c.calibration.distillation import Distillation, Training, distil
from l2c.calibration.measurements import Measurements
from l2c.calibration.measuring import measure
from l2c.graph.cache_graph import CacheGraph
from l2c.graph.layer_names import WHOLE_OUTPUT, ends_in_output
from l2c.graph.predictor import FITTED, HOLD, LINEAR
from l2c.policies.budget import Budget, BudgetOutOfReach, evaluations_worth
from l2c.policies.candidates import rule_graphs
from l2c.policies.context import PolicyContext, policy
from l2c.policies.exchange import Make, exchanged, makers
from l2c.policies.gram import gram
from l2c.policies.methods.l2p import measure_products
from l2c.policies.mixed import ORDERS as MIXED_ORDERS
from l2c.policies.mixed import Mixed, same_directions
from l2c.policies.true_error import TrueError, check_finite
from l2c.sampling.correction import has_slopes
from l2c.sampling.gradients import check_differentiable
from l2c.sampling.sampler import Sampler
from l2c.sampling.uncached import uncached_like

STARTS = ((HOLD,), (HOLD, LINEAR), (FITTED,))
ORDERS = (3, 4)  # past outputs of further starts
NUM_RULES = 12  # fixed rules that are measured on all noises, those of least error on an eighth of them
NUM_MEASURED = 16  # trajectories whose features are measured
NUM_REFITTED = 3  # rows of rules that are tried with fitted weights too, those of least error
NUM_JUDGED = 16  # noises that all starts are measured on
NUM_FINAL = 6  # starts that are measured on all noises: those of least error on the few
FINAL_NOISES = 4  # times as many noises for the last choice
PROMISING = 2.0  # times the least error of a start: so far starts of other contexts are worked on further
TRUSTED = 2.0  # times the error before: up to there a trained graph is taken; on few noises errors vary by as much
EXCHANGED_BELOW = 0.5  # share of the MACs below which rows are exchanged: first order ranks graphs badly there


@policy
def best(
    context: PolicyContext,
    *,
    budget: Budget,
    num_evaluations: Sequence[int] = (),
    max_span: int = 6,
    num_trajectories: int = 64,
    pool: int = 512,
    eval_batch_size: int = 64,
    exchanges: int = 40,
    steps: int = 25,
    batch_size: int = 8,
    learning_rate: float = 0.02,
    whole_outputs: bool = True,
    seed: int = 7,
) -> CacheGraph:
    """Return the graph of least true error among those of `gram` and of fixed rules; then train its slopes.

    Below half of the MACs neighbouring rows of the best graph are exchanged before, while its true error falls.
    Graphs whose one layer is the network's whole output are among the candidates, and so are graphs of both.

    Args:
        context: a context with `responses` in its calibration and the sampler itself.
        budget: a share of the uncached MACs, a speed-up or evaluations' worth, see `policies.budget`.
        num_evaluations: numbers of evaluations that the graph may have instead of the sampler's; each is calibrated
            first, as the calibration was. The error is always against the images of the given sampler.
        max_span: evaluations in a row that a layer may be reused.
        num_trajectories: calibration noises that true errors are measured on; the last choice, between layers
            and whole outputs, is made on four times as many where the pool has them.
        pool: noises from which the calibration noises are chosen; see `TrueError`.
        eval_batch_size: noises of both kinds sampled at a time.
        exchanges: graphs with exchanged rows that are measured at most, on half of the noises; 0 = none.
        steps: training steps, each through the whole cached trajectory of a batch; 0 = none.
        batch_size: trajectories per step.
        learning_rate: learning rate of the slopes.
        whole_outputs: also try graphs of the whole output, see `WholeOutput`, and of layers and whole output, see
            `Mixed`; where the calibration holds no responses to it, they are measured first, as the others were.
        seed: seed of the noises; evaluation uses others.

    Raises:
        ValueError: if the budget is out of reach, the solver adds noise of its own, or no graph draws finite images.

    """
    sampler = context.deterministic_sampler("best")
    worth = evaluations_worth(budget, context.blank.num_evaluations)
    context.check_reach(worth, 1.0 if whole_outputs else context.least(context.all_but_first))
    more = FINAL_NOISES if FINAL_NOISES * num_trajectories < pool else 1  # the pool is more than is chosen from it
    judge = TrueError.of(sampler, more * num_trajectories, seed, pool=pool, batch_size=eval_batch_size)
    true_error = judge.thinned(more)
    training = Training(sampler, steps, batch_size, learning_rate, seed, first=pool, drawn=eval_batch_size)
    contexts = list(_contexts(context, worth, num_evaluations, whole_outputs=whole_outputs))
    starts = _starts(contexts, true_error, Search(worth, max_span, exchanges, seed))
    final = [start.worked_out(true_error, training) for start in _promising(starts)]
    error, chosen = _ranked(final, true_error if len(final) == 1 else judge)[0]
    check_finite(error)
    settings = {"budget": worth, "max_span": max_span, "num_trajectories": num_trajectories, "pool": pool}
    if num_evaluations:
        settings["reference_evaluations"] = context.blank.num_evaluations
    settings |= {"exchanges": exchanges, "steps": steps, "whole_outputs": whole_outputs, "seed": seed}
    return chosen.replace(provenance={**chosen.provenance, "method": "best", "hyperparameters": settings})


def _contexts(
    context: PolicyContext, worth: float, num_evaluations: Sequence[int], *, whole_outputs: bool
) -> Iterator[PolicyContext]:
    """Yield the contexts that candidates are made in: the given one, those of fewer evaluations, of whole outputs."""
    own = context.blank.num_evaluations
    wrong = [count for count in num_evaluations if not 2 <= count <= own]
    if wrong:
        raise ValueError(f"num_evaluations must be numbers in 2..{own}, those of the sampler, got {wrong[0]}")
    yield context
    for count in dict.fromkeys(num_evaluations):
        if worth < count < own:
            yield _with_evaluations(context, count)
    if whole_outputs and context.blank.layers != (WHOLE_OUTPUT,):
        yield _with_whole_output(context)


@dataclass(frozen=True)
class Search:
    """What starts are looked for with; see `best`."""

    worth: float
    max_span: int
    exchanges: int
    seed: int


@dataclass(frozen=True)
class Start:
    """The best graph of a context whose weights were not trained.

    Attributes:
        context: the context that it was made in.
        search: what it was looked for with.
        makes: functions that turn rows into a graph, see `makers` and `Mixed.of_rows`.
        error: its true error.
        graph: the graph.

    """

    context: PolicyContext
    search: Search
    makes: tuple[Make, ...]
    error: float
    graph: CacheGraph

    def worked_out(self, true_error: TrueError, training: Training) -> CacheGraph:
        """Return the graph with rows exchanged, below a share of the MACs, where that has less error, and trained."""
        found = (self.error, self.graph)
        if self.search.exchanges and self.search.worth < EXCHANGED_BELOW * self.context.blank.num_evaluations:
            other = exchanged(self.graph, self.makes, true_error.thinned(2), self.search.exchanges)
            found = min(found, (true_error.error(other), other), key=itemgetter(0))
        if training.steps and has_slopes(found[1]):
            trained = _trained(self.context, found[1], training)
            if true_error.error(trained) <= TRUSTED * found[0]:
                return trained
        return found[1]


def _starts(contexts: Sequence[PolicyContext], true_error: TrueError, search: Search) -> list[Start]:
    """Return the starts of the contexts within whose reach the budget is, and of layers and whole output together.

    Raises:
        BudgetOutOfReach: if there is none; it is the last context's refusal.

    """
    found: list[Start] = []
    refusals: list[BudgetOutOfReach] = []
    for context in contexts:
        try:
            context.evaluations(search.worth)
            found.append(_best_start(context, true_error, search))
        except BudgetOutOfReach as error:
            refusals.append(error)
    found += _mixed_starts(contexts[0], contexts[-1], true_error, search)
    if not found:
        raise refusals[-1]
    return found


def _promising(starts: Sequence[Start]) -> list[Start]:
    """Return the starts that are worked out: those of little error beside the others of one kind of layers.

    Starts of layers and whole output count apart: working out lowers their error less.
    """
    kinds = [ends_in_output(start.graph.layers) for start in starts]
    least = {kind: min(s.error for s, k in zip(starts, kinds, strict=True) if k <= kind) for kind in set(kinds)}
    return [start for start, kind in zip(starts, kinds, strict=True) if start.error <= PROMISING * least[kind]]


def _mixed_starts(
    layers: PolicyContext, whole: PolicyContext, true_error: TrueError, search: Search
) -> Iterator[Start]:
    """Yield the best graph of layers and whole output, if there are contexts of both and one meets the budget."""
    if whole is layers or whole.blank.layers != (WHOLE_OUTPUT,):
        return
    assert layers.sampler is not None
    of_output = whole.required_calibration()
    if not same_directions(layers.required_calibration(), of_output):
        return
    kinds = [Mixed(layers, of_output, search.max_span, order) for order in MIXED_ORDERS]
    few = _fewer(true_error)
    found: list[tuple[float, Start]] = []
    for kind in kinds:
        graphs = tqdm(kind.graphs(search.worth), desc="layers and whole outputs", unit="graph")
        ranked = [graph for _, graph in _ranked(graphs, few)[: NUM_FINAL // len(kinds)]]
        if ranked:
            error, graph = _ranked(ranked, true_error)[0]
            context = replace(layers, sampler=uncached_like(layers.sampler, layers=graph.layers))
            found.append((error, Start(context, search, (kind.of_rows,), error, graph)))
    if found:
        yield min(found, key=itemgetter(0))[1]


def reference_evaluations(graph: CacheGraph) -> int:
    """Return the number of evaluations of the uncached images that a graph approximates."""
    made = graph.provenance.get("hyperparameters")
    count = made.get("reference_evaluations") if isinstance(made, dict) else None
    return count if isinstance(count, int) else graph.num_evaluations


def _with_evaluations(context: PolicyContext, count: int) -> PolicyContext:
    """Return the context at another number of evaluations, its responses measured as the given ones were."""
    assert context.sampler is not None
    return _measured(context, uncached_like(context.sampler, num_evaluations=count), (str(count),))


def _with_whole_output(context: PolicyContext) -> PolicyContext:
    """Return the context whose one layer is the network's output; responses are measured where they are not there."""
    assert context.sampler is not None
    whole = (WHOLE_OUTPUT,)
    sampler = uncached_like(context.sampler, layers=whole)
    known = None if context.measured is None else context.measured.of_output()
    return _measured(context, sampler, whole) if known is None else PolicyContext.of(sampler, known)


def _measured(context: PolicyContext, sampler: Sampler, what: tuple[str, ...]) -> PolicyContext:
    """Return the context of an uncached sampler related to a given one's, measured once as that one was."""
    settings = context.required_calibration().settings
    assert context.sampler is not None
    known = _CALIBRATED.setdefault(context.sampler, {})
    key = (settings.get("seed", 7), settings.get("num_trajectories", 64), *what)
    if key not in known:
        known[key] = with_responses(sampler, settings)
    return known[key]


def with_responses(sampler: Sampler, settings: Mapping[str, Any]) -> PolicyContext:
    """Return the context of an uncached sampler, its responses measured now as the settings of a calibration say."""
    known = ("num_trajectories", "seed", "first_trajectory", "batch_size", "responses")
    how = {name: settings[name] for name in known if name in settings}
    return PolicyContext.of(sampler, measure(Measurements, sampler, **how))


_CALIBRATED: WeakKeyDictionary[Sampler, dict[tuple[Any, ...], PolicyContext]] = WeakKeyDictionary()


def _best_start(context: PolicyContext, true_error: TrueError, search: Search) -> Start:
    """Return the graph of least true error among those of `gram`, of fixed rules, and of their rows fitted.

    All are measured on a few noises, the best of them on all.
    """
    assert context.sampler is not None
    worth, max_span = search.worth, search.max_span
    few = _fewer(true_error)
    products = measure_products(context.sampler, NUM_MEASURED, batch_size=8, seed=search.seed)
    makes = makers(context, products, worth)
    rules = _ranked(likely_rules(context, worth, true_error.thinned(8)), few)
    likely = list(dict.fromkeys(rule.rows for _, rule in rules))[:NUM_REFITTED]
    fitted = (make(rows) for rows in likely for make in makes)
    others = [graph for graph in fitted if graph is not None]
    bar = tqdm(_grams(context, worth, max_span, needed=not rules), desc="starts", unit="graph")
    found = sorted([*rules, *_ranked([*others, *bar], few)], key=itemgetter(0))
    error, start = _ranked([graph for _, graph in found[:NUM_FINAL]], true_error)[0]
    return Start(context, search, makes, error, start)


def _fewer(true_error: TrueError) -> TrueError:
    """Return the estimate on the few noises that all starts are measured on."""
    return true_error.thinned(max(1, len(true_error.noise) // NUM_JUDGED))


def _grams(context: PolicyContext, worth: float, max_span: int, *, needed: bool) -> Iterator[CacheGraph]:
    """Yield the graphs of `gram` with other predictors and spans; with `needed` at least one, or an error."""
    kinds: list[dict[str, Any]] = [{"reuses": reuses, "max_span": max_span, "order": 2} for reuses in STARTS]
    kinds += [{"max_span": span, "order": 2} for span in range(1, max_span)]
    ages = context.required_calibration().tensor("responses").shape[2]
    kinds += [{"max_span": max_span, "order": order} for order in ORDERS if order <= ages]
    for kind in kinds:
        try:
            yield gram(context, budget=worth, **kind)
            needed = False
        except BudgetOutOfReach as short:  # so short spans cannot save that much
            refusal = short
    if needed:
        raise refusal


def _ranked(graphs: Iterable[CacheGraph], judge: TrueError) -> list[tuple[float, CacheGraph]]:
    """Return true errors and graphs, the least error first; each of those that are the same once."""
    different = {(graph.layers, graph.rows, graph.entry_weights): graph for graph in graphs}
    return sorted(((judge.error(graph), graph) for graph in different.values()), key=itemgetter(0))


def likely_rules(context: PolicyContext, worth: float, judge: TrueError) -> list[CacheGraph]:
    """Return the graphs of fixed rules within a budget that have the least true error, that one first."""
    rules = tqdm(rule_graphs(context, worth), desc="rules", unit="graph")
    return [graph for _, graph in _ranked(rules, judge)[:NUM_RULES]]


def _trained(context: PolicyContext, graph: CacheGraph, training: Training) -> CacheGraph:
    """Return a graph whose slopes were trained on the error of the final image against a teacher's."""
    assert context.sampler is not None
    check_differentiable(context.sampler.solver, training.teacher.backbone.input_shape)
    distillation = Distillation(
        context.sampler, graph, teacher=training.teacher, scale_shift=False, slope_rate=training.learning_rate
    )
    distil(distillation, tqdm(training.batches, desc="training slopes", unit="step"), training.steps)
    return distillation.corrected()[0]
