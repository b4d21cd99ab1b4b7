"""Chooses the entries to reuse such that the sum of the image's responses is small."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from l2c.calibration.fitting import Fits
from l2c.graph.fields import Entry
from l2c.graph.predictor import FITTED, HOLD, LINEAR, WEIGHTED, Weights, from_slopes, line_slope, weights_of

Array = npt.NDArray[np.float32]


class Allocation:
    """Rows and reuse that grow from all-compute by the cheapest change of the image per MAC saved.

    The predicted change of the image is the sum over reused entries of their responses, so that entries which
    cancel go together and entries which add up do not.

    Args:
        responses: (E, L, A, M), see `measure_responses`; NaN where an age is not known: no entry may be that old.
        timesteps: t of each evaluation.
        macs: MACs of each layer, (L,).
        routed: evaluations that may reuse; None = all but the first.
        max_span: evaluations in a row that a layer may be reused.
        reuses: predictors to choose from, of `hold`, `linear` and `fitted`.
        order: past outputs that `fitted` may read, 2..4.
        offset: change of the image (M,) that something else makes, such as whole outputs; None = none.

    """

    def __init__(
        self,
        responses: Array,
        timesteps: Sequence[float],
        macs: Sequence[int],
        *,
        routed: Sequence[int] | None = None,
        max_span: int = 4,
        reuses: Sequence[str] = (HOLD, LINEAR),
        order: int = 2,
        offset: Array | None = None,
    ) -> None:
        self._known = np.asarray(
            np.isfinite(responses).all(axis=3)
        ).tolist()  # [E][L][A], which scalars are read from fast
        self.responses = responses
        self.timesteps = tuple(timesteps)
        self.macs = np.asarray(macs, dtype=np.float64)
        self._saving = self.macs > 0  # reusing a layer without MACs saves nothing
        self._least = min(self.macs[self._saving].tolist(), default=0.0)
        num_evaluations, num_layers, self.max_age, size = responses.shape
        self.routed = tuple(range(1, num_evaluations)) if routed is None else tuple(routed)
        self.max_span = max_span
        self.reuses = tuple(reuses)
        self.order = order
        self.rows = np.ones((num_evaluations, num_layers), dtype=bool)
        self.reuse = [self.reuses[-1]] * num_evaluations
        self.columns = np.zeros((num_layers, size), dtype=np.float32)  # change of the image due to each layer
        self._offset = np.zeros(size, dtype=np.float32) if offset is None else offset
        self._fits = Fits(responses)
        self._weights: dict[tuple[int, int, tuple[int, ...]], Weights] = {}
        self._entries: dict[tuple[int, int, tuple[int, ...], str], Array | None] = {}
        self._nothing = np.zeros(size, dtype=np.float32)
        self._now = np.zeros((num_layers, num_evaluations, size), dtype=np.float32)  # what each entry adds
        self._flips = np.zeros_like(self._now)  # what a flip would add
        self._squares = np.zeros((num_layers, num_evaluations), dtype=np.float32)  # of these, summed
        self._possible = np.zeros((num_layers, num_evaluations), dtype=bool)
        self._refresh(range(num_layers))

    @property
    def predicted(self) -> float:
        """Predicted mean squared error per pixel."""
        return float(self.total @ self.total)

    @property
    def total(self) -> Array:
        """Predicted change of the image (M,)."""
        return self._offset + self.columns.sum(axis=0)

    @property
    def saved(self) -> float:
        """MACs saved."""
        return float((~self.rows).sum(axis=0) @ self.macs)

    @property
    def exhausted(self) -> bool:
        """Whether no more entry can be reused, whatever it saves."""
        return not (self._possible & self.rows.T & self._saving[:, None]).any()

    def _changes(
        self, bits: Sequence[bool], layer: int, reuse: Sequence[str], among: Sequence[int]
    ) -> list[Array] | None:
        """Return the changes of the image (M,) due to some consecutive entries of a layer's column of bits.

        None where that is impossible: a span may be too long, or an age not known.
        """
        found: list[Array] = []
        past = _computed_before(bits, among[0], self.order)
        for e in among:
            if bits[e]:
                past = (e, *past[: self.order - 1])
                found.append(self._nothing)
                continue
            one = self._entry(e, layer, past, reuse[e])
            if one is None:
                return None
            found.append(one)
        return found

    def _entry(self, e: int, layer: int, past: tuple[int, ...], reuse: str) -> Array | None:
        """Return `entry`, remembered; None where the span is too long or the age not known."""
        key = (e, layer, past, reuse)
        if key not in self._entries:
            possible = e - past[0] <= self.max_span and self._reaches(e, layer, past[0])
            self._entries[key] = self.entry(e, layer, past, reuse) if possible else None
        return self._entries[key]

    def _reaches(self, e: int, layer: int, past: int) -> bool:
        """Return whether the response of an entry to the output of evaluation `past` is known."""
        return e - past <= self.max_age and self._known[e][layer][e - past - 1]

    def _readable(self, e: int, layer: int, past: Sequence[int]) -> list[int]:
        """Return the evaluations of `past`, the last one first, up to the first whose response is not known."""
        for i, source in enumerate(past):
            if not self._reaches(e, layer, source):
                return list(past[:i])
        return list(past)

    def entry(self, e: int, layer: int, past: Sequence[int], reuse: str) -> Array:
        """Return the response (M,) of an entry that reuses the outputs of evaluations `past`, the last one first.

        The first output without a known response, and all after it, are not read.
        """
        past = self._readable(e, layer, past)
        ages, weights = self.responses[e, layer], self.weights(e, layer, past, reuse)
        change = weights[0] * ages[e - past[0] - 1]
        for source, weight in zip(past[1:], weights[1:], strict=False):
            change = change + weight * ages[e - source - 1]
        return change

    def weights(self, e: int, layer: int, past: Sequence[int], reuse: str) -> Weights:
        """Return the weights of the outputs of evaluations `past`, the last one first, or of the first of them.

        Fitted weights make this entry's own change of the image smallest.
        """
        if reuse == HOLD or len(past) == 1:
            return (1.0,)
        if reuse == LINEAR:
            t = self.timesteps
            return weights_of(line_slope(t[e], t[past[0]], t[past[1]]))
        key = (e, layer, tuple(past))
        if key not in self._weights:
            self._weights[key] = self._fits.weights(e, layer, [e - source for source in past])
        return self._weights[key]

    def stand_ins(self) -> dict[str, Any]:
        """Return the predictors, as `reuse`, `slopes` and `weights` of a graph."""
        weighted = self.fitted_sets()
        if self.order == 2:
            fitted = tuple(tuple(0.0 if len(one) == 1 else -one[1] for one in sets) for sets in weighted)
            return {"reuse": self.reuse, "slopes": fitted}
        return {"reuse": [WEIGHTED if reuse == FITTED else reuse for reuse in self.reuse], "weights": weighted}

    def fitted_sets(self) -> tuple[tuple[Weights, ...], ...]:
        """Return for each evaluation the weights of its reused layers, in order, where its reuse is `fitted`."""
        return tuple(
            tuple(self._weights_now(e, int(layer)) for layer in np.flatnonzero(~row)) if reuse == FITTED else ()
            for e, (row, reuse) in enumerate(zip(self.rows, self.reuse, strict=True))
        )

    def _weights_now(self, e: int, layer: int) -> Weights:
        past = _computed_before(self.rows[:, layer].tolist(), e, self.order)
        weights = self.weights(e, layer, self._readable(e, layer, past), FITTED)
        return weights if len(weights) == 1 else from_slopes([-weight for weight in weights[1:]])

    def set(self, rows: npt.NDArray[np.bool_], reuse: Sequence[str]) -> bool:
        """Take over rows and reuse; False, and nothing taken, where a span is too long or an age not known."""
        every = range(len(rows))
        changes = [self._changes(rows[:, layer].tolist(), layer, reuse, every) for layer in range(rows.shape[1])]
        if any(change is None for change in changes):
            return False
        self.rows, self.reuse, self._now = rows.copy(), list(reuse), np.array(changes, dtype=np.float32)
        self.columns = self._now.sum(axis=1)
        self._refresh(range(rows.shape[1]))
        return True

    def _refresh(self, layers: Iterable[int]) -> None:
        """Recompute what each flip of a bit of these layers would add to the change of the image."""
        for layer in layers:
            self._refresh_among(layer, self.routed)

    def _refresh_among(self, layer: int, evaluations: Iterable[int]) -> None:
        bits = self.rows[:, layer].tolist()
        for e in evaluations:
            last = self._last_reader(bits, e)  # entries up to it depend on this one's output
            bits[e] = not bits[e]
            after = self._changes(bits, layer, self.reuse, range(e, last))
            bits[e] = not bits[e]
            self._possible[layer, e] = after is not None
            if after is not None:
                self._flips[layer, e] = flip = sum(after, -self._now[layer, e:last].sum(axis=0))
                self._squares[layer, e] = flip @ flip

    def _last_reader(self, bits: Sequence[bool], e: int) -> int:
        """Return the evaluation from which on no entry reads evaluation `e`, whether it computes or not."""
        computed = 0
        for other in range(e + 1, len(bits)):
            computed += bits[other]
            if computed == self.order:
                return other
        return len(bits)

    def _flip(self, e: int, layer: int) -> None:
        self.columns[layer] += self._flips[layer, e]
        self.rows[e, layer] = not self.rows[e, layer]
        bits = self.rows[:, layer].tolist()
        first, last = min((*_computed_before(bits, e, self.order), e)), self._last_reader(bits, e)
        self._now[layer, e:last] = self._changes(bits, layer, self.reuse, range(e, last))
        self._refresh_among(layer, [other for other in self.routed if first <= other <= last])

    def _flip_best(self, *, to: bool, room: float, avoid: Collection[Entry] = ()) -> bool:
        """Flip the bit with the least change of the predicted error per MAC within `room`; False where there is none.

        To reuse costs error, to compute gains it: either way the smallest change per MAC comes first.
        """
        total = self.total
        along = self._flips.reshape(-1, len(total)) @ total
        change = 2 * along.reshape(self._squares.shape) + self._squares  # (L, E)
        fitting = self._saving & (self.macs <= room + self._least / 2)
        allowed = self._possible & (to != self.rows.T) & fitting[:, None]
        for e, layer in avoid:
            allowed[layer, e] = False
        if not allowed.any():
            return False
        per_mac = np.full_like(change, np.inf)
        np.divide(change, self.macs[:, None], out=per_mac, where=allowed)
        chosen = np.unravel_index(int(per_mac.argmin()), per_mac.shape)
        self._flip(int(chosen[1]), int(chosen[0]))
        return True

    def compute(self, entries: Iterable[Entry]) -> None:
        """Compute some reused entries (evaluation, layer) again."""
        for e, layer in entries:
            if not self.rows[e, layer]:
                self._flip(e, layer)

    def choose_reuse(self) -> bool:
        """Give each evaluation the reuse that predicts the smaller error; say whether one changed."""
        changed: list[int] = []
        if len(self.reuses) == 1:
            return False
        for e in self.routed:
            if self.rows[e].all():
                continue
            total, changes = self.total, self._changes_by_reuse(e)
            errors = {reuse: float(np.square(total + change.sum(axis=0)).sum()) for reuse, change in changes.items()}
            best = min((error, reuse) for reuse, error in errors.items())[1]
            if errors[best] < errors[self.reuse[e]]:
                self.columns[~self.rows[e]] += changes[best]
                self._now[~self.rows[e], e] += changes[best]
                self.reuse[e] = best
                changed.append(e)
        for layer in range(self.rows.shape[1]) if changed else ():
            bits = self.rows[:, layer].tolist()
            ends = [(e, self._last_reader(bits, e)) for e in self.routed]
            self._refresh_among(layer, [e for e, end in ends if any(e <= other < end for other in changed)])
        return bool(changed)

    def _changes_by_reuse(self, e: int) -> dict[str, Array]:
        """Return what each predictor would add to the columns of the layers reused at evaluation `e`, (layers, M)."""
        layers = np.flatnonzero(~self.rows[e]).tolist()
        past = {i: _computed_before(self.rows[:, i].tolist(), e, self.order) for i in layers}
        entries = {
            reuse: np.array([self._entry(e, i, past[i], reuse) for i in layers], dtype=np.float32)
            for reuse in self.reuses
        }
        return {reuse: of_reuse - entries[self.reuse[e]] for reuse, of_reuse in entries.items()}

    def grow(self, to_save: float, *, avoid: Collection[Entry] = ()) -> None:
        """Reuse entries, the least added error per MAC first, until `to_save` MACs are saved.

        Where only layers are left that save more than is wanted, one is reused if that comes nearer.
        """
        steps = 0
        while self.saved < to_save - self._least / 2:
            room = to_save - self.saved
            if not self._flip_best(to=False, room=room, avoid=avoid):
                self._flip_best(to=False, room=2 * room - self._least / 2, avoid=avoid)
                break
            steps += 1
            if steps % 8 == 0:
                self.choose_reuse()
        self.choose_reuse()

    def shrink(self, to_save: float) -> None:
        """Compute entries again, the largest drop of error per MAC first, while at least `to_save` stays saved."""
        while self._flip_best(to=True, room=self.saved - to_save):
            pass

    def exchange(self, to_save: float, *, rounds: int = 60, depths: Sequence[int] = (1, 2, 4, 8, 16)) -> None:
        """Reuse a few entries too many and compute others again, while that lowers the predicted error."""
        for _ in range(rounds):
            error, rows, reuse = self.predicted, self.rows.copy(), list(self.reuse)
            for depth in depths:
                self.grow(to_save + depth * float(self.macs.mean()))
                self.shrink(to_save)
                self.choose_reuse()
                if self.predicted < 0.999 * error:
                    break
                self.set(rows, reuse)
            else:
                return


def _computed_before(bits: Sequence[bool], e: int, count: int) -> tuple[int, ...]:
    """Return up to `count` evaluations before `e` that compute, the last one first."""
    found: list[int] = []
    for other in range(e - 1, -1, -1):
        if bits[other]:
            found.append(other)
            if len(found) == count:
                break
    return tuple(found)
