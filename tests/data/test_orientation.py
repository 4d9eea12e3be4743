"""Orientation maps: known gradients, turned and brightened images, and what a data module makes of them."""

import math

import pytest
import torch
from hydra.errors import InstantiationException

from src.data.orientation import BINS, MAPS, orientation_maps
from src.data.pixels import Pixels
from src.runs import build
from tests.helpers import SMALL, composed, data, examples


def ramp(degrees: float, contrast: float = 0.01, side: int = 16) -> torch.Tensor:
    """Return an image that grows by ``contrast`` a pixel in a direction: 0 to the right, 90 downwards."""
    down, across = torch.meshgrid(*[torch.arange(side) - side / 2] * 2, indexing="ij")
    angle = math.radians(degrees)
    return (0.5 + contrast * (across * math.cos(angle) + down * math.sin(angle)))[None, None]


@pytest.mark.parametrize("number", range(BINS))
def test_the_gradient_of_a_ramp_is_in_its_bin(number):
    """Twice as steep is log10(2) / 3 more; the other way round is the same."""
    step = 180 / BINS
    shares, contrast = orientation_maps(ramp(number * step), 4)[0, :, 1:-1, 1:-1].square().split([BINS, 1])
    faint = 0.01 / (0.01 + 0.01)  # such a cell counts half
    expected = torch.full((BINS,), faint / BINS)
    expected[number] += 1 - faint
    torch.testing.assert_close(shares, expected[:, None, None].expand_as(shares), atol=1e-4, rtol=0)
    torch.testing.assert_close(contrast.sqrt(), torch.full_like(contrast, 1 + math.log10(0.011) / 3))
    turned = orientation_maps(ramp(number * step + 180), 4)[0, :, 1:-1, 1:-1]
    torch.testing.assert_close(turned[:BINS].square(), shares, atol=1e-4, rtol=0)
    halfway = orientation_maps(ramp((number + 0.5) * step), 4)[0, :BINS, 1, 1].square()
    assert set(halfway.topk(2).indices.tolist()) == {number, (number + 1) % BINS}
    assert halfway[number] == pytest.approx(halfway[(number + 1) % BINS].item(), abs=1e-3)


def test_maps_turn_with_the_image():
    """A quarter of a turn moves each cell, and each direction by half of the bins."""
    torch.manual_seed(0)
    x = torch.rand(3, 1, 24, 24)
    maps, turned = orientation_maps(x, 4), orientation_maps(x.rot90(1, (2, 3)), 4)
    expected = torch.cat([maps[:, :BINS].roll(BINS // 2, 1), maps[:, BINS:]], 1).rot90(1, (2, 3))
    torch.testing.assert_close(turned, expected, atol=1e-5, rtol=0)


def test_maps_do_not_depend_on_brightness_and_are_finite_where_nothing_is_to_be_seen():
    torch.manual_seed(0)
    x = torch.rand(3, 3, 16, 16) / 2
    torch.testing.assert_close(orientation_maps(x + 0.3, 4), orientation_maps(x, 4), atol=1e-5, rtol=0)
    black = orientation_maps(torch.zeros(1, 1, 16, 16), 4)[0]
    torch.testing.assert_close(black[:BINS], torch.full((BINS, 4, 4), BINS**-0.5))
    torch.testing.assert_close(black[BINS:], torch.zeros(1, 4, 4))
    steepest = torch.tensor([[0.0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]])
    maps = orientation_maps(steepest.repeat(4, 4)[None, None], 4)
    assert 0 <= maps.min() <= maps.max() <= 1


def test_a_model_sees_the_maps_of_its_pixels():
    module = data(*SMALL, "data.orientation_cell=4")
    x = examples(module, "train", 50)
    stored = module.pool.images[module.spread("train", 50)]
    assert (module.image_shape, module.pixels) == ((MAPS, 2, 2), Pixels.FEATURES)
    torch.testing.assert_close(x, orientation_maps(stored / 255, 4))
    torch.testing.assert_close(module.seen(module.spread("train", 50)), x)
    torch.testing.assert_close(module.train_images[torch.arange(3)], module.seen(module.splits.train[:3]))
    coarser, pixels = data(*SMALL, "data.orientation_cell=2"), data(*SMALL)
    assert len({module.fingerprint, coarser.fingerprint, pixels.fingerprint}) == 3
    noisy = data(*SMALL, "data.orientation_cell=4", "data.dequantize=true")
    assert noisy.pixels is Pixels.FEATURES
    x = examples(noisy, "train", 50)
    assert not torch.equal(x, examples(noisy, "train", 50))
    torch.testing.assert_close(x, noisy.seen(noisy.spread("train", 50)), atol=0.1, rtol=0)


def test_cells_must_divide_the_image():
    with pytest.raises(InstantiationException, match="cell=3 does not divide data.image_size=8: choose .*=9"):
        data(*SMALL, "data.orientation_cell=3")


def test_a_density_of_features_is_named_so_and_has_no_bits():
    cfg = composed(*SMALL, "model=conv_features", "data.image_size=8")
    module = build.build_datamodule(cfg)
    model = build.build_model(cfg, module)
    assert cfg.data.dequantize is True  # noise of the pixels: a flat cell has a density
    assert model.metric_names(module.pixels)["elbo"] == "elbo of features"
    assert model.cost_name(module.pixels) == "−elbo of features"
    assert model.likelihood.bits_per_dim(1.0, 1, module.pixels) is None
