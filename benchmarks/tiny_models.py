"""Tiny models of the transformer and U-Net classes of diffusers, each with one call; see tiny_models.yaml."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

import l2c  # noqa: F401 - makes what diffusers needs importable
from l2c.io.torchvision_stand_in import make_importable

make_importable()  # diffusers and transformers import torchvision

CONFIGURATIONS = Path(__file__).with_name("tiny_models.yaml")
LEFT_OUT = {  # denoisers that diffusers exports and that have no configuration, with the reason
    "MiniMaxMusic3RVQDepthDecoder": "draws codes one after the other, without a time",
    "MotionAdapter": "holds weights that UNetMotionModel takes over; it has no forward",
    "T5FilmDecoder": "of a pipeline that is deprecated; what is noisy is not its first input",
    "UVit2DModel": "draws codes by unmasking, without a time",
}
TIMES = (1.0, 0.8, 0.6, 0.45, 0.3, 0.1)  # of the largest


@dataclass(frozen=True)
class TinyModel:
    """A model of a class with one call.

    Attributes:
        model: frozen, no two weights alike.
        inputs: all arguments but the timestep.
        time: its argument's name, its largest value, its shape.
        rising: whether it counts from noise 0 to image 1.

    """

    model: nn.Module
    inputs: Mapping[str, Any]
    time: tuple[str, float, tuple[int, ...]]
    rising: bool = False

    @property
    def timesteps(self) -> tuple[float, ...]:
        """Of a trajectory."""
        return tuple((1 - share if self.rising else share) * self.time[1] for share in TIMES)

    @property
    def noisy(self) -> str:
        """Name of the noisy input."""
        return next(iter(self.inputs))

    def __call__(self, t: float, **changes: Any) -> Tensor:
        """Return the output at t as one tensor, whatever the class returns."""
        given = {**self.inputs, **changes, self.time[0]: torch.full(self.time[2], t)}
        return torch.cat([part.flatten() for part in tensors(self.model(**given))])

    def trajectory(self, **changes: Any) -> list[Tensor]:
        """Return the output at each timestep of inputs that move on, the same way each time."""
        outputs = []
        for e, t in enumerate(self.timesteps):
            moved = moved_on(changes.get(self.noisy, self.inputs[self.noisy]), e)
            outputs.append(self(t, **{**changes, self.noisy: moved}))
        return outputs


def moved_on(x: Any, e: int) -> Any:
    """Return an input as it might be at evaluation e; lists of tensors become lists of inputs."""
    if isinstance(x, list):
        return [moved_on(part, e) for part in x]
    return x * (1 - 0.1 * e) if isinstance(x, Tensor) and x.is_floating_point() else x


def tensors(output: Any) -> Iterator[Tensor]:
    """Yield the tensors in what a model returns."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        yield from tensors(list(output.values()))
    elif isinstance(output, (list, tuple)):
        for part in output:
            yield from tensors(part)


def made(value: Any) -> Any:
    """Return an input from its line in the file."""
    if isinstance(value, dict):
        return {key: made(member) for key, member in value.items()}
    if isinstance(value, list):
        return [made(member) for member in value]
    if not isinstance(value, str):
        return value
    maker, *words = value.split()
    sizes = [int(word) for word in words if word.isdigit()]
    dtype = torch.long if "long" in words else torch.float32
    if maker == "cache":
        from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache

        return WanAnimate2KVCache(*sizes)
    makers = {
        "randn": lambda: torch.randn(sizes),
        "ones": lambda: torch.ones(sizes, dtype=dtype),
        "zeros": lambda: torch.zeros(sizes, dtype=dtype),
        "true": lambda: torch.ones(sizes, dtype=torch.bool),
        "false": lambda: torch.zeros(sizes, dtype=torch.bool),
        "slots": lambda: torch.tensor([[False] * sizes[0] + [True] * sizes[1]]),
        "labels": lambda: torch.randint(sizes[0], sizes[1:]),
        "range": lambda: torch.arange(*sizes),
        "tensor": lambda: torch.tensor(sizes),
    }
    if maker not in makers:
        return value
    tensor = makers[maker]()
    return tensor[None] if "unsqueeze" in words else tensor


def configurations() -> dict[str, Any]:
    """Return the content of the file by class name."""
    return yaml.safe_load(CONFIGURATIONS.read_text(encoding="utf-8"))


def tiny_model(name: str, seed: int = 0) -> TinyModel:
    """Return a model of a class of diffusers with one call."""
    import diffusers

    entry = configurations()[name]
    argument, largest, *shape = entry["time"].split()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(diffusers, name)(**entry["config"]).eval().requires_grad_(False)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
        inputs = made(entry["inputs"])
    time = (argument, float(largest), tuple(int(size) for size in shape if size.isdigit()))
    return TinyModel(model, inputs, time, "rising" in shape)
