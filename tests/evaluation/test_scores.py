"""FID, sFID, Inception score, precision and recall against independent computations."""

import sys

import numpy as np
import pytest
import scipy.linalg
import torch

from l2c.drawing.image_archive import write_archive
from l2c.drawing.image_shards import to_pixels
from l2c.evaluation.scores.features import DigitsFeatures, InceptionFeatures, spatial
from l2c.evaluation.scores.frechet import Frechet
from l2c.evaluation.scores.precision_recall import precision_recall, radii
from l2c.evaluation.scores.reference import TensorImages, load_reference
from l2c.evaluation.scores.scores import score
from l2c.testbeds.digits import digits
from l2c.testbeds.digits_classifier import DigitsClassifier

REAL = TensorImages(digits()[0])


class Pixels:
    """8-bit images in memory."""

    def __init__(self, pixels):
        self.pixels = pixels
        self.shape = tuple(pixels.shape[1:])

    def __len__(self):
        return len(self.pixels)

    def batches(self, size):
        yield from self.pixels.split(size)


@pytest.fixture(scope="module")
def extractor():
    return DigitsFeatures(DigitsClassifier.load())


@pytest.fixture(scope="module")
def noisy():
    """Digits with noise, as samples that are not quite right."""
    images = digits()[0][:400]
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return Pixels(to_pixels(images + 0.3 * noise))


def independent_fid(a, b):
    """Heusel et al., eq. 6, by scipy's matrix square root."""
    a, b = a.double().numpy(), b.double().numpy()
    root = scipy.linalg.sqrtm(np.cov(a, rowvar=False) @ np.cov(b, rowvar=False)).real
    return np.square(a.mean(0) - b.mean(0)).sum() + np.trace(
        np.cov(a, rowvar=False) + np.cov(b, rowvar=False) - 2 * root
    )


def scored(images, reference, extractor, **settings):
    return score(images, reference, extractor, progress=False, **{"batch_size": 64, **settings})


@pytest.mark.filterwarnings("ignore:Matrix is singular")
def test_scores_equal_independent_ones(extractor, noisy):
    reference = load_reference(REAL, extractor, progress=False)
    found = scored(noisy, reference, extractor)
    real = extractor(to_pixels(digits()[0]))
    fake = extractor(noisy.pixels)
    assert found.fid == pytest.approx(independent_fid(fake.pooled, real.pooled), abs=1e-3)
    assert found.fid > 1
    assert found.sfid == pytest.approx(independent_fid(fake.spatial, real.spatial), abs=1e-3)
    assert 1 < found.inception_score < 10
    assert (found.precision, found.recall) == precision_recall(fake.pooled, real.pooled)
    assert (found.num_images, found.num_real, found.features) == (400, 1797, "digits")


def test_real_images_score_as_real(extractor):
    found = scored(REAL, load_reference(REAL, extractor, progress=False), extractor)
    assert found.fid == pytest.approx(0, abs=1e-6)
    assert (found.precision, found.recall) == (1, 1)
    assert found.inception_score > 9  # ten classes, each read with certainty


def test_the_batch_size_does_not_matter(extractor, noisy):
    reference = load_reference(REAL, extractor, progress=False)
    once, parts = (scored(noisy, reference, extractor, batch_size=size).to_dict() for size in (400, 37))
    for name in ("fid", "sfid", "inception_score", "precision", "recall"):
        assert parts[name] == pytest.approx(once[name], rel=1e-4)


def test_statistics_stand_for_images(extractor, noisy, tmp_path):
    reference = load_reference(REAL, extractor, progress=False)
    reference.save_statistics(tmp_path / "statistics.npz")
    stored = scored(noisy, load_reference(tmp_path / "statistics.npz", extractor), extractor)
    direct = scored(noisy, reference, extractor)
    assert (stored.fid, stored.sfid) == pytest.approx((direct.fid, direct.sfid), rel=1e-6)
    assert (stored.precision, stored.recall, stored.num_real) == (None, None, None)


def test_a_reference_may_hold_images_and_the_statistics_of_more(extractor, noisy, tmp_path):
    path = tmp_path / "reference.npz"
    pixels = np.ascontiguousarray(to_pixels(digits()[0][:100]).permute(0, 2, 3, 1).numpy())
    mu, sigma = np.zeros(64), np.eye(64)
    np.savez(path, arr_0=pixels, mu=mu, sigma=sigma)
    found = scored(noisy, load_reference(path, extractor, progress=False), extractor)
    fake = extractor(noisy.pixels).pooled
    pooled = fake.double().numpy()
    covariance = np.cov(pooled, rowvar=False)
    expected = np.square(pooled.mean(0)).sum() + np.trace(covariance) + 64
    expected -= 2 * np.sqrt(np.linalg.eigvalsh(covariance).clip(0)).sum()
    assert found.fid == pytest.approx(expected, abs=1e-3)
    assert found.sfid is None
    assert found.num_real == 100
    assert found.precision is not None


def test_frechet_in_closed_form():
    distance = Frechet(3)
    distance.set_real(np.array([1.0, 0.0, 0.0]), 4 * np.eye(3))
    points = torch.randn(5000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    white = points - points.mean(0)
    white = white @ torch.linalg.inv(torch.linalg.cholesky(white.T.cov())).T
    distance.add(white, real=False)
    assert distance.compute() == pytest.approx(1 + 3 * (2 - 1) ** 2, abs=1e-6)


def test_neighbours_by_hand():
    line = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    assert radii(line, k=1).tolist() == [1, 1, 2, 4]
    assert radii(line, k=2).tolist() == [3, 2, 3, 6]
    generator = torch.Generator().manual_seed(1)
    real, fake = torch.randn(60, 5, generator=generator), 0.7 * torch.randn(50, 5, generator=generator) + 0.3

    def share(points, features):
        reach = [sorted(np.linalg.norm(f - g) for g in features)[3] for f in features]  # the nearest is itself
        return np.mean(
            [any(np.linalg.norm(p - f) <= r for f, r in zip(features, reach, strict=True)) for p in points]
        )

    expected = share(fake.numpy(), real.numpy()), share(real.numpy(), fake.numpy())
    assert precision_recall(fake, real) == pytest.approx(expected)
    assert 0 < expected[1] < expected[0] < 1


def test_neighbours_in_small_parts_are_the_same(monkeypatch):
    points = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    once = radii(points)
    monkeypatch.setattr("l2c.evaluation.scores.precision_recall.MAX_DISTANCES", 350)
    torch.testing.assert_close(radii(points), once)


def test_spatial_features_keep_places_apart():
    maps = torch.arange(2 * 8 * 2 * 2).reshape(2, 8, 2, 2)
    assert spatial(maps)[0, :8].tolist() == [0, 4, 8, 12, 16, 20, 24, 1]  # seven channels of the first place


def test_bad_input_is_one_sentence(extractor, noisy, tmp_path):
    with pytest.raises(FileNotFoundError, match="no reference at"):
        load_reference(tmp_path / "none.npz", extractor)
    (tmp_path / "no.npz").write_text("text")
    with pytest.raises(ValueError, match=r"is no \.npz file"):
        load_reference(tmp_path / "no.npz", extractor)
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match="holds x; a reference holds arr_0"):
        load_reference(tmp_path / "other.npz", extractor)
    np.savez(tmp_path / "floats.npz", arr_0=np.zeros((2, 8, 8, 1)))
    with pytest.raises(ValueError, match="of type uint8"):
        load_reference(tmp_path / "floats.npz", extractor)
    np.savez(tmp_path / "inception.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    with pytest.raises(ValueError, match="statistics of 2048 features, but these are 64"):
        scored(noisy, load_reference(tmp_path / "inception.npz", extractor), extractor)
    colour = Pixels(torch.zeros(4, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="have 3 channels, but features=digits reads 1"):
        scored(colour, load_reference(REAL, extractor, progress=False), extractor)
    real = load_reference(TensorImages(digits()[0][:20]), extractor, progress=False)
    with pytest.raises(ValueError, match="need more than 3 images, got 3; give more"):
        scored(Pixels(noisy.pixels[:3]), real, None)  # no features are taken
    few = load_reference(TensorImages(digits()[0][:3]), extractor, progress=False)
    with pytest.raises(ValueError, match="need more than 3 images, got 3; give more"):
        scored(noisy, few, None)
    path = write_archive(tmp_path / "cut.npz", [noisy.pixels], 400, (1, 8, 8))
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"cut\.npz is no"):
        load_reference(path, extractor)
    with pytest.raises(FileNotFoundError, match=r"https://github\.com/toshas/torch-fidelity"):
        InceptionFeatures()


def test_inception_takes_a_local_file(tmp_path, monkeypatch):
    """With random weights: what comes out has the published sizes, and a harmful file is not run."""
    network = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3
    with monkeypatch.context() as patch:
        patch.setattr(network, "load_state_dict", lambda self, state: None)
        patch.setattr(torch, "load", lambda *args, **kwargs: {})
        weights = network("random", ["2048"], feature_extractor_weights_path="none").state_dict()
    torch.save(weights, tmp_path / "inception.pth")
    features = InceptionFeatures(tmp_path / "inception.pth")(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
    assert [part.shape[1] for part in (features.pooled, features.spatial, features.logits)] == [2048, 2023, 1008]
    torch.save(weights | {"fc.bias": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="does not hold the weights of Inception-v3"):
        InceptionFeatures(tmp_path / "other.pth")
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(ValueError, match=r"pip install '\.\[evaluation\]'"):
        InceptionFeatures(tmp_path / "inception.pth")
