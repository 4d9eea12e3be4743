"""Compare likelihoods with their definitions."""

import math
import re

import pytest
import torch
from torch import nn

from src.data.pixels import Pixels
from src.models.discretized import BetaBinomialLikelihood, DiscretizedLogisticLikelihood
from src.models.gaussians import (
    BestScaleNormal,
    OptimalGaussianLikelihood,
    PixelwiseGaussianLikelihood,
    StudentLikelihood,
    StudentT,
)
from src.models.likelihoods import (
    BernoulliLikelihood,
    ContinuousBernoulliLikelihood,
    GaussianLikelihood,
    StableNormal,
    bounded_scale,
)
from src.system.errors import UserError

SHAPE = (2, 3, 1, 4, 5)  # K, B, C, H, W


ALL = (
    *(BernoulliLikelihood(), ContinuousBernoulliLikelihood(), GaussianLikelihood(), OptimalGaussianLikelihood()),
    *(StudentLikelihood(), PixelwiseGaussianLikelihood(), DiscretizedLogisticLikelihood(), BetaBinomialLikelihood()),
    DiscretizedLogisticLikelihood(3),
)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("likelihood", ALL, ids=lambda likelihood: likelihood.name)
def test_shapes(likelihood, channels):
    event = (channels, *SHAPE[3:])
    p = likelihood(torch.randn(*SHAPE[:2], likelihood.outputs(channels), *event[1:]))
    assert (p.batch_shape, p.event_shape) == (SHAPE[:2], event)
    assert p.log_prob(torch.rand(SHAPE[1], *event)).shape == SHAPE[:2]
    assert p.mean.shape == p.sample().shape == (*SHAPE[:2], *event)
    assert p.sample((7,)).shape == (7, *SHAPE[:2], *event)
    assert p.mean.dtype == p.sample().dtype == torch.float32


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
        (OptimalGaussianLikelihood(), 1e18),
        (StudentLikelihood(), 1e17),
        (DiscretizedLogisticLikelihood(), 1e18),
        (BetaBinomialLikelihood(), 1e18),
    ],
)
def test_log_density_and_gradient_are_those_of_float64_wherever_float32_holds_them(likelihood, largest):
    """Intermediate squares and powers overflow long before the result does."""
    raws = torch.tensor([sign * largest * 10.0**-power for power in range(0, 30, 3) for sign in (1, -1)])
    raws = raws.view(-1, 1, 1, 1)
    raws = torch.cat([raws, torch.zeros(len(raws), likelihood.outputs(1) - 1, 1, 1)], 1)  # such as scales
    results = []
    for dtype in (torch.float32, torch.float64):
        raw = raws.detach().clone().to(dtype).requires_grad_()
        value = likelihood.to(dtype)(raw).log_prob(torch.full_like(raw[:, :1], 0.25).detach())
        value.sum().backward()
        results.append((value.detach().double(), raw.grad.double()))
    assert results[0][0].isfinite().all()
    for ours, exact in zip(*results, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-4)


def pixel_by_pixel(values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return the log density of errors ``[..., C, H, W]`` under a Gaussian of this scale."""
    return StableNormal(torch.zeros(()), scale).log_prob(values).sum((-3, -2, -1))


def test_the_optimal_gaussian_is_the_best_of_all_scales():
    """D = n/2 (log(2 pi MSE) + 1), which is the least over scales: its derivative by log scale is 0 at the MSE."""
    errors = torch.tensor([0.03, 0.2, 1.0]).view(3, 1, 1, 1) * torch.randn(3, 1, 6, 7)
    mse = errors.square().mean((-3, -2, -1))
    found = OptimalGaussianLikelihood()(torch.zeros_like(errors)).log_prob(errors)
    torch.testing.assert_close(-found, 42 / 2 * (torch.log(2 * math.pi * mse) + 1))
    log_scale = (0.5 * mse.log()).view(3, 1, 1, 1).requires_grad_()
    at_mse = pixel_by_pixel(errors, log_scale.exp())
    torch.testing.assert_close(found, at_mse.detach())
    assert torch.autograd.grad(at_mse.sum(), log_scale)[0].abs().max() < 1e-3
    for factor in torch.linspace(-1, 1, 21).exp():
        assert (pixel_by_pixel(errors, log_scale.detach().exp() * factor) <= found + 1e-4).all()


def test_the_optimal_gaussian_of_a_perfect_image_is_finite_and_still_learns():
    x = torch.full((1, 1, 4, 4), 0.5)
    raw = (x + 1e-5).requires_grad_()
    value = OptimalGaussianLikelihood()(raw).log_prob(x)
    assert value.item() == pytest.approx(pixel_by_pixel(x - raw, torch.tensor(math.exp(-6))).item(), rel=1e-5)
    value.backward()
    assert (raw.grad < 0).all()


def test_a_maximum_of_densities_is_none_and_student_is_one():
    """Over images of two pixels, by quadrature."""
    line = torch.cat([-torch.logspace(2, -4, 1001), torch.zeros(1), torch.logspace(-4, 2, 1001)])
    grid = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).flatten(0, 1).view(-1, 1, 1, 2)

    def mass(p):
        density = p.log_prob(grid).exp().view(len(line), len(line)).double()
        return torch.trapezoid(torch.trapezoid(density, line.double()), line.double()).item()

    mean = torch.zeros(1, 1, 2)
    assert mass(StudentT(mean, torch.tensor(1.5), torch.tensor(0.02))) == pytest.approx(1, abs=1e-3)
    assert mass(BestScaleNormal(mean)) > 5


def test_student_is_the_gaussian_averaged_over_its_variance():
    shape, rate = torch.tensor(2.0), torch.tensor(0.05)
    errors = 0.2 * torch.randn(1, 3, 4)
    p = StudentT(torch.zeros(1, 3, 4), shape, rate)
    variance = 1 / torch.distributions.Gamma(shape, rate).sample((200_000, 1, 1, 1))
    values = pixel_by_pixel(errors, variance.sqrt())
    assert p.log_prob(errors).item() == pytest.approx((values.logsumexp(0) - math.log(len(values))).item(), abs=0.02)
    scales = p.sample((20_000,)).square().mean((-3, -2, -1))
    assert scales.mean().item() == pytest.approx((rate / (shape - 1)).item(), rel=0.1)


def test_pixelwise_gaussian_has_the_means_and_scales_of_the_decoder():
    raw, x = torch.randn(2, 6, 4, 5), torch.rand(2, 3, 4, 5)
    p = PixelwiseGaussianLikelihood()(raw)
    torch.testing.assert_close(p.mean, raw[:, :3])
    expected = torch.distributions.Normal(raw[:, :3], bounded_scale(raw[:, 3:])).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(p.log_prob(x), expected)
    ends = bounded_scale(torch.tensor([-1e30, -10.0, 0.0, 10.0, 1e30])).log()
    assert (ends.diff() > 0).all()
    torch.testing.assert_close(ends[[0, 2, 4]], torch.tensor([-8.0, -2.0, 4.0]))


def test_which_likelihoods_are_pseudo():
    assert BernoulliLikelihood().is_pseudo(Pixels.GREY)
    assert not BernoulliLikelihood().is_pseudo(Pixels.BINARY)
    assert not ContinuousBernoulliLikelihood().is_pseudo(Pixels.GREY)
    assert not StudentLikelihood().is_pseudo(Pixels.DEQUANTIZED)
    for pixels in Pixels:  # a maximum over densities is none of any pixels
        assert OptimalGaussianLikelihood().is_pseudo(pixels)
        assert OptimalGaussianLikelihood().bits_per_dim(100, 784, pixels) is None


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
