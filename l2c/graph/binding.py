"""The binding of a cache graph (what it is valid for), and the checks that both executors call.

The sampler and the hooks on a pipeline know these things at different times: layers and weights when a graph is
applied, times and guidance at the latest when a trajectory begins. Each check is therefore a function of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from l2c.graph.fields import GraphFields
from l2c.graph.predictor import HOLD
from l2c.io.names import shown

NEUTRAL_SCALE = {"dit": 1.0, "uvit": 0.0, "cfg": 1.0, "cfg_normed": 1.0}  # of guidance that is off, by its mode
GUIDANCES = (*NEUTRAL_SCALE, "embedded")  # the last has no scale at which it is off
SCHEDULERS = {  # the classes of diffusers that take our solvers' steps
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "dpm_solver_2s": "DPMSolverSinglestepScheduler",
    "dpm_solver_2m": "DPMSolverMultistepScheduler",
    "flow_euler": "FlowMatchEulerDiscreteScheduler",
    "flow_dpm_2m": "DPMSolverMultistepScheduler",
}
DRAWING = (  # parts of the names of solvers that add noise
    *("ddpm", "lcm", "tcd", "sasolver", "scm", "cmstochastic", "ancestral", "sde", "cogvideoxdpm"),
    *("unclip", "repaint", "rfd4proteina"),
)


@dataclass(frozen=True, kw_only=True)
class Binding:
    """Model, weights, solver, times and guidance that a graph, calibration or correction is valid for.

    Attributes:
        model: name of the backbone.
        layers: names of its layers, in the order of a row.
        solver: name of the solver, or class of a diffusers scheduler.
        timesteps: t that the backbone is given at each evaluation, noisiest first, strictly monotone.
        solver_options: the solver's own settings, `eta` for one.
        guidance: what `cfg_scale` means, one of `GUIDANCES`, see `diffusion.guidance.Guidance`; None = not said.
        cfg_scale: guidance scale; None = any.
        guidance_options: further arguments of a pipeline's call that say how it is guided, by name; none = any.
        fingerprint: digest of the weights, `sha256:...`; None = any.

    """

    model: str
    layers: tuple[str, ...]
    solver: str
    timesteps: tuple[float, ...]
    solver_options: Mapping[str, float] = field(default_factory=dict)
    guidance: str | None = None
    cfg_scale: float | None = None
    guidance_options: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: str | None = None

    @classmethod
    def of_graph(cls, graph: GraphFields) -> Binding:
        """Return the binding of a graph."""
        return cls(**{name: getattr(graph, name) for name in cls.__dataclass_fields__})

    @property
    def fields(self) -> dict[str, Any]:
        """The attributes by name, which are arguments of `CacheGraph` too."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @property
    def head(self) -> dict[str, Any]:
        """The part that a calibration's file keeps, as JSON."""
        return {
            "model": self.model,
            "weights": self.fingerprint,
            "solver": self.solver,
            "solver_options": dict(self.solver_options),
            "timesteps": list(self.timesteps),
            "guidance_scale": self.cfg_scale,
            **({"guidance_options": dict(self.guidance_options)} if self.guidance_options else {}),
        }

    @property
    def num_evaluations(self) -> int:
        """Number of evaluations of a trajectory."""
        return len(self.timesteps)

    @property
    def draws(self) -> bool:
        """Whether the solver adds noise at its steps."""
        return draws_noise(self.solver, self.solver_options.get("eta", 0.0))


def draws_noise(solver: str, eta: float = 0.0) -> bool:
    """Return whether a solver (or the class of a diffusers scheduler) adds noise at its steps."""
    return eta > 0 or any(part in solver.lower() for part in DRAWING)


def scale_in_use(given: float | None, of_graph: float | None, published: float | None) -> float | None:
    """Return the guidance scale that counts: given, else the graph's, else the published one, else None (off)."""
    return next((scale for scale in (given, of_graph, published) if scale is not None), None)


def refusal(what: str, wanted: object, got: object, mend: str) -> ValueError:
    """Return the error of a graph that is used with something else than it was made for."""
    return ValueError(f"the graph was made for {what} {shown(wanted)}, got {shown(got)}; {mend}")


def check_layers(binding: Binding, model: str, layers: Sequence[str]) -> None:
    """Refuse a graph of another architecture.

    Args:
        binding: the graph's.
        model: name of the backbone at hand.
        layers: names of its layers.

    Raises:
        ValueError: if the layers differ.

    """
    if binding.layers != tuple(layers):
        raise wrong_layers(binding, model, layers)


def wrong_layers(binding: Binding, model: str, layers: Sequence[str]) -> ValueError:
    """Return the error of a graph whose layers are not those of a model."""
    own = f"has {len(layers)} ({shown(layers[0])}, ...)" if layers else "has none of these names"
    return ValueError(
        f"the graph was made for {shown(binding.model)} with {len(binding.layers)} layers "
        f"({shown(binding.layers[0])}, ...), but {shown(model)} {own}; take a graph of this model"
    )


def check_weights(binding: Binding, names: Sequence[str], digest: Callable[[], str]) -> None:
    """Refuse a graph of other weights; one that is bound to none must be of a model of this name.

    Args:
        binding: the graph's.
        names: names of the model at hand, its own one first.
        digest: returns the fingerprint of its weights; called only where the graph has one.

    Raises:
        ValueError: if weights or names differ.

    """
    mend = "take a graph made for these weights, or pass any_weights=True to use it all the same"
    if binding.fingerprint is None:
        if binding.model not in names and names[0] != names[-1]:
            raise ValueError(
                f"the graph was made for {shown(binding.model)}, but the backbone is {shown(names[0])}; {mend}"
            )
        return
    found = digest()
    if found != binding.fingerprint:
        raise ValueError(
            f"the graph was made for other weights of {shown(binding.model)} ({binding.fingerprint[:19]}...) than "
            f"those of {shown(names[0])} ({found[:19]}...); {mend}"
        )


def check_solver(binding: Binding, solver: str, *, mend: str | None = None) -> None:
    """Refuse another solver than the graph's; a diffusers scheduler stands for the solver whose steps it takes.

    Raises:
        ValueError: if it is another one.

    """
    names = (binding.solver, SCHEDULERS.get(binding.solver, binding.solver))
    if solver not in names:
        raise refusal("solver", binding.solver, solver, mend or f"leave solver out, or make a graph for {solver}")


def check_num_evaluations(binding: Binding, num_evaluations: int, *, mend: str | None = None) -> None:
    """Refuse another number of evaluations than the graph's.

    Raises:
        ValueError: if it is another one.

    """
    if num_evaluations != binding.num_evaluations:
        mend = mend or f"leave num_evaluations out, or make a graph for {num_evaluations}"
        raise refusal("num_evaluations", binding.num_evaluations, num_evaluations, mend)


def check_options(binding: Binding, options: Mapping[str, float], *, mend: str | None = None) -> None:
    """Refuse settings of the solver that differ from the graph's; a graph that does not name one accepts any.

    Raises:
        ValueError: if one differs.

    """
    for name, got in options.items():
        wanted = binding.solver_options.get(name, got)
        if wanted != got:
            raise refusal(name, wanted, got, mend or f"leave {name} out, or make a graph for {got}")


def check_times(
    binding: Binding, timesteps: Sequence[float], tolerance: Callable[[float], float], *, mend: str | None = None
) -> None:
    """Refuse a graph whose evaluations lie at other times than those of the solver at hand.

    Args:
        binding: the graph's.
        timesteps: timesteps of the solver, as many as the graph's.
        tolerance: returns the difference that is allowed at a time, in units of t.
        mend: how to mend it; None = the sampler's way.

    Raises:
        ValueError: if a time differs.

    """
    for e, (ours, theirs) in enumerate(zip(binding.timesteps, timesteps, strict=True)):
        if not abs(ours - theirs) <= tolerance(ours):
            raise ValueError(
                f"the graph's evaluation {e} is at t = {ours:g}, but {shown(binding.solver)} with {len(timesteps)} "
                f"evaluations takes it at t = {theirs:g}; {mend or 'make a graph for these timesteps'}"
            )


def check_guidance(
    binding: Binding,
    mode: str | None,
    scale: float | None,
    *,
    model: str = "the model",
    any_guidance: bool = False,
    mend: str | None = None,
) -> None:
    """Refuse another guidance than the graph was made under; a graph without a scale accepts any.

    Args:
        binding: the graph's.
        mode: meaning of the given scale; None = the graph's.
        scale: None or the neutral value = off.
        model: name of the model at hand.
        any_guidance: accept another scale.
        mend: how to mend another scale; None = the sampler's way.

    Raises:
        ValueError: if mode or scale differ.

    """
    if mode is not None and binding.guidance not in (None, mode):
        raise ValueError(
            f"the graph was made under guidance {binding.guidance!r}, but {shown(model)} uses {mode!r}; "
            "take a graph of this backbone"
        )
    if binding.cfg_scale is None or any_guidance:
        return
    off = NEUTRAL_SCALE.get(mode or binding.guidance or "")
    wanted, got = (off if value is None else value for value in (binding.cfg_scale, scale))
    if wanted is None or got is None or not math.isclose(wanted, got, rel_tol=1e-6, abs_tol=1e-9):
        mend = mend or f"leave cfg_scale out, or make a graph for {shown(scale)}"
        raise refusal(
            "cfg_scale", binding.cfg_scale, scale, f"{mend}, or pass any_guidance=True to use it all the same"
        )


def check_guidance_options(
    binding: Binding,
    options: Mapping[str, Any],
    *,
    usual: Mapping[str, Any] | None = None,
    any_guidance: bool = False,
    mend: str = "call the pipeline with",
) -> None:
    """Refuse a call that is guided in another way than the one that the graph was made for, beside its scale.

    Args:
        binding: the graph's; one without such options accepts any.
        options: those of the call, by name.
        usual: what counts for those that the graph does not know, by name; others of these are accepted.
        any_guidance: accept others.
        mend: how to mend one, words before `name=value`.

    Raises:
        ValueError: if one differs.

    """
    known = {} if any_guidance else binding.guidance_options
    for name, got in options.items() if known else ():
        wanted = known.get(name, (usual or {}).get(name, got))
        if not _alike(wanted, got):
            mended = f"{mend} {shown(name)}={shown(wanted)}"
            raise refusal(shown(name), wanted, got, f"{mended}, or pass any_guidance=True to use it all the same")


def _alike(wanted: Any, got: Any) -> bool:
    if isinstance(wanted, (list, tuple)) and isinstance(got, (list, tuple)):
        return len(wanted) == len(got) and all(map(_alike, wanted, got))
    if isinstance(wanted, (int, float)) and isinstance(got, (int, float)):
        return math.isclose(wanted, got, rel_tol=1e-6, abs_tol=1e-9)
    return bool(wanted == got)


def check_noise(graph: GraphFields, *, draws: bool) -> None:
    """Refuse to extrapolate along trajectories to which a solver adds noise, where the graph was not made for that.

    Args:
        graph: the graph.
        draws: whether the solver at hand adds noise at its steps.

    Raises:
        ValueError: if it does, and the graph extrapolates from trajectories without noise.

    """
    if not draws or Binding.of_graph(graph).draws:
        return
    e = next((e for e, slopes in enumerate(graph.entry_slopes) if any(slopes)), None)
    if e is not None:
        raise ValueError(
            f"the graph extrapolates (reuse is {graph.reuse[e]} at evaluation {e}) along trajectories without noise, "
            f"but the solver adds noise at its steps; take eta = 0, or a graph whose reuse is {HOLD}"
        )
