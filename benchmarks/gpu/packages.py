"""What the measurement needs beside torch: packed on one machine, taken from there on another without a network.

Nothing but Python's own library is imported here, so that a machine that lacks the rest can say so.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# As a registry calls them: as Python imports them. What these depend on is found when they are packed.
PACKAGES = {
    "tqdm": "tqdm",
    "pyyaml": "yaml",
    "safetensors": "safetensors",
    "pillow": "PIL",
    "huggingface-hub": "huggingface_hub",
    "timm": "timm",
    "omegaconf": "omegaconf",
    "hydra-core": "hydra",
    "lightning": "lightning",
    "pytest": "pytest",
    "diffusers": "diffusers",
    "transformers": "transformers",
    "cache-dit": "cache_dit",
}
TO_COMPARE = ("cache-dit",)  # its row is left out without it
# Belongs to the machine that measures.
OF_TORCH = re.compile(r"torch|torchvision|torchaudio|(pytorch-)?triton(-.*)?|nvidia-.*|cuda-.*")
HELP = (
    "call sh benchmarks/gpu.sh --pack DIR on a machine that has the packages or a network, with the same Python, "
    "and give --wheels DIR here"
)


def absent() -> list[str]:
    """Return the packages that cannot be found here, as a registry calls them."""
    return [name for name, module in PACKAGES.items() if importlib.util.find_spec(module) is None]


def pack(folder: Path) -> int:
    """Write a wheel of each package and of all it depends on but torch; return 1 where a needed one is not to be had.

    What is installed is packed as it is; what is not is asked of pip.

    Raises:
        OSError: the folder cannot be written.
        ValueError: nothing here reads requirements.

    """
    folder.mkdir(parents=True, exist_ok=True)
    specifiers = _specifiers()
    parse = _requirement_type()
    todo = [parse(name + specifiers.get(name, "")) for name in PACKAGES]
    taken: dict[str, Distribution] = {}
    missing: dict[str, str] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    while todo:
        requirement = todo.pop()
        name, extras = normal(requirement.name), frozenset(requirement.extras)
        if OF_TORCH.fullmatch(name) or (name, extras) in seen or name in missing:
            continue
        seen.add((name, extras))
        if name not in taken:
            try:
                taken[name] = _write(name, folder) or _fetch(requirement, folder)
            except LookupError as error:
                missing[name] = str(error)
                continue
        asked = [parse(text) for text in taken[name].requires or ()]
        todo += [other for other in asked if _applies(other, extras)]
    size = sum(path.stat().st_size for path in folder.glob("*.whl"))
    print(f"packed {len(taken)} packages, {size / 1e6:.0f} MB, into {folder}")
    for name, reason in missing.items():
        print(f"not packed: {name}: {reason}", file=sys.stderr)
    return int(bool(set(missing) - set(TO_COMPARE)))


def unpack(folder: Path, site: Path) -> int:
    """Unpack the wheels of a folder whose packages are not installed or too old; return how many.

    What is installed stays, since it may belong to the installed torch, but for versions below those that this
    project asks for.

    Args:
        folder: as `pack` filled it.
        site: an empty folder; it is put at the start of the path of this process and of those that it starts.

    Raises:
        ValueError: there is no wheel, or one is for another Python or another machine.
        OSError: one cannot be read.

    """
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        raise ValueError(f"there are no wheels in {folder}; {HELP}")
    asked = _specifiers()
    lacking = [wheel for wheel in wheels if not _serves(normal(wheel.name.split("-")[0]), asked)]
    for wheel in lacking:
        _check_fits(wheel)
        try:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(site)
        except zipfile.BadZipFile as error:
            raise ValueError(f"{wheel} is no whole wheel; copy it over again, or pack anew") from error
    for scheme in ("purelib", "platlib"):
        for part in site.glob(f"*.data/{scheme}/*"):
            part.rename(site / part.name)
    sys.path.insert(0, str(site))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))
    importlib.invalidate_caches()
    return len(lacking)


def normal(name: str) -> str:
    """Return a package's name in the one way of many to write it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _specifiers() -> dict[str, str]:
    """Return the versions that this project asks for, by package."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.findall(r'^ +"([\w.-]+)([<>=!~][^"\[;]*)"', text, re.M)
    return {normal(name): versions for name, versions in found}


def _requirement_type() -> Any:
    for name in ("packaging.requirements", "pip._vendor.packaging.requirements"):
        try:
            return importlib.import_module(name).Requirement
        except ModuleNotFoundError:
            continue
    raise ValueError("packing needs pip, or the package packaging; neither is installed here")


def _applies(requirement: Any, extras: frozenset[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in extras or ("",))


def _serves(name: str, asked: Mapping[str, str]) -> bool:
    """Return whether a package is installed, and not below the version asked for."""
    try:
        installed = distribution(name).version
    except PackageNotFoundError:
        return False
    least = re.search(r">=\s*([\d.]+)", asked.get(name, ""))
    return least is None or _release(installed) >= _release(least[1])


def _release(version: str) -> tuple[int, ...]:
    """Return the numbers that a version begins with, `2.1.0+cpu` as (2, 1), so that 2.1 is no less than 2.1.0."""
    numbers = [int(part) for part in re.match(r"\d+(?:\.\d+)*", version)[0].split(".")]  # type: ignore[index]
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def _write(name: str, folder: Path) -> Distribution | None:
    """Write the wheel of an installed package; None where it is not installed, or not known file by file."""
    try:
        found = distribution(name)
    except PackageNotFoundError:
        return None
    tags = re.findall(r"^Tag: (\S+)$", found.read_text("WHEEL") or "", re.M)
    kept = [file for file in found.files or () if _belongs(file)]
    if not tags or not kept:
        return None
    record = [f"{f},{f.hash.mode}={f.hash.value},{f.size}" if f.hash else f"{f},," for f in kept]
    (information,) = {file.parts[0] for file in kept if file.parts[0].endswith(".dist-info")}
    path = folder / f"{name.replace('-', '_')}-{found.version}-{tags[-1]}.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in kept:
            archive.write(str(found.locate_file(file)), str(file))
        archive.writestr(f"{information}/RECORD", "\n".join([*record, f"{information}/RECORD,,", ""]))
    return found


def _belongs(file: Any) -> bool:
    """Return whether a wheel holds a file of an installed package: no script, nothing that installing made."""
    made = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")
    return ".." not in file.parts and file.suffix != ".pyc" and not (file.name in made and len(file.parts) == 2)


def _fetch(requirement: Any, folder: Path) -> Distribution:
    """Let pip make a package's wheel.

    Raises:
        LookupError: it does not; the message is the last line of what it says.

    """
    wanted = f"{requirement.name}{requirement.specifier}"
    with tempfile.TemporaryDirectory() as fresh:
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--retries", "1"]
        done = subprocess.run(
            [*command, "--wheel-dir", fresh, wanted], capture_output=True, text=True, check=False, timeout=600
        )
        made = list(Path(fresh).glob("*.whl"))
        if done.returncode or not made:
            said = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("[notice]")]
            raise LookupError(said[-1].strip() if said else "pip made no wheel")
        path = folder / made[0].name
        path.write_bytes(made[0].read_bytes())
    return next(iter(distributions(path=[str(path)])))


def _check_fits(wheel: Path) -> None:
    pythons, abi, machines = wheel.stem.split("-")[-3:]
    major, minor = sys.version_info[:2]
    fits = any(tag.startswith("py3") or tag == f"cp{major}{minor}" for tag in pythons.split("."))
    if "abi3" in abi:
        fits = all(int(tag[3:]) <= minor for tag in pythons.split("."))
    if not fits:
        raise ValueError(f"{wheel.name} was packed for another Python than this one, {major}.{minor}; {HELP}")
    if machines != "any" and not any(tag.endswith(platform.machine()) for tag in machines.split(".")):
        raise ValueError(f"{wheel.name} was packed for another machine than this, {platform.machine()}; {HELP}")
