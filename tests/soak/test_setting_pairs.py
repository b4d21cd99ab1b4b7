"""Two and three settings at once, wrong and right ones mixed: wrong ones are told before work, right ones work."""

from __future__ import annotations

import random

import pytest
from cheap import commands
from forked import run
from test_kills import check_whole, inputs  # noqa: F401 - a fixture
from test_wrong_settings import override
from wrong_settings import TRAPS, allowed, composed, right_value, rules_of

from l2c.commands.frame.table import COMMANDS

NAMES = [name for name, command in COMMANDS.items() if command.hydra]
SECONDS = 200.0
SLOW = (("compile",), ("mode",))  # compiled blocks take a minute


def drawn(name, line, source):
    """Return two or three settings of a command at random, and whether one of them is wrong."""
    module = COMMANDS[name].module
    settings = [part for part in line[1:] if not part.startswith("hydra.")]
    rules = [one for one in rules_of(module, composed(module, *settings)) if one[0] not in SLOW]
    chosen, wrong = [], False
    for path, rule in source.sample(rules, source.choice((2, 2, 3))):
        bad = [value for value in TRAPS if not allowed(rule, value) and "\0" not in str(value)]
        is_wrong = bool(bad) and source.random() < 0.25
        wrong |= is_wrong
        chosen.append((path, source.choice(bad) if is_wrong else right_value(rule, source)))
    return chosen, wrong


def with_settings(line, chosen):
    """Return a command's line with some settings in the place of those that it has."""
    names = {".".join(path) for path, _ in chosen}
    kept = [part for part in line if part.lstrip("+~").partition("=")[0] not in names]
    return [*kept, *(override(path, value) for path, value in chosen)]


@pytest.mark.parametrize("name", NAMES)
def test_settings_together_end_well_or_in_one_sentence(name, tmp_path, inputs, times, counted):  # noqa: F811
    tried, source = times(2 if name in ("graph", "import") else 0, 100), random.Random(name)
    cheap = commands(inputs).get(name)
    line = cheap.line if cheap else [name, "hydra.run.dir=run"]
    refused = done = 0
    faults = []
    for i in range(tried):
        chosen, wrong = drawn(name, line, source)
        folder = tmp_path / str(i)
        ended = run(with_settings(line, chosen), folder, seconds=SECONDS, memory=6 * 2**30)
        left = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
        refused += ended.sentence is not None
        done += ended.code == 0
        fault = (
            (ended.code != 0 and not ended.sentence and "ended in neither")
            or (wrong and (ended.code == 0 or bool(left)) and "was wrong and did something")
            or ""
        )
        if fault:
            faults.append((fault, with_settings(line, chosen), ended.code, ended.err[-800:], left))
        check_whole(folder)
    counted(tried=tried, refused=refused, done=done, wrong=len(faults))
    assert not faults, "\n".join(map(str, faults))
