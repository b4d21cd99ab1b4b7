"""Makes the binding of a graph from a backbone, a solver and guidance; the only place that makes bindings."""

from __future__ import annotations

from l2c.backbones.backbone import Backbone, fingerprint
from l2c.diffusion import Guidance, Solver
from l2c.graph.binding import Binding


def binding_of(
    backbone: Backbone, solver: Solver, *, weights_bound: bool, guidance: Guidance | float | None = None
) -> Binding:
    """Return the binding of a graph that is made now.

    Args:
        backbone: gives the model's name and layers; a network on the meta device where weights are not bound.
        solver: gives its name, options and times.
        weights_bound: whether the graph depends on the weights; one of random weights, or that nothing was measured
            or trained for, does not.
        guidance: what the graph was measured or trained under, or its scale; None = under none, valid for any scale.

    Raises:
        ValueError: if the weights are bound and cannot be digested.

    """
    conventions = backbone.conventions
    return Binding(
        model=conventions.name,
        layers=tuple(backbone.layer_names),
        solver=solver.name,
        timesteps=solver.timesteps,
        solver_options=dict(solver.options),
        guidance=conventions.guidance,
        cfg_scale=guidance.scale if isinstance(guidance, Guidance) else guidance,
        fingerprint=fingerprint(backbone) if weights_bound else None,
    )
