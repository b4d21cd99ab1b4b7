"""Presets: a model's architecture, weights and published sampling settings by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from l2c.backbones.backbone import Backbone, PublishedSampling, fingerprint
from l2c.backbones.dit import DiT
from l2c.backbones.uvit import UViT
from l2c.backbones.weights import find_checkpoint, load_strict, load_weights
from l2c.backbones.whole_output import under_layers
from l2c.graph.given import table, text
from l2c.graph.layer_names import WHOLE_OUTPUT
from l2c.io.bundled import model_names, project_folder
from l2c.io.memory import out_of_memory
from l2c.io.names import chosen, near_keywords, near_names, quoted, shown

BACKBONES: dict[str, type[Backbone]] = {"dit": DiT, "uvit": UViT}
CONVENTIONS = ("name", "schedule", "first_timestep", "null_label", "prediction")  # of `Conventions`
OPTIONAL = ("checkpoint", "url", "testbed")  # texts of a preset that may be missing
RANDOM = "random"


@dataclass(frozen=True)
class ModelPreset:
    """A file of `configs/model`.

    Attributes:
        name: the preset's name.
        backbone: `dit` or `uvit`.
        args: arguments of the network's class.
        checkpoint: file of the weights, or `random`; None where none is known.
        url: address of the published weights.
        sampling: the published settings.
        data: the data that its routers are trained on, a name of `configs/data`.
        conventions: what the weights need beside the defaults of the class: `schedule`, `first_timestep`,
            `null_label`, `prediction`.
        testbed: the pictures that it was trained on, whose classifier reads its samples; None = as `data`.
        layers: `(output,)`: the whole output as the one layer; None = attention and MLP of each block.

    """

    name: str
    backbone: str
    args: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None
    url: str | None = None
    sampling: PublishedSampling = field(default_factory=lambda: PublishedSampling("ddim", 20))
    data: str = "noise"
    testbed: str | None = None
    layers: Sequence[str] | None = None
    conventions: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("name", "backbone", "data", *(key for key in OPTIONAL if getattr(self, key) is not None)):
            text(f"the key {name!r} of a model preset", getattr(self, name))
        if not isinstance(self.sampling, PublishedSampling):
            got = quoted(self.sampling)
            raise ValueError(f"the key 'sampling' of model {shown(self.name)} must be settings by name, got {got}")

    def __reduce__(self) -> tuple[Any, ...]:  # views of dictionaries cannot be copied or pickled
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return ModelPreset.of, ({**values, "args": dict(self.args), "conventions": dict(self.conventions)},)

    @classmethod
    def of(cls, model: str | Mapping[str, Any] | ModelPreset) -> ModelPreset:
        """Return the preset of a name, or of a mapping with the keys of such a file.

        Raises:
            ValueError: if the name is unknown, or a key is unknown or missing.

        """
        if isinstance(model, ModelPreset):
            return model
        if isinstance(model, str):
            return model_preset(model)
        if not isinstance(model, Mapping):
            raise ValueError(f"a model is a preset, its name, or a mapping with its keys, got {quoted(model)}")
        content = {str(key): value for key, value in model.items()}
        conventions = {key: content.pop(key) for key in CONVENTIONS[1:] if key in content}
        known = [entry.name for entry in fields(cls)]
        for key in content:
            if key not in known:
                raise ValueError(f"a model preset has no key {key!r}; {near_names(key, [*known, *CONVENTIONS[1:]])}")
        for key in ("name", "backbone"):
            if key not in content:
                raise ValueError(
                    f"a model preset needs the key {key!r}, got {', '.join(content) or 'no key'}; "
                    "add it to the preset"
                )
        sampling = content.get("sampling")
        if isinstance(sampling, Mapping):
            try:
                content["sampling"] = PublishedSampling(**{str(key): value for key, value in sampling.items()})
            except TypeError as error:
                raise ValueError(f"the key 'sampling' of model {content['name']} does not fit: {error}") from error
        if content.get("layers") not in (None, WHOLE_OUTPUT, [WHOLE_OUTPUT], (WHOLE_OUTPUT,)):
            raise ValueError(
                f"layers of model {content['name']} must be [{WHOLE_OUTPUT}] or null (attention and MLP of each "
                f"block), got {shown(content['layers'])}"
            )
        content["layers"] = (WHOLE_OUTPUT,) if content.get("layers") else None
        args = MappingProxyType(dict(table("the key 'args' of a model preset", content.pop("args", {}))))
        given = {**content.pop("conventions", {}), **conventions}
        return cls(**content, args=args, conventions=MappingProxyType(given))


def model_preset(name: str) -> ModelPreset:
    """Return the preset `configs/model/<name>.yaml`.

    Raises:
        ValueError: if there is no such preset; the message names the near ones.

    """
    chosen("model", name, model_names())
    path = project_folder("configs") / "model" / f"{name}.yaml"
    return ModelPreset.of(yaml.safe_load(path.read_text(encoding="utf-8")))


def build_backbone(model: str | Mapping[str, Any] | ModelPreset) -> Backbone:
    """Build the network of a preset with fresh weights, in train mode.

    Raises:
        ValueError: if the preset is unknown, or an argument is not one of the network's or does not fit.

    """
    preset = ModelPreset.of(model)
    chosen("backbone", preset.backbone, BACKBONES)
    try:
        backbone = BACKBONES[preset.backbone](**preset.args)
    except (TypeError, ValueError, ArithmeticError, AssertionError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        reason = shown(error, 300) or type(error).__name__
        raise ValueError(
            f"the arguments of model {shown(preset.name)} do not fit: {reason}; change model.args"
        ) from error
    backbone.conventions = replace(
        backbone.conventions, name=preset.name, published=preset.sampling, **preset.conventions
    )
    null, labels = backbone.conventions.null_label, backbone.num_embedded_labels
    if null is not None and not 0 <= null < labels:
        raise ValueError(
            f"null_label of model {preset.name} must be one of its {labels} labels, from 0 on, got {null}"
        )
    return backbone


@near_keywords()
def load_backbone(
    model: str | Mapping[str, Any] | ModelPreset, *, checkpoint: str | Path | None = None, remedy: str | None = None
) -> Backbone:
    """Return a frozen backbone in eval mode, with its weights.

    Args:
        model: the name of a preset in `configs/model`, such a preset, or a mapping with its keys.
        checkpoint: weights to take instead of the preset's: a path, or `random` for benchmarks.
        remedy: how the caller's user names other weights, for the message; see `find_checkpoint`.

    Raises:
        ValueError: if the name is unknown, the file is damaged, or its keys do not fit.
        FileNotFoundError: if the weights are not found; the message says where they are published.

    """
    preset = ModelPreset.of(model)
    wanted = preset.checkpoint if checkpoint is None else str(checkpoint)
    if wanted is None:
        raise ValueError(f"model {preset.name} names no weights; give checkpoint=PATH, or checkpoint='random'")
    path = None
    if wanted != RANDOM:
        path = find_checkpoint(
            wanted, name=preset.name, url=preset.url, remedy=remedy or "checkpoint=PATH (random for benchmarks)"
        )
    backbone = build_backbone(preset)
    if path is not None:
        load_strict(backbone, load_weights(path), str(path), name=backbone.conventions.name)
        fingerprint(backbone)  # with the weights at hand, so that samplers need not wait for it
    return under_layers(backbone.eval().requires_grad_(False), preset.layers or ())
