"""Kinds and ranges of the settings that several commands share, checked before anything heavy is imported."""

from __future__ import annotations

import math
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

# By the last part of a setting's name. A setting that is a list or null by default may stay so.
FROM_ONE = {
    *("batch_size", "image_size", "max_age", "max_steps", "num_evaluations", "num_images", "num_probes", "num_seeds"),
    *("num_threads", "num_trajectories", "random_draws", "repetitions", "shard_size", "timing_batch"),
    *("timing_repetitions", "warm_up", "checkpoint_every_n_steps", "heatmap_every_n_steps"),
}
FROM_ZERO = {"seed", "num_workers", "warmup_steps"}
SHARES = {"label_dropout", "keep", "ema_decay"}
FREE = {"init"}  # a number or a word
LIGHTNINGS = "trainer."  # Lightning checks its own


def check_settings(cfg: DictConfig, config_name: str) -> None:
    """Check every setting that the command line gives, by its name and the kind of its default.

    Raises:
        ValueError: a text where a number belongs, a number out of range or not finite.

    """
    choices = HydraConfig.get().runtime.choices
    overrides = OverridesParser.create().parse_overrides(list(HydraConfig.get().overrides.task))
    groups = [o.input_line or "" for o in overrides if o.key_or_group in choices]
    names = [o.key_or_group for o in overrides if not (o.key_or_group in choices or o.is_delete() or o.is_add())]
    names = [name for name in names if not name.startswith(LIGHTNINGS)]
    if not names:
        return
    defaults = compose(config_name, groups)
    for name in names:
        default, value = (_plain(config, name) for config in (defaults, cfg))
        for key, inner_default, inner in _leaves(name, default, value):
            check_setting(key, inner_default, inner)


def check_setting(name: str, default: Any, value: Any) -> None:
    """Check one setting by its name and the kind of its default.

    Raises:
        ValueError: the value is of another kind or out of range.

    """
    last = name.rpartition(".")[2]
    if isinstance(default, list | dict) or isinstance(value, list | dict) or (value is None and default is None):
        return
    if last in FROM_ONE | FROM_ZERO:
        least = 1 if last in FROM_ONE else 0
        if not _whole(value) or value < least:
            raise ValueError(f"{name} must be a whole number from {least} on, got {value!r}")
    elif last in SHARES:
        if not _number(value) or not 0 <= value <= 1:
            raise ValueError(f"{name} must be a number in 0..1, got {value!r}")
    elif isinstance(default, bool):
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be true or false, got {value!r}")
    elif isinstance(default, int | float) and last not in FREE and not (value is None or _number(value)):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")


def _plain(config: DictConfig, name: str) -> Any:
    """Return a setting without omegaconf's types; None where a group chosen on the command line brought it."""
    try:
        value = OmegaConf.select(config, name)
    except Exception:  # an interpolation that only the full config resolves
        return None
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _leaves(name: str, default: Any, value: Any) -> list[tuple[str, Any, Any]]:
    """Return (name, default, value) of a setting, or of each member of a mapping that keeps its keys."""
    if isinstance(default, dict) and isinstance(value, dict):
        return [leaf for key in value for leaf in _leaves(f"{name}.{key}", default.get(key), value[key])]
    return [(name, default, value)]


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
