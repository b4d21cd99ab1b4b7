"""Methods that cannot be compared on a sampler and its noises are refused before any of them is measured."""

import pytest

import l2c
from l2c.evaluation.method_fit import check_for
from l2c.policies.context import PolicyContext


@pytest.fixture
def context_of(make_dit):
    def of(*, whole=False, **options):
        backbone = l2c.WholeOutput(make_dit()) if whole else make_dit()
        return PolicyContext.of(l2c.Sampler(backbone, num_evaluations=4, **options))

    return of


def test_methods_that_fit_are_taken(context_of):
    methods = {"interval": None, "few": {"policy": "fewer_steps"}, "gram": {}, "dbcache": {"front": 1}, "best": None}
    check_for(methods, context_of(solver="ddim"), seed=1000, measured_to="ode")
    check_for(
        {"random": {"seed": 5}}, context_of(solver="ddpm"), seed=5, measured_to="uncached"
    )  # of rows, not noises


@pytest.mark.parametrize(
    ("methods", "solver", "asked", "sentence"),
    [
        ({"interval": {}}, "ddpm", {"measured_to": "ode"}, "measured_to=ode compares with .*, but ddpm adds noise"),
        ({"b": {"policy": "budcache"}}, "ddpm", {}, "policy budcache compares images .* but ddpm adds noise"),
        ({"teacache": {}}, "ddim", {"seed": 7}, "methods.teacache.seed=7 is that of the noises .* another seed"),
        ({"best": {"seed": 3}}, "ddim", {"seed": 3}, "methods.best.seed=3 is that of the noises"),
        ({"x": {"policy": "l2p"}}, "ddim", {"seed": 7}, "methods.x.seed=7 is that of the noises"),
        ({"dbcache": {"front": 9}}, "ddim", {}, r"methods.dbcache: front \+ back must be below the \d blocks, got 9"),
    ],
)
def test_others_are_refused_in_one_sentence(context_of, methods, solver, asked, sentence):
    with pytest.raises(ValueError, match=sentence):
        check_for(methods, context_of(solver=solver), **{"seed": 1000, "measured_to": "uncached", **asked})


def test_a_network_without_blocks_takes_no_dynamic_method(context_of):
    with pytest.raises(ValueError, match=r"below the 0 blocks, .* leave model.layers at its default"):
        check_for({"magcache": {}}, context_of(whole=True, solver="ddim"), seed=1, measured_to="uncached")
