"""Classifiers for the samples of the testbeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from l2c.backbones.presets import ModelPreset
from l2c.testbeds.digits_classifier import DigitsClassifier
from l2c.testbeds.emoji_classifier import EmojiClassifier
from l2c.testbeds.picture_classifier import PictureClassifier

READERS: dict[str, type[PictureClassifier]] = {"digits": DigitsClassifier, "emoji": EmojiClassifier}


def reader_of(preset: str | Mapping[str, Any] | ModelPreset) -> PictureClassifier | None:
    """Return the bundled classifier of a preset's testbed; None for models of other pictures.

    Raises:
        FileNotFoundError: if the classifier's weights are missing.
        ValueError: if the classifier's file is damaged.

    """
    preset = ModelPreset.of(preset)
    kind = READERS.get(preset.testbed or preset.data)
    return None if kind is None else kind.load()
