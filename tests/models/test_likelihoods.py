"""Compare likelihoods with their definitions."""

import math
import re

import pytest
import torch
from torch import nn

from src.data.pixels import Pixels
from src.models.likelihoods import BernoulliLikelihood, ContinuousBernoulliLikelihood, GaussianLikelihood
from src.system.errors import UserError

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


@pytest.mark.parametrize("logit", [-60.0, -30.0, -16.0, -1.0, -0.1, -0.0999, -1e-3, 0.0, 1e-4, 0.5, 3.0, 60.0])
def test_continuous_bernoulli_is_a_density_with_that_mean_in_float32(logit):
    x = torch.linspace(0, 1, 200_001)
    p = ContinuousBernoulliLikelihood()(torch.full((len(x), 1, 1, 1), logit))
    density = p.log_prob(x.view(-1, 1, 1, 1)).exp().double()
    assert torch.trapezoid(density, x.double()).item() == pytest.approx(1, abs=2e-5)
    mean = torch.trapezoid(density * x, x.double()).item()
    assert p.mean[0].item() == pytest.approx(mean, abs=2e-5)


@pytest.mark.parametrize("logit", [-60.0, -16.0, -0.05, 0.0, 0.05, 2.0, 60.0])
def test_continuous_bernoulli_gradient_is_the_exact_one(logit):
    """d log p(x) / dh = x - mean(h), as the logit is the natural parameter of an exponential family."""
    raw = torch.full((1, 1, 1, 1), logit, requires_grad=True)
    p = ContinuousBernoulliLikelihood()(raw)
    p.log_prob(torch.full((1, 1, 1, 1), 0.25)).sum().backward()
    exact = torch.tensor(logit, dtype=torch.float64)
    mean = -1 / torch.expm1(-exact) - 1 / exact if logit else torch.tensor(0.5)
    assert raw.grad.item() == pytest.approx(0.25 - mean.item(), abs=1e-4)


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


@pytest.mark.parametrize("scale", [1e-30, 0.001, 1e36, 1e308, math.inf])
def test_gaussian_refuses_a_scale_beyond_its_bounds(scale):
    with pytest.raises(UserError, match=re.escape(f"model.likelihood.scale={scale}: give")):
        GaussianLikelihood(scale)


@pytest.mark.parametrize(
    ("likelihood", "largest"),
    [
        (BernoulliLikelihood(), 1e30),
        (ContinuousBernoulliLikelihood(), 1e30),
        *((GaussianLikelihood(scale), 1e18 * scale) for scale in (0.0026, 1.0, 1e10, 1e20)),
    ],
)
def test_log_density_and_gradient_are_those_of_float64_wherever_float32_holds_them(likelihood, largest):
    """Intermediate squares and powers overflow long before the result does."""
    raws = torch.tensor([sign * largest * 10.0**-power for power in range(0, 30, 3) for sign in (1, -1)])
    results = []
    for dtype in (torch.float32, torch.float64):
        raw = raws.detach().clone().to(dtype).view(-1, 1, 1, 1).requires_grad_()
        value = likelihood.to(dtype)(raw).log_prob(torch.full_like(raw, 0.25).detach())
        value.sum().backward()
        results.append((value.detach().double(), raw.grad.double()))
    assert results[0][0].isfinite().all()
    for ours, exact in zip(*results, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-4)


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
