"""Which methods a comparison takes, and which of their options and values."""

import inspect

import pytest

from l2c.evaluation.dynamic_methods import OPTIONS as DEFAULTS
from l2c.evaluation.dynamic_methods import at_budget
from l2c.evaluation.method_settings import DYNAMIC_OPTIONS, check_method
from l2c.io.settings import Number


@pytest.mark.parametrize("name", DYNAMIC_OPTIONS)
def test_every_option_of_a_dynamic_method_has_a_rule_that_its_default_keeps(name):
    searched = inspect.signature(at_budget).parameters.values()
    search = {one.name: one.default for one in searched if one.default is not one.empty}
    defaults = {**DEFAULTS[name], **search}
    assert set(DYNAMIC_OPTIONS[name]) == set(defaults)
    check_method(name, defaults, measured_to="uncached")
    assert all(isinstance(rule, Number) for rule in DYNAMIC_OPTIONS[name].values())


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("fewer_steps", {}),
        ("fewer_2m", {"policy": "fewer_steps", "solver": "dpm_solver_2m"}),
        ("better", {"policy": "gram", "solver": "dpm_solver_2m", "num_evaluations": 12, "order": 3}),
        ("shorter", {"policy": "best", "num_evaluations": [12]}),
        ("best_2m", {"policy": "best", "solver": "dpm_solver_2m", "num_evaluations": 12}),
        ("interval_taylor2", {"policy": "interval", "reuse": "taylor2", "phase": 1}),
        ("late", {"policy": "dbcache", "back": 1}),
    ],
)
def test_methods_are_taken(method, options):
    check_method(method, options, measured_to="ode")


@pytest.mark.parametrize(
    ("method", "options", "sentence"),
    [
        ("smothcache", {}, "unknown method 'smothcache'; did you mean smoothcache"),
        ("late", {"policy": "dbcahce"}, "unknown method 'dbcahce'; did you mean dbcache"),
        ("dbcache", {"fronts": 1}, "methods.dbcache has no option 'fronts'; its options are front, back, warmup"),
        ("dbcache", {"front": 0}, "methods.dbcache.front must be a whole number >= 1, got 0"),
        ("magcache", {"retention": 2}, "methods.magcache.retention must be a number >= 0 and <= 1, got 2"),
        ("fewer_steps", {"n": 2}, "methods.fewer_steps has no option 'n'; its options are solver"),
        ("gram", {"num_evaluations": 12}, "policy gram has no option 'num_evaluations'"),
        ("gram", {"solver": "dpm_solver_3m"}, "methods.gram.solver must be ddim, .* got 'dpm_solver_3m'"),
        ("interval", {"solver": "ddim"}, "policy interval has no option 'solver'"),
        ("gram", {"solver": "ddim"}, "methods.gram has another solver, .*: measured_to=ode"),
        ("gram", {"order": 5}, "methods.gram.order must be a whole number >= 2 and <= 4 or null, got 5"),
    ],
)
def test_others_are_refused_in_one_sentence(method, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        check_method(method, options, measured_to="uncached")
