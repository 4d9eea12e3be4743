"""Areas against scikit-learn's, intervals against what they promise, and features of images that are known."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from src.metrics import simple_features
from src.metrics.detection import auprc, auroc, interval, share_above


@pytest.mark.parametrize("levels", [3, 1_000_000])
def test_areas_are_those_of_scikit_learn_with_ties_and_weights(levels):
    rng = np.random.default_rng(0)
    positive = rng.random(200) < 0.3
    scores = rng.integers(0, levels, 200) + positive * levels / 4
    weights = rng.integers(0, 4, (5, 200)).astype(float)
    assert auroc(scores, positive) == pytest.approx(roc_auc_score(positive, scores))
    assert auprc(scores, positive) == pytest.approx(average_precision_score(positive, scores))
    for ours, theirs in ((auroc, roc_auc_score), (auprc, average_precision_score)):
        expected = [theirs(positive, scores, sample_weight=weight) for weight in weights]
        assert ours(scores, positive, weights) == pytest.approx(expected)


def test_shuffled_labels_have_intervals_that_hold_a_half():
    rng, held = np.random.default_rng(0), 0
    scores = rng.random(100)
    for seed in range(100):
        positive = rng.permutation(np.arange(100) < 50)
        found = interval(lambda w, p=positive: auroc(scores, p, w), range(100), draws=200, seed=seed)
        held += found.low <= 0.5 <= found.high
    assert 88 <= held <= 99


def test_an_interval_counts_patients_not_images():
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(40), 10)
    positive = patients % 2 == 0
    scores = (rng.normal(size=40) + np.arange(40) % 2 * -0.5)[patients]  # all films of a patient score the same
    by_patient = interval(lambda w: auroc(scores, positive, w), patients)
    by_image = interval(lambda w: auroc(scores, positive, w), range(400))
    assert by_patient.value == by_image.value
    ratio = (by_patient.high - by_patient.low) / (by_image.high - by_image.low)
    assert ratio == pytest.approx(10**0.5, rel=0.2)


def test_draws_without_a_class_are_left_out_and_no_class_is_not_a_number():
    scores, positive = np.arange(4.0), np.array([False, False, False, True])
    found = interval(lambda w: auroc(scores, positive, w), range(4))
    assert (found.value, found.low, found.high) == (1, 1, 1)
    assert np.isnan(auroc(scores, np.ones(4, bool)))


def test_the_share_above_a_threshold_is_weighted():
    scores, chosen = np.array([1.0, 2.0, 3.0, 9.0]), np.array([True, True, True, False])
    assert share_above(scores, chosen, 1.5) == pytest.approx(2 / 3)
    assert share_above(scores, chosen, 1.5, np.array([[2, 1, 1, 5], [0, 1, 1, 0]])) == pytest.approx([0.5, 1])


def test_simple_features_of_known_images():
    rows = torch.arange(64, dtype=torch.float64)
    waves = [127 + 100 * torch.sin(2 * torch.pi * rows * cycles / 64).expand(64, 64) for cycles in (4, 12, 28)]
    images = torch.stack([*waves, torch.full((64, 64), 7.0)]).round().to(torch.uint8)[:, None]
    assert simple_features.brightness(images)[3] == 7
    assert simple_features.contrast(images)[[0, 3]] == pytest.approx([100 / 2**0.5, 0], rel=0.01)
    spectrum = simple_features.power_spectrum(images)
    assert spectrum.shape == (4, 12)
    assert spectrum[:3].argmax(1).tolist() == [1, 4, 10]  # 4, 12 and 28 of 32 cycles, in twelfths
    noise = torch.randint(0, 256, (1, 1, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for size in (simple_features.jpeg_bytes, simple_features.png_bytes):
        assert size(images)[3] < size(images)[2] < size(noise)[0]
    assert simple_features.jpeg_bytes(images.expand(-1, 3, -1, -1)).shape == (4,)
    assert simple_features.power_spectrum(images[..., :8, :8]).shape == (4, 3)
    assert simple_features.local_contrast(images)[3] == pytest.approx(np.zeros(16))
    assert simple_features.local_contrast(images[..., :40, :30]).shape == (4, 16)
    assert simple_features.local_contrast(images[..., :3, :3]).shape == (4, 9)


def test_the_power_spectrum_does_not_depend_on_brightness_and_contrast():
    noise = torch.randint(60, 120, (2, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    first, second = (simple_features.power_spectrum(images) for images in (noise, 2 * noise - 40))
    assert np.abs(first - second).max() < 1e-6
