"""Encoders of a pipeline while its calls are recorded: texts are encoded once, pictures to the same latents."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

from l2c.integrations.diffusers.recorded.contents import content_of


@contextlib.contextmanager
def encoding_once(pipe: Any) -> Iterator[None]:
    """Make a pipeline's text encoders run once for repeated arguments, its autoencoder encode without noise."""
    known: dict[str, Any] = {}

    def once(encode: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        scale = getattr(pipe, "_guidance_scale", None)  # some look whether they are guided
        try:
            key = json.dumps(content_of("arguments", (args, kwargs, scale)), sort_keys=True)
        except ValueError:  # what nothing tells from others
            return encode(*args, **kwargs)
        if key not in known:
            known[key] = encode(*args, **kwargs)
        return known[key]

    def without_noise(encode: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        output = encode(*args, **kwargs)
        spread = getattr(output, "latent_dist", None)
        if hasattr(spread, "mode") and hasattr(spread, "sample"):
            spread.sample = lambda *args, **kwargs: spread.mode()  # type: ignore[union-attr]
        return output

    with _instead(pipe, "encode_prompt", once), _instead(getattr(pipe, "vae", None), "encode", without_noise):
        yield


@contextlib.contextmanager
def _instead(owner: Any, name: str, call: Callable[..., Any]) -> Iterator[None]:
    """Put a function, which is given the method, in the place of a method in a `with` block; none is left alone."""
    method = getattr(owner, name, None)
    if method is None:
        yield
        return
    setattr(owner, name, lambda *args, **kwargs: call(method, *args, **kwargs))
    try:
        yield
    finally:
        delattr(owner, name)
