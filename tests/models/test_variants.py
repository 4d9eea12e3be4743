"""Prove that the base carries priors, posteriors and hierarchies that it does not hold yet, by known values."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal

from src.evaluation.importance import importance_bound
from src.models.likelihoods import GaussianLikelihood
from src.models.objectives import Inference, Latent, elbo_terms, factorizes, iwae_bound, log_weights, rates
from src.models.posteriors import MAX_LOG_VARIANCE
from src.models.priors import MixturePrior, bounded_scale
from tests.helpers import built, examples
from tests.linear_gaussian import LATENTS, NOISE, PIXELS, SHAPE, Flat, LinearDecoder
from tests.variants import Chain, FullStandardNormal

OPTIONS = {"image_shape": SHAPE, "latent_dim": LATENTS, "encoder": Flat, "decoder": LinearDecoder}


def gaussian(mean: Tensor, scale: Tensor) -> Independent:
    return Independent(Normal(mean, scale), 1)


# ---- a prior to which torch knows no KL -----------------------------------------------------------------------------


@torch.no_grad()
def test_the_sampled_rate_of_a_mixture_is_that_of_an_integral():
    torch.manual_seed(0)
    prior = MixturePrior(1, components=3)
    mean, scale = torch.tensor([[-1.0], [0.3], [2.0]]), torch.tensor([[0.2], [0.5], [1.5]])
    posterior = gaussian(mean, scale)
    z = posterior.sample((100_000,))
    estimate = rates(Latent(posterior, prior(), z))
    assert estimate.shape == (3, 1)
    # By hand, in float64, on a grid.
    grid = torch.linspace(-20, 20, 400_001, dtype=torch.float64)
    weights, means, scales = (
        p.double() for p in (prior.logits.softmax(0), prior.mean[:, 0], bounded_scale(prior.log_variance)[:, 0])
    )
    density = (weights * torch.exp(-0.5 * ((grid[:, None] - means) / scales) ** 2) / scales).sum(1) / math.sqrt(
        2 * math.pi
    )
    for row in range(3):
        m, s = mean[row].double(), scale[row].double()
        log_q = -0.5 * ((grid - m) / s) ** 2 - s.log() - 0.5 * math.log(2 * math.pi)
        exact = torch.trapezoid(log_q.exp() * (log_q - density.log()), grid)
        draws = (posterior.log_prob(z) - prior().log_prob(z))[:, row]
        assert abs(estimate[row, 0] - exact) < 3 * draws.std() / len(z) ** 0.5


def test_a_mixture_of_one_component_costs_what_the_component_does():
    torch.manual_seed(0)
    prior = MixturePrior(2, components=1)
    posterior = gaussian(torch.randn(4, 2), torch.rand(4, 2) + 0.5)
    z = posterior.sample((100_000,))
    parts = rates(Latent(posterior, gaussian(prior.mean[0], bounded_scale(prior.log_variance)[0]), z))
    assert parts.shape == (4, 2)
    torch.testing.assert_close(rates(Latent(posterior, prior(), z)), parts.sum(1, keepdim=True), atol=0.03, rtol=0)


def test_the_sampled_rate_trains_the_prior_to_the_aggregate_posterior():
    """At the optimum of a prior with one component its moments are those of the aggregate posterior."""
    torch.manual_seed(0)
    prior, posterior = (
        MixturePrior(1, components=1),
        gaussian(torch.tensor([[-1.0], [3.0]]), torch.tensor([[1.0], [2.0]])),
    )
    z = posterior.sample((50_000,))
    optimizer = torch.optim.LBFGS(prior.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = rates(Latent(posterior, prior(), z)).mean()
        value.backward()
        return value

    optimizer.step(loss)
    assert prior.mean.item() == pytest.approx(1.0, abs=0.05)
    assert bounded_scale(prior.log_variance).item() ** 2 == pytest.approx((1 + 4) / 2 + 4, rel=0.02)


# ---- what factorizes ------------------------------------------------------------------------------------------------


def test_what_factorizes():
    assert factorizes(gaussian(torch.zeros(2), torch.ones(2)))
    assert not factorizes(MixturePrior(2, components=3)())
    assert not factorizes(FullStandardNormal(2)())
    assert not factorizes(Independent(FullStandardNormal(2)().expand((3,)), 1))


# ---- several groups -------------------------------------------------------------------------------------------------


def exact_chain() -> tuple[Chain, MultivariateNormal]:
    """Return z2 -> z1 -> x with its true posterior, and the evidence.

    z1 = a z2 + s noise, x = Q w z1 + b + n noise with orthonormal Q, so all posteriors factorize. With u = Q'(x - b):
    q(z2|x) has precision 1 + (w a)^2 / v, mean w a u / v over that, v = (w s)^2 + n^2; q(z1|z2, x) has precision
    1 / s^2 + (w / n)^2, mean (a z2 / s^2 + w u / n^2) over that.
    """
    torch.manual_seed(0)
    model = Chain(**OPTIONS, likelihood=GaussianLikelihood(NOISE))
    basis, offset = torch.linalg.qr(torch.randn(PIXELS, LATENTS))[0], torch.randn(PIXELS)
    w, a, s, n = torch.tensor([1.5, 0.7]), torch.tensor([0.8, -1.2]), torch.tensor([0.6, 1.1]), NOISE
    v = (w * s) ** 2 + n**2
    above, below = 1 + (w * a) ** 2 / v, 1 / s**2 + (w / n) ** 2
    to_above, to_below = ((factor[:, None] * basis.T) for factor in (w * a / v / above, w / n**2 / below))
    log_variance = -above.log()
    with torch.no_grad():
        model.decoder[0].weight.copy_(basis * w)
        model.decoder[0].bias.copy_(offset)
        model.prior_below.weight.copy_(torch.diag(a))
        model.prior_below.bias.zero_()
        model.log_scale_of_prior.copy_(s.log())
        model.posterior_head.weight.copy_(torch.cat([to_above, torch.zeros_like(to_above)]))
        unbounded = log_variance / torch.sqrt(1 - (log_variance / MAX_LOG_VARIANCE) ** 2)
        model.posterior_head.bias.copy_(torch.cat([-to_above @ offset, unbounded]))
        model.posterior_below.weight.copy_(torch.cat([to_below, torch.diag(a / s**2 / below)], 1))
        model.posterior_below.bias.copy_(-to_below @ offset)
        model.log_scale_of_posterior.copy_(-0.5 * below.log())
    variance = w**2 * (a**2 + s**2)
    return model, MultivariateNormal(offset, (basis * variance) @ basis.T + n**2 * torch.eye(PIXELS))


@torch.no_grad()
def test_the_elbo_of_two_groups_is_the_evidence_at_the_true_posterior():
    model, evidence = exact_chain()
    x = evidence.sample((5,))
    images, expected = x.unflatten(1, SHAPE), evidence.log_prob(x)
    inference = model.infer(images, 20_000)
    terms = elbo_terms(images, inference)
    assert terms.rates.shape == (5, model.rate_parts)
    torch.testing.assert_close(terms.elbo, expected, atol=0.03, rtol=0)
    torch.testing.assert_close(log_weights(images, inference).float(), expected.expand(20_000, 5), atol=1e-3, rtol=0)
    estimate = importance_bound(model, images, num_samples=50, at_once=7)
    torch.testing.assert_close(estimate.log_likelihood.float(), expected, atol=1e-4, rtol=0)
    sampled = sum((q.log_prob(z) - p.log_prob(z)).mean(0) for q, p, z in inference.latents)
    torch.testing.assert_close(terms.rate, sampled, atol=0.05, rtol=0)


@torch.no_grad()
def test_a_wider_posterior_of_the_lower_group_costs_its_kl_and_no_bound_more():
    """Twice the standard deviation costs 3/2 - log 2 nats a latent, whatever lies above."""
    model, evidence = exact_chain()
    model.log_scale_of_posterior += math.log(2)
    x = evidence.sample((20,))
    images, expected = x.unflatten(1, SHAPE), evidence.log_prob(x)
    terms = elbo_terms(images, model.infer(images, 20_000))
    torch.testing.assert_close(terms.elbo, expected - LATENTS * (1.5 - math.log(2)), atol=0.15, rtol=0)
    bound = importance_bound(model, images, num_samples=5_000, at_once=700)
    torch.testing.assert_close(bound.log_likelihood.float(), expected, atol=0.1, rtol=0)


@torch.no_grad()
def test_two_groups_generate_what_the_evidence_says():
    model, evidence = exact_chain()
    drawn = model.generate(100_000).sample().flatten(1)
    torch.testing.assert_close(drawn.mean(0), evidence.mean, atol=0.05, rtol=0)
    torch.testing.assert_close(drawn.T.cov(), evidence.covariance_matrix, atol=0.1, rtol=0)


# ---- what a step takes of it ----------------------------------------------------------------------------------------


def test_a_penalty_is_in_the_loss_and_not_in_the_elbo():
    datamodule, model = built("model=conv_tiny", "model._target_=tests.variants.Committed", "data.image_size=8")
    x = examples(datamodule, "train", 16)
    torch.manual_seed(1)
    loss, rows = model.loss_and_rows(x, 1.0)
    torch.manual_seed(1)
    z = model.infer(x).latents[0].z
    total, distortion, rate = rows[:, :3].T
    torch.testing.assert_close(total - distortion - rate, 3 * z[0, :, 0] ** 2, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(loss, total.mean())


def test_a_step_takes_the_mean_over_its_samples_and_evaluation_takes_one():
    datamodule, model = built("model=conv_shallow", "model.num_samples=5", "model.kl_weight=3", "data.image_size=8")
    x = examples(datamodule, "train", 16)
    torch.manual_seed(1)
    inference = model.infer(x, 5)
    distortions = -inference.likelihood.log_prob(x)
    assert distortions.shape == (5, 16)
    torch.manual_seed(1)
    loss, rows = model.loss_and_rows(x, 3.0)
    torch.testing.assert_close(rows[:, 1], distortions.mean(0))
    torch.testing.assert_close(rows[:, 0], rows[:, 1] + 3 * rows[:, 2])  # elbo, distortion and rate have weight 1
    torch.testing.assert_close(loss, rows[:, 0].mean())
    torch.manual_seed(1)
    one = -model.infer(x).likelihood.log_prob(x)
    torch.manual_seed(1)
    rows = model.loss_and_rows(x, 3.0, moments=True)[1]
    torch.testing.assert_close(rows[:, 1], one[0])


@torch.no_grad()
def test_what_all_draws_share_is_computed_once_a_bound(monkeypatch):
    model, evidence = exact_chain()
    calls = []
    for name in ("encoder", "latent_prior"):
        getattr(model, name).register_forward_hook(lambda *_, name=name: calls.append(name))
    importance_bound(model, evidence.sample((2,)).unflatten(1, SHAPE), num_samples=50, at_once=7)
    assert sorted(calls) == ["encoder", "latent_prior"]


def test_a_weight_is_that_of_all_groups():
    """The importance bound of hand-made groups whose weights are known."""
    standard, wide = gaussian(torch.zeros(1, 1), torch.ones(1, 1)), gaussian(torch.zeros(1, 1), torch.full((1, 1), 2.0))
    z = torch.zeros(3, 1, 1)
    groups = (Latent(wide, standard, z), Latent(standard, wide, z), Latent(wide, standard, z))
    coin = Independent(torch.distributions.Bernoulli(probs=torch.full((3, 1, 1, 2, 2), 0.5)), 3)
    weights = log_weights(torch.ones(1, 1, 2, 2), Inference(groups, coin))
    assert weights.dtype == torch.float64
    torch.testing.assert_close(iwae_bound(weights).item(), -4 * math.log(2) + math.log(2), atol=1e-6, rtol=0)
