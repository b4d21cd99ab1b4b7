"""Which entries to reuse, from the responses of the image: the sum of all changes is what counts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from l2c.graph.predictor import FITTED, HOLD, LINEAR, line_slope, weights_of

Array = npt.NDArray[np.float32]
Entry = tuple[int, int]
SLOPES = (-1.0, 4.0)  # fitted slopes are kept within


class Allocation:
    """Rows and reuse that grow from all-compute by the cheapest change of the image per MAC saved.

    The predicted change of the image is the sum over reused entries of their responses, so that entries which
    cancel go together and entries which add up do not.

    Args:
        responses: (E, L, A, M), see `measure_responses`; NaN where an age is not known: no entry may be that old.
        timesteps: t of each evaluation.
        macs: of each layer, (L,).
        routed: evaluations that may reuse; None = all but the first.
        max_span: evaluations in a row that a layer may be reused.
        reuses: what may stand in, of `hold`, `linear` and `fitted`.

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
    ) -> None:
        self._known = np.asarray(np.isfinite(responses).all(axis=3))  # (E, L, A)
        self.responses = responses
        self.timesteps = tuple(timesteps)
        self.macs = np.asarray(macs, dtype=np.float64)
        num_evaluations, num_layers, self.max_age, size = responses.shape
        self.routed = tuple(range(1, num_evaluations)) if routed is None else tuple(routed)
        self.max_span = max_span
        self.reuses = tuple(reuses)
        self.rows = np.ones((num_evaluations, num_layers), dtype=bool)
        self.reuse = [self.reuses[-1]] * num_evaluations
        self.columns = np.zeros((num_layers, size), dtype=np.float32)  # change of the image due to each layer
        self._slopes: dict[tuple[int, int, int, int], float] = {}
        self._entries: dict[tuple[int, int, int, int | None, str], Array | None] = {}
        self._flips = np.zeros((num_layers, num_evaluations, size), dtype=np.float32)  # what a flip would add
        self._squares = np.zeros((num_layers, num_evaluations), dtype=np.float32)  # of these, summed
        self._possible = np.zeros((num_layers, num_evaluations), dtype=bool)
        self._refresh(range(num_layers))

    @property
    def predicted(self) -> float:
        """Predicted mean squared error per pixel."""
        total = self.columns.sum(axis=0)
        return float(total @ total)

    @property
    def saved(self) -> float:
        """MACs saved."""
        return float((~self.rows).sum(axis=0) @ self.macs)

    def column(self, bits: npt.NDArray[np.bool_], layer: int, reuse: Sequence[str]) -> Array | None:
        """Return the change of the image (M,) due to one layer's column of bits; None where it is impossible.

        A span may be too long, or an age not known.
        """
        return self._sum(bits, layer, reuse, range(len(bits)))

    def _sum(
        self, bits: npt.NDArray[np.bool_], layer: int, reuse: Sequence[str], among: Sequence[int]
    ) -> Array | None:
        """Return the change of the image (M,) due to some consecutive entries of a column; None where impossible."""
        change = np.zeros(self.responses.shape[3], dtype=np.float32)
        computed = np.flatnonzero(bits[: among[0]])[-2:].tolist()
        for e in among:
            if bits[e]:
                computed.append(e)
                continue
            one = self._entry(e, layer, computed[-1], computed[-2] if len(computed) > 1 else None, reuse[e])
            if one is None:
                return None
            change += one
        return change

    def _entry(self, e: int, layer: int, last: int, before: int | None, reuse: str) -> Array | None:
        """Return `entry`, remembered; None where the span is too long or the age not known."""
        key = (e, layer, last, before, reuse)
        if key not in self._entries:
            possible = e - last <= self.max_span and self._reaches(e, layer, last)
            self._entries[key] = self.entry(e, layer, last, before, reuse) if possible else None
        return self._entries[key]

    def _reaches(self, e: int, layer: int, past: int) -> bool:
        """Say whether the response of an entry to the output of evaluation `past` is known."""
        return e - past <= self.max_age and bool(self._known[e, layer, e - past - 1])

    def entry(self, e: int, layer: int, last: int, before: int | None, reuse: str) -> Array:
        """Return the response (M,) of an entry that reuses the outputs of evaluations `last` and `before`."""
        ages = self.responses[e, layer]
        if reuse == HOLD or before is None or not self._reaches(e, layer, before):
            return ages[e - last - 1]
        of_last, of_before = weights_of(self.slope(e, layer, last, before, reuse))
        return of_last * ages[e - last - 1] + of_before * ages[e - before - 1]

    def slope(self, e: int, layer: int, last: int, before: int, reuse: str) -> float:
        """Return how far an entry goes on from evaluation `before` over `last`.

        A fitted slope makes this entry's own change of the image smallest.
        """
        t = self.timesteps
        if reuse == LINEAR:
            return line_slope(t[e], t[last], t[before])
        key = (e, layer, last, before)
        if key not in self._slopes:
            held = self.responses[e, layer, e - last - 1]
            step = held - self.responses[e, layer, e - before - 1]
            self._slopes[key] = float(np.clip(-(held @ step) / max(step @ step, 1e-30), *SLOPES))
        return self._slopes[key]

    @property
    def fitted(self) -> tuple[tuple[float, ...], ...]:
        """Slopes of the reused layers of each evaluation whose reuse is `fitted`, as a graph wants them."""
        return tuple(
            tuple(self._slope_now(e, int(layer)) for layer in np.flatnonzero(~row)) if reuse == FITTED else ()
            for e, (row, reuse) in enumerate(zip(self.rows, self.reuse, strict=True))
        )

    def _slope_now(self, e: int, layer: int) -> float:
        computed = np.flatnonzero(self.rows[:e, layer])
        if len(computed) < 2 or not self._reaches(e, layer, int(computed[-2])):
            return 0.0
        return round(self.slope(e, layer, int(computed[-1]), int(computed[-2]), FITTED), 6)

    def set(self, rows: npt.NDArray[np.bool_], reuse: Sequence[str]) -> None:
        """Take over rows and reuse."""
        self.rows, self.reuse = rows.copy(), list(reuse)
        for layer in range(rows.shape[1]):
            column = self.column(rows[:, layer], layer, reuse)
            assert column is not None
            self.columns[layer] = column
        self._refresh(range(rows.shape[1]))

    def _refresh(self, layers: Iterable[int]) -> None:
        """Work out anew what each flip of a bit of these layers would add to the change of the image."""
        for layer in layers:
            self._refresh_among(layer, self.routed)

    def _refresh_among(self, layer: int, evaluations: Iterable[int]) -> None:
        now = self.rows[:, layer]
        for e in evaluations:
            among = range(e, _second_computed(now, e, 1))  # the entries whose past outputs depend on this bit
            flipped = now.copy()
            flipped[e] = not flipped[e]
            before = self._sum(now, layer, self.reuse, among)
            after = self._sum(flipped, layer, self.reuse, among)
            self._possible[layer, e] = after is not None
            if before is not None and after is not None:
                self._flips[layer, e] = after - before
                self._squares[layer, e] = self._flips[layer, e] @ self._flips[layer, e]

    def _flip(self, e: int, layer: int) -> None:
        self.columns[layer] += self._flips[layer, e]
        self.rows[e, layer] = not self.rows[e, layer]
        bits = self.rows[:, layer]
        first, last = _second_computed(bits, e, -1), _second_computed(bits, e, 1)
        self._refresh_among(layer, [other for other in self.routed if first <= other <= last])

    def _flip_best(self, *, to: bool, room: float, avoid: Collection[Entry] = ()) -> bool:
        """Flip the bit with the least change of the predicted error per MAC within `room`; False where there is none.

        To reuse costs error, to compute gains it: either way the smallest change per MAC comes first.
        """
        total = self.columns.sum(axis=0)
        change = 2 * self._flips @ total + self._squares  # (L, E)
        allowed = self._possible & (to != self.rows.T) & (self.macs[:, None] <= room + self.macs.min() / 2)
        for e, layer in avoid:
            allowed[layer, e] = False
        if not allowed.any():
            return False
        per_mac = np.where(allowed, change / self.macs[:, None], np.inf)
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
        changed = False
        if len(self.reuses) == 1:
            return changed
        for e in self.routed:
            if self.rows[e].all():
                continue
            best = (self.predicted, self.reuse[e])
            for reuse in self.reuses:
                if reuse == self.reuse[e]:
                    continue
                columns = self._with_reuse(e, reuse)
                total = columns.sum(axis=0)
                best = min(best, (float(total @ total), reuse))
            if best[1] != self.reuse[e]:
                self.columns, self.reuse[e] = self._with_reuse(e, best[1]), best[1]
                changed = True
        if changed:
            self._refresh(range(self.rows.shape[1]))
        return changed

    def _with_reuse(self, e: int, reuse: str) -> Array:
        modes = [*self.reuse[:e], reuse, *self.reuse[e + 1 :]]
        columns = self.columns.copy()
        for layer in np.flatnonzero(~self.rows[e]):
            column = self.column(self.rows[:, layer], int(layer), modes)
            assert column is not None
            columns[layer] = column
        return columns

    def grow(self, to_save: float, *, avoid: Collection[Entry] = ()) -> None:
        """Reuse entries, the least added error per MAC first, until `to_save` MACs are saved."""
        steps = 0
        while self.saved < to_save - self.macs.min() / 2:
            if not self._flip_best(to=False, room=to_save - self.saved, avoid=avoid):
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
        """Overshoot the budget by a few entries and come back, as long as that lowers the predicted error."""
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


def _second_computed(bits: npt.NDArray[np.bool_], e: int, direction: int) -> int:
    """Return the second evaluation after (direction 1) or before (-1) `e` that computes, or the end of the column."""
    beside = np.flatnonzero(bits[e + 1 :]) + e + 1 if direction > 0 else np.flatnonzero(bits[:e])[::-1]
    if len(beside) > 1:
        return int(beside[1])
    return len(bits) if direction > 0 else 0
