"""Compare bounds and their parts with models whose evidence is known."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from src.evaluation.importance import importance_bound
from src.models.objectives import (
    Inference,
    Latent,
    elbo_terms,
    iwae_bound,
    log_weights,
    rates,
    rising,
    soft_bound,
)
from src.models.priors import StandardNormal
from src.models.vae import VAE
from tests.linear_gaussian import SHAPE, probabilistic_pca


@pytest.fixture
def linear_gaussian():
    return probabilistic_pca()


@torch.no_grad()
def test_elbo_of_the_exact_posterior_is_the_evidence(linear_gaussian):
    model, evidence = linear_gaussian
    x = evidence.sample((5,))
    terms = elbo_terms(x.unflatten(1, SHAPE), model.infer(x.unflatten(1, SHAPE), num_samples=20_000))
    torch.testing.assert_close(terms.elbo, evidence.log_prob(x), atol=0.03, rtol=0)


@torch.no_grad()
def test_every_importance_weight_of_the_exact_posterior_is_the_evidence(linear_gaussian):
    model, evidence = linear_gaussian
    x = evidence.sample((5,))
    for samples in (1, 7):
        bound = iwae_bound(log_weights(x.unflatten(1, SHAPE), model.infer(x.unflatten(1, SHAPE), samples)))
        torch.testing.assert_close(bound.float(), evidence.log_prob(x), atol=1e-4, rtol=0)


def worse(x: Tensor, model: VAE, samples: int) -> Inference:
    """Return the inference of images with a posterior twice as wide."""
    exact = model.embed(x)
    posterior = Independent(Normal(exact.loc, 2 * exact.scale), 1)
    return model.with_likelihood((Latent(posterior, model.prior(), posterior.rsample((samples,))),))


@torch.no_grad()
def test_elbo_falls_short_by_the_kl_to_the_true_posterior(linear_gaussian):
    model, evidence = linear_gaussian
    x = evidence.sample((4,))
    wide = worse(x.unflatten(1, SHAPE), model, 20_000)
    elbo = elbo_terms(x.unflatten(1, SHAPE), wide).elbo
    gap = kl_divergence(wide.latents[0].posterior, model.posterior(x.unflatten(1, SHAPE)))
    assert (gap > 0.5).all()
    torch.testing.assert_close(elbo, evidence.log_prob(x) - gap, atol=0.1, rtol=0)


@torch.no_grad()
def test_iwae_bound_rises_with_k_from_the_elbo_to_the_evidence(linear_gaussian):
    model, evidence = linear_gaussian
    x = evidence.sample((4000,))
    images = x.unflatten(1, SHAPE)
    elbo = elbo_terms(images, worse(images, model, 100)).elbo.mean()
    bounds = [iwae_bound(log_weights(images, worse(images, model, k))).mean() for k in (1, 4, 16, 256)]
    values = [float(value) for value in (elbo, *bounds[1:], evidence.log_prob(x).mean())]
    assert values == sorted(values)
    assert values[-1] - values[-2] < 0.01  # K = 256 is almost tight
    assert float(bounds[0]) == pytest.approx(values[0], abs=0.1)  # K = 1 is the ELBO


def test_the_bound_in_chunks_is_the_evidence(linear_gaussian):
    """With a posterior twice as wide, 5000 samples in chunks of 700 give the exact evidence; the ELBO falls short."""
    model, evidence = linear_gaussian
    x = evidence.sample((20,))
    exact = importance_bound(model, x.unflatten(1, SHAPE), num_samples=50, at_once=7)
    torch.testing.assert_close(exact.log_likelihood.float(), evidence.log_prob(x), atol=1e-4, rtol=0)
    torch.testing.assert_close(exact.effective_samples, torch.full((20,), 50.0).double(), atol=0.01, rtol=0)
    with torch.no_grad():
        model.posterior_head.bias[model.latent_dim :] += 2 * math.log(2)
    wide = importance_bound(model, x.unflatten(1, SHAPE), num_samples=5_000, at_once=700)
    assert wide.log_likelihood.dtype == torch.float64
    torch.testing.assert_close(wide.log_likelihood.float(), evidence.log_prob(x), atol=0.1, rtol=0)
    assert (wide.log_likelihood - wide.elbo > 0.5).all()
    assert (wide.effective_samples < 4_000).all()
    assert (wide.effective_samples > 500).all()


def test_rate_is_the_monte_carlo_kl():
    torch.manual_seed(0)
    posterior = Independent(Normal(torch.randn(3, 4), torch.rand(3, 4) + 0.2), 1)
    prior = StandardNormal(4)()
    z = posterior.sample((200_000,))
    monte_carlo = (posterior.log_prob(z) - prior.log_prob(z)).mean(0)
    analytic = rates(Latent(posterior, prior, z))
    assert analytic.shape == (3, 4)
    torch.testing.assert_close(analytic.sum(1), monte_carlo, atol=0.03, rtol=0)


def test_rate_is_the_closed_form_and_not_that_of_yin_and_wang():
    mean, scale = torch.tensor([[0.5, -2.0]]), torch.tensor([[0.3, 1.7]])
    posterior = Independent(Normal(mean, scale), 1)
    rate = rates(Latent(posterior, StandardNormal(2)(), posterior.sample((1,))))
    torch.testing.assert_close(rate, 0.5 * (mean**2 + scale**2 - 1) - scale.log())
    # mu^2 + sigma^2 - log sigma - 1/2 is the KL to N(0, 1/2) plus half the logarithm of 2.
    as_documented = mean**2 + scale**2 - scale.log() - 0.5
    to_half = kl_divergence(Normal(mean, scale), Normal(0.0, 0.5**0.5))
    torch.testing.assert_close(as_documented, to_half + 0.5 * math.log(2))
    assert (as_documented - rate).abs().max() > 0.1


def test_warmup_is_linear_and_ends():
    assert [rising(step, 4) for step in (0, 1, 2, 4, 100)] == [0, 0.25, 0.5, 1, 1]
    assert rising(0, 0) == 1


def test_soft_bound_bounds_without_killing_the_gradient():
    x = torch.tensor([-1e4, -60.0, -0.1, 0.0, 0.1, 60.0, 1e4], requires_grad=True)
    y = soft_bound(x, 12.0)
    assert (y.abs() <= 12).all()
    torch.testing.assert_close(y[2:5], x[2:5], atol=1e-4, rtol=1e-3)
    y.sum().backward()
    assert (x.grad > 1e-10).all()
    assert x.grad[1] > 1e-3  # tanh would leave 2e-4 there, a clamp nothing


def test_soft_bound_is_that_of_float64_at_any_size():
    x = torch.tensor([sign * 10.0**power for power in range(-30, 39, 4) for sign in (1, -1)], requires_grad=True)
    exact = x.detach().double().requires_grad_()
    for value in (x, exact):
        soft_bound(value, 12.0).sum().backward()
    torch.testing.assert_close(soft_bound(x, 12.0).double(), soft_bound(exact, 12.0), rtol=1e-6, atol=0)
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=1e-4, atol=1e-6)
