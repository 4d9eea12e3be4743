"""Compare likelihoods of levels with their definitions: 256 probabilities that sum to 1, whatever the parameters."""

import math

import pytest
import torch

from src.data.pixels import Pixels
from src.models.discretized import (
    BetaBinomialLikelihood,
    DiscretizedLogisticLikelihood,
    LogisticMixture,
    log_probability,
)
from src.system.errors import UserError

LEVELS = torch.arange(256) / 255
KINDS = {
    "plain": DiscretizedLogisticLikelihood(),
    "mixture": DiscretizedLogisticLikelihood(3),
    "beta": BetaBinomialLikelihood(),
}
GREY = pytest.mark.parametrize("likelihood", KINDS.values(), ids=KINDS)


def one_pixel(likelihood, channels=1, spread=1.0, seed=0):
    """Return the distribution of an image of one pixel, of random parameters."""
    torch.manual_seed(seed)
    return likelihood(spread * torch.randn(1, likelihood.outputs(channels), 1, 1))


def probabilities(p):
    """Return the probabilities ``[256]`` of the levels of a grey pixel."""
    return p.log_prob(LEVELS.view(-1, 1, 1, 1)).exp()


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 0.003, 0.1, 3.0, 1e4])
@pytest.mark.parametrize("mean", [-1e4, -3.0, 0.0, 0.4, 100.5 / 255, 1.0, 1.2, 1e4])
def test_levels_of_a_logistic_sum_to_one_and_have_finite_gradients(mean, scale):
    mean, log_scale = torch.tensor(mean, requires_grad=True), torch.tensor(math.log(scale), requires_grad=True)
    values = log_probability(LEVELS, mean, log_scale.exp())
    assert values.exp().sum().item() == pytest.approx(1, abs=1e-4)
    assert values.isfinite().all()
    values.sum().backward()
    assert mean.grad.isfinite()
    assert log_scale.grad.isfinite()


@GREY
@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0, 1e6])
def test_levels_sum_to_one_at_any_output_of_a_decoder(likelihood, spread):
    raw = (spread * torch.randn(50, likelihood.outputs(1), 1, 1)).requires_grad_()
    values = likelihood(raw).log_prob(LEVELS.view(-1, 1, 1, 1, 1))
    torch.testing.assert_close(values.exp().sum(0), torch.ones(50), atol=1e-4, rtol=0)
    values.sum().backward()
    assert raw.grad.isfinite().all()


def test_a_logistic_has_the_mass_of_each_interval():
    mean, scale = torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.01, dtype=torch.float64)
    ends = torch.sigmoid(((torch.arange(255).double() + 0.5) / 255 - mean) / scale)
    mass = torch.cat([ends[:1], ends.diff(), 1 - ends[-1:]])
    torch.testing.assert_close(log_probability(LEVELS.double(), mean, scale).exp(), mass, rtol=1e-9, atol=1e-14)


def test_equal_components_are_one_and_unlikely_ones_do_not_count():
    mean, scale = torch.rand(2, 1, 3, 1, 1), torch.rand(2, 1, 3, 1, 1)
    weights = torch.rand(2, 1, 3, 1, 1) - 0.5
    x = torch.randint(256, (2, 3, 1, 1)) / 255
    plain = LogisticMixture(torch.zeros(2, 1, 1, 1), mean, scale, weights).log_prob(x)
    thrice = [part.repeat(1, 3, 1, 1, 1) for part in (mean, scale, weights)]
    torch.testing.assert_close(LogisticMixture(torch.randn(2, 3, 1, 1), *thrice).log_prob(x), plain)
    other = [torch.cat([part, torch.rand_like(part)], 1) for part in (mean, scale, weights)]
    unlikely = torch.tensor([0.0, -100.0]).view(1, 2, 1, 1).expand(2, 2, 1, 1)
    torch.testing.assert_close(LogisticMixture(unlikely, *other).log_prob(x), plain)


@GREY
def test_samples_have_these_probabilities_and_this_mean(likelihood):
    p = one_pixel(likelihood)
    draws = p.sample((100_000,)).flatten()
    levels = (255 * draws).round()
    assert torch.equal(levels / 255, draws)
    mass = probabilities(p)
    counted = levels.long().bincount(minlength=256) / len(levels)
    assert (counted - mass).abs().sum() / 2 < 0.02  # total variation, 0.3 sqrt(256 / 100,000) where all levels are used
    assert ((counted - mass).abs() <= 5 * (mass * (1 - mass) / len(levels)).sqrt() + 1e-4).all()
    assert p.mean.item() == pytest.approx((mass * LEVELS).sum().item(), abs=0.5 / 255)


def test_joint_of_colours_sums_to_one():
    """Dark colours whose channels move each other: all of the mass is on the 24 darkest levels of each."""
    torch.manual_seed(0)
    mean, scale, weights = (
        0.04 * torch.rand(2, 3, 1, 1),
        torch.full((2, 3, 1, 1), 0.002),
        0.05 * torch.randn(2, 3, 1, 1),
    )
    p = LogisticMixture(torch.tensor([0.5, -0.5]).view(2, 1, 1), mean, scale, weights)
    colours = torch.cartesian_prod(*3 * [LEVELS[:24]])[..., None, None]
    mass = p.log_prob(colours).exp()
    assert mass.sum().item() == pytest.approx(1, abs=1e-4)
    assert (mass @ colours[:, :, 0, 0] - p.mean.flatten()).abs().max() < 0.5 / 255
    # The channels are not independent: the joint is no product of its marginals.
    joint = mass.view(24, 24, 24).sum(2)
    assert (joint - joint.sum(1)[:, None] * joint.sum(0)).abs().max() > 1e-3
    draws = (255 * p.sample((50_000,))[:, :, 0, 0]).round().long()
    counted = (draws[:, 0] * 24 + draws[:, 1]).bincount(minlength=24**2).view(24, 24) / len(draws)
    assert ((counted - joint).abs() <= 5 * (joint / len(draws)).sqrt() + 1e-4).all()


def test_the_later_channels_of_a_colour_sum_to_the_probability_of_the_first():
    p = one_pixel(DiscretizedLogisticLikelihood(2), channels=3)
    rest = torch.cartesian_prod(LEVELS, LEVELS)
    colours = torch.cat([torch.full((len(rest), 1), 100 / 255), rest], 1)[..., None, None]
    first = LogisticMixture(p.logits, p.means[..., :1, :, :], p.scale[..., :1, :, :], p.weights[..., :0, :, :])
    expected = first.log_prob(torch.full((1, 1, 1), 100 / 255)).exp().item()
    assert p.log_prob(colours).exp().sum().item() == pytest.approx(expected, rel=1e-4)


def test_grey_levels_are_coded_in_bits_and_no_pseudo_likelihood():
    for likelihood in KINDS.values():
        assert not likelihood.is_pseudo(Pixels.GREY)
        assert likelihood.is_pseudo(Pixels.DEQUANTIZED)  # the noise is rounded off again
        assert likelihood.bits_per_dim(784 * math.log(2), 784, Pixels.GREY) == pytest.approx(1)
        assert likelihood.bits_per_dim(100, 784, Pixels.DEQUANTIZED) is None


def test_a_mixture_has_a_component():
    with pytest.raises(UserError, match="components=0"):
        DiscretizedLogisticLikelihood(0)
