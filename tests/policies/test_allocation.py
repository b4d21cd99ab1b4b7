"""Predictors of several past outputs, chosen from responses; errors to first order."""

import numpy as np
import pytest
import torch

from l2c.calibration.fitting import RIDGE, SLOPES, Fits
from l2c.calibration.measurements import Measurements
from l2c.policies.allocation import Allocation
from l2c.policies.context import PolicyContext
from l2c.policies.registry import make_graph
from l2c.sampling.sampler import Sampler

E, L = 8, 4


@pytest.fixture
def context(make_dit):
    """Responses of outputs that move on parabolas in image space, a little noise added."""
    sampler = Sampler(make_dit(depth=L // 2), solver="ddim", num_evaluations=E)
    blank = PolicyContext.of(sampler).blank
    draw = np.random.default_rng(0)
    ages = np.arange(1, 7)
    speed, bend = draw.normal(size=(2, E, L, 1, 24))
    responses = ages[:, None] * speed + ages[:, None] ** 2 * bend / 5 + 0.01 * draw.normal(size=(E, L, 6, 24))
    tensors = {"responses": torch.from_numpy(responses).float()}
    return PolicyContext.of(sampler, Measurements(tensors, blank.binding))


def predicted_error(graph, responses):
    """Sum the responses of all entries of a graph to what it reads; infinite where an age is not known."""
    total = np.zeros(responses.shape[3])
    for layer in range(graph.num_layers):
        for e in range(graph.num_evaluations):
            computed = [s for s in range(e) if graph.rows[s][layer]][::-1]
            for source, weight in zip(computed, graph.entry_weights[e][layer], strict=False):
                if e - source > responses.shape[2] or np.isnan(responses[e, layer, e - source - 1]).any():
                    return np.inf
                total += weight * responses[e, layer, e - source - 1]
    return total @ total


def test_weights_of_three_outputs_cancel_a_parabola():
    draw = np.random.default_rng(0)
    speed, bend = draw.normal(size=(2, 32))
    response = np.array([age * speed + age * age * bend for age in range(1, 7)])
    fits = Fits(response[None, None].astype(np.float32))
    errors = []
    for past in ((1,), (1, 3), (1, 3, 4)):
        weights = fits.weights(0, 0, past) if past[1:] else (1.0,)
        assert sum(weights) == pytest.approx(1)
        left = sum(weight * response[age - 1] for weight, age in zip(weights, past, strict=True))
        errors.append(float(left @ left))
    assert errors[1] < errors[0]
    assert errors[2] < errors[1] / 2


@pytest.mark.parametrize("ages", [(1, 2), (2, 3), (1, 2, 4), (1, 3, 4), (1, 2, 3, 4), (2, 3, 5, 6)])
def test_fitted_weights_are_those_of_least_squares(ages):
    """Of the responses themselves, with rows for the ridge below; two outputs have no ridge."""
    responses = np.random.default_rng(1).normal(size=(2, 3, 6, 40)).astype(np.float32)
    held, *older = (responses[1, 2, age - 1].astype(np.float64) for age in ages)
    steps = np.stack([held - other for other in older], axis=1)
    ridge = RIDGE * np.square(steps).sum() / len(older) if older[1:] else 0.0
    rows = np.concatenate([steps, np.sqrt(ridge) * np.eye(len(older))])
    slopes = np.linalg.lstsq(rows, np.concatenate([-held, np.zeros(len(older))]), rcond=None)[0]
    if not older[1:]:
        slopes = slopes.clip(*SLOPES)
    assert Fits(responses).weights(1, 2, ages) == pytest.approx((1 + slopes.sum(), *-slopes), rel=1e-9)


def test_more_outputs_predict_no_larger_error(context):
    """Of the same rows; what is predicted of the graph is what the allocation added up."""
    responses = context.required_calibration().tensor("responses").numpy()
    errors = []
    for order in (2, 3, 4):
        allocation = Allocation(
            responses, context.blank.timesteps, context.cost.layers, reuses=("fitted",), order=order
        )
        rows = np.ones((E, L), dtype=bool)
        rows[[3, 5, 6]] = False
        allocation.set(rows, ["fitted"] * E)
        graph = context.graph(rows.tolist(), "test", **allocation.stand_ins())
        assert predicted_error(graph, responses) == pytest.approx(allocation.predicted, rel=1e-3)
        errors.append(allocation.predicted)
    assert errors[1] < errors[0] / 4


def test_outputs_from_the_first_unknown_age_on_are_not_read(context):
    """A newer output of unknown age hides the older ones: weights belong to outputs in a row."""
    responses = context.required_calibration().tensor("responses").numpy().copy()
    responses[6, :, 2] = np.nan
    rows = np.ones((E, L), dtype=bool)
    rows[[4, 6]] = False  # evaluation 6 may read 5, then 3, whose age of 3 is not known, then 2
    allocation = Allocation(responses, range(E, 0, -1), (1,) * L, reuses=("fitted",), order=4)
    assert allocation.set(rows, ["fitted"] * E)
    weighted = allocation.stand_ins()["weights"]
    assert {len(weights) for weights in weighted[6]} == {1}
    assert {len(weights) for weights in weighted[4]} == {4}
    graph = context.graph(rows.tolist(), "test", **allocation.stand_ins())
    assert predicted_error(graph, responses) == pytest.approx(allocation.predicted, rel=1e-3)
    rows[5] = False  # evaluation 6 would hold evaluation 3
    assert not allocation.set(rows, ["fitted"] * E)
    assert predicted_error(context.graph(rows.tolist(), "test"), responses) == np.inf


@pytest.mark.parametrize("order", [2, 3, 4])
def test_gram_writes_as_many_weights_as_outputs_are_at_hand(context, order):
    graph = make_graph("gram", context, budget=0.6, order=order)
    lengths = {len(weights) for row in graph.entry_weights for weights in row}
    assert max(lengths) == order
    assert ("weighted" in graph.reuse) == (order > 2)
    assert Sampler(context.sampler.backbone, graph=graph).sample([1, 2], seed=0).isfinite().all()


@pytest.mark.parametrize("order", [1, 5])
def test_more_outputs_than_a_graph_may_read_are_refused(context, order):
    with pytest.raises(ValueError, match=f"order must be a whole number >= 2 and <= 4 or null, got {order}"):
        make_graph("gram", context, budget=0.6, order=order)


def test_an_age_that_was_not_measured_has_no_prediction(context):
    rows = [[e < 1] * L for e in range(E)]
    assert (
        predicted_error(context.graph(rows, "test"), context.required_calibration().tensor("responses").numpy())
        == np.inf
    )
