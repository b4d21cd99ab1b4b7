"""Random numbers by name: reproducible, and no two streams alike."""

from __future__ import annotations

import ast
import itertools
import zlib
from pathlib import Path

import pytest
import torch

from l2c.io.seeds import ImageNoise, Stream, draw_normal, torch_generator

PACKAGE = Path(__file__).resolve().parents[2] / "l2c"


def purposes():
    """Return the purposes of all streams that the package draws from."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id
            if called in ("Stream", "ImageNoise", "draw_normal"):
                arguments = node.args[1:] if called == "draw_normal" else node.args
                found += [arguments[0].value] if isinstance(arguments[0], ast.Constant) else []
    return found


def test_the_packages_purposes_are_told_apart():
    """A stream of each purpose is known by a checksum of its words."""
    known = set(purposes())
    assert len(known) > 12
    assert len({zlib.crc32(purpose.encode()) for purpose in known}) == len(known)


def test_streams_of_other_purposes_seeds_or_steps_never_coincide():
    seen = {}
    for purpose, seed, step in itertools.product(sorted(set(purposes())), range(4), range(40)):
        seen.setdefault(tuple(Stream(purpose, seed, step)((4,)).tolist()), []).append((purpose, seed, step))
    assert [alike for alike in seen.values() if len(alike) > 1] == []


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_a_stream_is_the_same_each_time_and_goes_on(seed):
    first, again = Stream("a test", seed), Stream("a test", seed)
    drawn = [first((3,)), first((3,))]
    assert torch.equal(drawn[0], again((3,)))
    assert torch.equal(drawn[1], again((3,)))
    assert not torch.equal(*drawn)
    assert torch.equal(drawn[0], draw_normal((3,), "a test", seed))


def test_kinds_of_numbers():
    normal = Stream("a test")((20_000,))
    assert (normal.dtype, normal.shape) == (torch.float32, (20_000,))
    assert abs(float(normal.mean())) < 0.03
    assert float(normal.std()) == pytest.approx(1, abs=0.03)
    uniform = Stream("a test").uniform(20_000)
    assert uniform.dtype == torch.float32
    assert 0 <= float(uniform.min()) < 0.001
    assert 0.999 < float(uniform.max()) < 1
    assert Stream("a test").uniform().ndim == 0
    assert Stream("a test").integers(3, 500, start=-1).unique().tolist() == [-1, 0, 1, 2]
    assert Stream("a test").integers(5).ndim == 0
    order = Stream("a test").permutation(50).tolist()
    assert sorted(order) == list(range(50)) != order


def test_an_images_noise_does_not_depend_on_its_batch():
    whole, part = ImageNoise("a test", 3, range(5)), ImageNoise("a test", 3, [4, 1])
    for _ in range(2):
        assert torch.equal(whole((5, 2, 2))[[4, 1]], part((2, 2, 2)))


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5])
def test_seeds_out_of_range_are_refused(seed):
    with pytest.raises(ValueError, match=rf"a seed must be a whole number in 0..4294967295, got {seed}"):
        Stream("a test", 0, seed)


def test_generators_of_neighbouring_seeds_share_no_image():
    first = {tuple(torch.randn(2, generator=torch_generator("a test", 5, i)).tolist()) for i in range(4)}
    second = {tuple(torch.randn(2, generator=torch_generator("a test", 6, i)).tolist()) for i in range(4)}
    assert len(first | second) == 8
    again = (torch.randn(3, generator=torch_generator("a test", 5, 1)) for _ in range(2))
    assert torch.equal(*again)
