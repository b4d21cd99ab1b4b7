"""What an import loads: `import l2c` next to nothing, each name what it needs, each command after its checks."""

import json
import subprocess
import sys

import pytest

import l2c

HEAVY = (
    *("torch", "torch._dynamo", "timm", "timm.models", "torchvision", "torchvision.ops", "lightning", "torchmetrics"),
    *("wandb", "diffusers", "transformers", "hydra", "omegaconf", "matplotlib", "sklearn", "scipy"),
)
LAYERS = {"torch", "timm", "torchvision"}  # timm's layers, of packages that have not run
STAGES = {  # code: the heavy packages that it may have loaded
    "import l2c": set(),
    "l2c.CacheGraph.load('dit_digits_ddim20')": set(),
    "[getattr(l2c, name) for name in l2c.__all__ if name not in ('applied', 'apply', 'remove')]": {
        *LAYERS  # the names left out are those of diffusers pipelines
    },
    "l2c.integrations.smoothcache.import_smoothcache, l2c.integrations.cache_dit": LAYERS,
    "from l2c.policies import registry; from l2c.calibration import measurements": LAYERS,
    "l2c.Sampler(l2c.load_backbone('dit_digits'), graph=graph).sample([1], seed=0)": LAYERS,
    "from l2c.backbones.shapes import backbone_shapes; backbone_shapes('dit_digits')": LAYERS,
    "from l2c.commands import make_graph": LAYERS | {"matplotlib", "hydra", "omegaconf"},
    "from l2c.commands import evaluate, sample": LAYERS | {"matplotlib", "hydra", "omegaconf"},
}
PROBE = f"""
import json, sys
graph = "later"
for code in {list(STAGES)!r}:
    if "graph=graph" in code:
        graph = l2c.CacheGraph.load("dit_digits_ddim20")
    exec(code)
    print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))
"""


def loaded_by(*arguments):
    """Return what a Python loads, and its result."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=900, check=False)
    return {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}, done


def test_each_name_loads_what_it_needs():
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    stages = [set(json.loads(line)) for line in done.stdout.splitlines()]
    assert len(stages) == len(STAGES)
    for (code, allowed), found in zip(STAGES.items(), stages, strict=True):
        assert found <= allowed, f"{code} loads {', '.join(sorted(found - allowed))}"


@pytest.mark.parametrize(
    ("arguments", "allowed", "says"),
    [
        (("--help",), set(), "train routers and export them"),
        (("trainn",), set(), "unknown command 'trainn'; did you mean train"),
        (("train", "--help"), {"hydra", "omegaconf"}, "router.penalty"),
        (("train", "router.penalty=abc"), {"hydra", "omegaconf"}, "router.penalty must be a number >= 0"),
        (("train", "model=dit_xl3"), {"hydra", "omegaconf"}, "unknown model 'dit_xl3'"),
        (("sample", "num_images=none_at_all"), {"hydra", "omegaconf"}, "num_images must be a whole number >= 1"),
        (("show", "dit_digits_ddim20", "output=PNG"), {"matplotlib"}, "75 of 320 layers reused"),
    ],
)
def test_commands_check_before_they_load(arguments, allowed, says, tmp_path):
    arguments = [argument.replace("PNG", str(tmp_path / "graph.png")) for argument in arguments]
    found, done = loaded_by("-X", "importtime", "-m", "l2c", *arguments)
    assert says in done.stdout + done.stderr
    assert "l2c" in found
    assert not (found & set(HEAVY)) - allowed


def test_public_names_are_listed_and_others_refused():
    assert set(l2c.__all__) <= set(dir(l2c))
    assert l2c.integrations.l2c_routers.import_l2c_router is l2c.import_l2c_router
    with pytest.raises(AttributeError, match="module 'l2c' has no attribute 'Samplr'"):
        l2c.Samplr  # noqa: B018
    assert not hasattr(l2c, "py")
    assert not hasattr(l2c.integrations, "nothing")
