"""Classifiers of the testbeds: what they keep, and statistics in closed form."""

import pytest
import torch

from l2c.backbones.presets import model_preset
from l2c.evaluation.metrics import frechet_distance
from l2c.io.seeds import Stream
from l2c.testbeds.classifier_run import shifted, warped
from l2c.testbeds.digits import digits
from l2c.testbeds.digits_classifier import DigitsClassifier
from l2c.testbeds.emoji_classifier import EmojiClassifier
from l2c.testbeds.picture_classifier import feature_statistics
from l2c.testbeds.readers import reader_of


def test_statistics_in_closed_form():
    features = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, covariance = feature_statistics(features, torch.full((50,), 3.0))
    torch.testing.assert_close(mean, features.mean(0))
    torch.testing.assert_close(covariance, features.T.cov())
    doubled = feature_statistics(features[:2], torch.tensor([1.0, 3.0]))[0]  # a weight of 3 is three pictures
    torch.testing.assert_close(doubled, (features[0] + 3 * features[1]) / 4)


def test_real_pictures_have_no_distance_to_themselves():
    classifier = reader_of(model_preset("dit_digits"))
    assert isinstance(classifier, DigitsClassifier)
    images, labels = digits()
    assert frechet_distance(images, classifier) == pytest.approx(0, abs=1e-3)
    assert frechet_distance(images[labels == 1], classifier) > 1
    assert classifier.accuracy(images, labels) > 0.98


def test_the_emoji_classifier_keeps_statistics_of_classes_alike(pictures):
    torch.manual_seed(0)
    classifier = EmojiClassifier().eval()
    classifier.keep_statistics(pictures)
    images = pictures.images.float() / 127.5 - 1
    per_class = torch.stack([classifier(images[pictures.labels == c]).mean(0) for c in range(10)])
    mean, covariance = classifier.real_statistics()
    torch.testing.assert_close(mean, per_class.mean(0).double(), rtol=1e-4, atol=1e-5)
    assert covariance.shape == (64, 64)
    again = EmojiClassifier()
    again.load_state_dict(classifier.state_dict())
    torch.testing.assert_close(again.real_statistics()[0], mean)


def test_models_of_other_pictures_have_no_reader():
    assert reader_of(model_preset("dit_xl2")) is None


def test_pictures_are_moved_and_stay_on_white():
    images = torch.ones(40, 3, 32, 32)
    torch.testing.assert_close(warped(images, Stream("moving", 0)), images)
    images[:, :, 14:18, 14:18] = -1
    moved = warped(images, Stream("moving", 0))
    ink = (1 - moved).clamp_min(0).mean(1)  # (N, H, W)
    places = torch.arange(32.0)
    centres = torch.stack([(ink.sum(axis) @ places) / ink.sum((1, 2)) for axis in (1, 2)]) - 15.5
    assert 2 < centres.abs().max() < 4.5  # three pixels, and a little more where the picture is enlarged
    assert (ink.sum((1, 2)) / 32).std() > 0.05  # scaled
    corner = shifted(-torch.ones(2, 1, 8, 8), Stream("moving", 0))
    torch.testing.assert_close(corner, -torch.ones(2, 1, 8, 8))
