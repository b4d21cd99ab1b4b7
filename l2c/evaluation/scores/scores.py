"""The figures that papers report of a set of images: FID, sFID, Inception score, precision, recall."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from l2c.evaluation.scores.features import FeatureExtractor
from l2c.evaluation.scores.frechet import Frechet
from l2c.evaluation.scores.precision_recall import check_enough, precision_recall
from l2c.evaluation.scores.reference import ImageSet, Reference, features_of
from l2c.io.seeds import torch_generator

if TYPE_CHECKING:
    from torchmetrics.image.inception import InceptionScore

SPLITS = 10


@dataclass(frozen=True)
class Scores:
    """Scores of a set of images against a reference.

    Attributes:
        fid: Frechet distance of pooled features (arXiv 1706.08500).
        sfid: FID of spatial features (arXiv 2103.03841); None where the reference has none.
        inception_score: exp of the mean divergence of p(y|x) from p(y) (arXiv 1606.03498), mean over 10 splits.
        precision: share of images within the manifold of the real ones, in 0..1; None without real images.
        recall: share of real images within the manifold of the images; None without real images.
        num_images: images scored.
        num_real: real images looked at; None where only their statistics were.
        features: the extractor's name; scores by different ones do not compare.

    """

    fid: float
    sfid: float | None
    inception_score: float
    precision: float | None
    recall: float | None
    num_images: int
    num_real: int | None
    features: str

    def to_dict(self) -> dict[str, object]:
        """Return plain values for JSON."""
        return asdict(self)


def score(
    images: ImageSet,
    reference: Reference,
    extractor: FeatureExtractor,
    *,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Scores:
    """Score a set of images; features of them are held, the images are not.

    Raises:
        ValueError: if there are too few images, or channels or reference do not fit the features.

    """
    if len(images) < 2:
        raise ValueError(f"scores need at least 2 images, got {len(images)}; draw more")
    if reference.pooled is not None:  # before their features are taken
        check_enough(len(images))
        check_enough(len(reference.pooled))
    fid = _against(reference, "mu", "sigma", device)
    sfid = _against(reference, "mu_s", "sigma_s", device) if "mu_s" in reference.statistics else None
    inception = _inception_score(len(images))
    pooled = []
    for features in features_of(
        images, extractor, batch_size=batch_size, device=device, what="scoring", progress=progress
    ):
        fid.add(features.pooled, real=False)
        if sfid is not None:
            sfid.add(features.spatial, real=False)
        inception.update(features.logits.cpu())
        pooled.append(features.pooled)
    precision, recall = _neighbours(torch.cat(pooled), reference)
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(torch_generator("splits of the inception score", 0).get_state())  # torchmetrics shuffles
        inception_score = float(inception.compute()[0])
    return Scores(
        fid=fid.compute(),
        sfid=None if sfid is None else sfid.compute(),
        inception_score=inception_score,
        precision=precision,
        recall=recall,
        num_images=len(images),
        num_real=reference.num_images,
        features=extractor.name,
    )


def _against(reference: Reference, mean: str, covariance: str, device: torch.device | str) -> Frechet:
    distance = Frechet(len(reference.statistics[mean]), device)
    distance.set_real(reference.statistics[mean], reference.statistics[covariance])
    return distance


def _neighbours(pooled: Tensor, reference: Reference) -> tuple[float | None, float | None]:
    return (None, None) if reference.pooled is None else precision_recall(pooled, reference.pooled)


def _inception_score(num_images: int) -> InceptionScore:
    from torchmetrics.image.inception import InceptionScore

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the logits of 50,000 images are 200 MB
        return InceptionScore(feature=nn.Identity(), splits=min(SPLITS, num_images))
