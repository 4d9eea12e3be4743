"""Likelihoods against their definitions."""

import math

import pytest
import torch
from torch import nn

from src.errors import UserError
from src.likelihoods import BernoulliLikelihood, ContinuousBernoulliLikelihood, GaussianLikelihood, Pixels

SHAPE = (2, 3, 1, 4, 5)  # K, B, C, H, W


@pytest.mark.parametrize("likelihood", [BernoulliLikelihood(), ContinuousBernoulliLikelihood(), GaussianLikelihood()])
def test_shapes(likelihood):
    p = likelihood(torch.randn(SHAPE))
    assert (p.batch_shape, p.event_shape) == (SHAPE[:2], SHAPE[2:])
    assert p.log_prob(torch.rand(SHAPE[1:])).shape == SHAPE[:2]


def test_bernoulli_is_the_summed_binary_cross_entropy():
    raw, x = torch.randn(SHAPE), torch.rand(SHAPE)
    bce = nn.functional.binary_cross_entropy(raw.sigmoid(), x, reduction="none").sum((-1, -2, -3))
    torch.testing.assert_close(-BernoulliLikelihood()(raw).log_prob(x), bce)


@pytest.mark.parametrize("logit", [-8.0, -1.0, -1e-3, 0.0, 1e-4, 0.5, 3.0])
def test_continuous_bernoulli_integrates_to_one(logit):
    x = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    raw = torch.full((len(x), 1, 1, 1), logit, dtype=torch.float64)
    density = ContinuousBernoulliLikelihood()(raw).log_prob(x.view(-1, 1, 1, 1)).exp()
    assert float(torch.trapezoid(density, x)) == pytest.approx(1, abs=1e-5)


def test_bernoulli_on_grey_pixels_is_no_density():
    x = torch.linspace(0, 1, 20_001).view(-1, 1, 1, 1)
    mass = BernoulliLikelihood()(torch.zeros_like(x)).log_prob(x).exp()
    assert float(torch.trapezoid(mass.flatten(), x.flatten())) == pytest.approx(0.5, abs=1e-5)


def test_gaussian_scale_starts_as_given_and_learns():
    fixed, learned = GaussianLikelihood(0.2), GaussianLikelihood(0.2, learned=True)
    assert float(fixed.scale) == pytest.approx(0.2, rel=1e-5)
    assert not list(fixed.parameters())
    assert len(list(learned.parameters())) == 1
    # The best shared scale is the root mean squared error: gradient ascent finds it.
    error = torch.randn(1, 64, 1, 8, 8) * 0.05
    optimizer = torch.optim.Adam(learned.parameters(), lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        (-learned(torch.zeros_like(error)).log_prob(error).mean()).backward()
        optimizer.step()
    assert learned.scale.item() == pytest.approx(float(error.square().mean().sqrt()), rel=0.02)


def test_gaussian_refuses_a_scale_below_its_bound():
    with pytest.raises(UserError, match="scale=0.001"):
        GaussianLikelihood(0.001)


def test_only_grey_bernoulli_is_pseudo():
    assert BernoulliLikelihood().is_pseudo(Pixels.GREY)
    assert not BernoulliLikelihood().is_pseudo(Pixels.BINARY)
    assert not ContinuousBernoulliLikelihood().is_pseudo(Pixels.GREY)


def test_bits_per_dim_only_for_probabilities_of_the_data():
    assert BernoulliLikelihood().bits_per_dim(100, 784, Pixels.GREY) is None
    assert GaussianLikelihood().bits_per_dim(100, 784, Pixels.GREY) is None
    assert GaussianLikelihood().bits_per_dim(100, 784, Pixels.BINARY) is None
    assert BernoulliLikelihood().bits_per_dim(784 * math.log(2), 784, Pixels.BINARY) == pytest.approx(1)


def test_uniform_density_of_dequantized_pixels_costs_eight_bits():
    x = (torch.randint(256, (16, 1, 8, 8)) + torch.rand(16, 1, 8, 8)) / 256
    nats = -ContinuousBernoulliLikelihood()(torch.zeros_like(x)).log_prob(x).mean()  # logit 0 is uniform
    bits = ContinuousBernoulliLikelihood().bits_per_dim(float(nats), 64, Pixels.DEQUANTIZED)
    assert bits == pytest.approx(8, abs=1e-4)
