"""The contrast of cells: known gradients, turned and brightened images, and what a data module makes of them."""

import math

import pytest
import torch
from hydra.errors import InstantiationException

from src.data.pixels import Pixels
from src.metrics.contrast import contrast_map
from src.runs import build
from tests.helpers import SMALL, composed, data, examples


@pytest.mark.parametrize("degrees", [0, 30, 90, 200])
@pytest.mark.parametrize("slope", [0.01, 0.02])
def test_the_contrast_of_a_ramp_is_its_slope(degrees, slope):
    down, across = torch.meshgrid(*[torch.arange(16) - 8.0] * 2, indexing="ij")
    angle = math.radians(degrees)
    ramp = 0.5 + slope * (across * math.cos(angle) + down * math.sin(angle))
    inside = contrast_map(ramp[None, None], 4)[0, 0, 1:-1, 1:-1]
    torch.testing.assert_close(inside, torch.full((2, 2), 1 + math.log10(slope + 0.001) / 3))


def test_the_map_turns_with_the_image_and_shows_no_brightness():
    torch.manual_seed(0)
    x = torch.rand(3, 3, 24, 24) / 2
    expected = contrast_map(x, 4)
    assert expected.shape == (3, 1, 4, 4)
    torch.testing.assert_close(contrast_map(x.rot90(1, (2, 3)), 4), expected.rot90(1, (2, 3)))
    torch.testing.assert_close(contrast_map(x.flip(-1), 4), expected.flip(-1))
    torch.testing.assert_close(contrast_map(x + 0.3, 4), expected, atol=1e-5, rtol=0)


def test_the_map_has_the_range_of_an_image():
    torch.testing.assert_close(contrast_map(torch.ones(1, 1, 8, 8), 2), torch.zeros(1, 1, 2, 2))
    steepest = torch.tensor([[0.0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]).repeat(4, 4)
    assert 0.8 < contrast_map(steepest[None, None], 4).max() <= 1


def test_a_model_sees_the_contrast_of_its_pixels():
    module = data(*SMALL, "data.contrast_cells=4")
    x = examples(module, "train", 50)
    stored = module.pool.images[module.spread("train", 50)]
    assert (module.image_shape, module.pixels) == ((1, 4, 4), Pixels.FEATURES)
    torch.testing.assert_close(x, contrast_map(stored / 255, 4))
    torch.testing.assert_close(module.seen(module.spread("train", 50)), x)
    torch.testing.assert_close(module.train_images[torch.arange(3)], module.seen(module.splits.train[:3]))
    larger = data("data=digits", "data.image_size=16", "data.contrast_cells=4")
    assert len({module.fingerprint, larger.fingerprint, data(*SMALL).fingerprint}) == 3
    noisy = data(*SMALL, "data.contrast_cells=4", "data.dequantize=true")
    assert noisy.pixels is Pixels.FEATURES
    x = examples(noisy, "train", 50)
    assert not torch.equal(x, examples(noisy, "train", 50))
    torch.testing.assert_close(x, noisy.seen(noisy.spread("train", 50)), atol=0.3, rtol=0)


def test_cells_must_divide_the_image():
    with pytest.raises(InstantiationException, match="cells=3 does not divide data.image_size=8: choose .*=9"):
        data(*SMALL, "data.contrast_cells=3")


def test_a_density_of_features_is_named_so_and_has_no_bits():
    cfg = composed(*SMALL, "model=conv_features")
    module = build.build_datamodule(cfg)
    model = build.build_model(cfg, module)
    assert cfg.data.dequantize is True  # noise of the pixels: a flat cell has a density
    assert model.metric_names(module.pixels)["elbo"] == "elbo of features"
    assert model.cost_name(module.pixels) == "−elbo of features"
    assert model.likelihood.bits_per_dim(1.0, 1, module.pixels) is None
