"""Posteriors beyond a Gaussian of independent latents: closed forms, brute force, and the Gaussian that each holds."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal, kl_divergence

from src.evaluation.importance import importance_bound
from src.models.flows import MADE, AutoregressiveStep, Flow, Step, SylvesterStep, orthonormal
from src.models.objectives import Latent, analytic_rates, elbo_terms, log_weights, rates
from src.models.posteriors import (
    EvenMixture,
    FullGaussianPosterior,
    GaussianPosterior,
    IAFPosterior,
    MixturePosterior,
    SylvesterPosterior,
)
from src.models.priors import StandardNormal
from src.models.vae import VAE
from src.system.errors import NotApplicable
from tests.linear_gaussian import LATENTS, PIXELS, SHAPE, LinearPosterior, correlated_pca, probabilistic_pca, unbounded
from tests.variants import FullStandardNormal

FEATURES = 5


def of_features(posterior: type, latent_dim: int, images: int = 3, size: float = 3.0, **options) -> Distribution:
    """Return the posteriors of random features under a head with weights ``size`` times as large as at the start."""
    torch.manual_seed(0)
    head = posterior(FEATURES, latent_dim, **options)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn_like(parameter) * size * parameter.shape[-1] ** -0.5)
    return head(torch.randn(images, FEATURES))


def gaussian(mean: Tensor, scale: Tensor) -> Independent:
    return Independent(Normal(mean, scale), 1)


# ---- the Gaussian of independent latents that each contains ---------------------------------------------------------


@torch.no_grad()
def contains(model: VAE, mean_field: GaussianPosterior) -> None:
    """Make the head of a model that of the mean-field Gaussian."""
    head = model.posterior_head
    if isinstance(head, FullGaussianPosterior):
        head.weight[: 2 * LATENTS], head.bias[: 2 * LATENTS] = mean_field.weight, mean_field.bias
    elif isinstance(head, MixturePosterior):
        head.weight.copy_(mean_field.weight.repeat(head.components, 1))
        head.bias.copy_(mean_field.bias.repeat(head.components))
    else:
        head.base.load_state_dict(mean_field.state_dict())
    if isinstance(head, IAFPosterior):
        for network in head.networks:
            network.last.weight.zero_()
            network.last.bias.copy_(torch.tensor([0.0, 200.0]).repeat_interleave(LATENTS))  # open gates
    if isinstance(head, SylvesterPosterior):
        head.flow.weight.zero_()
        head.flow.bias.zero_()


@torch.no_grad()
@pytest.mark.parametrize("posterior", [FullGaussianPosterior, IAFPosterior, SylvesterPosterior, MixturePosterior])
def test_at_zero_its_loss_is_that_of_the_mean_field_gaussian(posterior):
    exact, evidence = probabilistic_pca()
    model = VAE(SHAPE, LATENTS, lambda **_: exact.encoder, lambda **_: exact.decoder, exact.likelihood,
                posterior=posterior)  # fmt: skip
    contains(model, exact.posterior_head)
    x = evidence.sample((4,)).unflatten(1, SHAPE)
    inference = model.infer(x, 2_000)
    expected = evidence.log_prob(x.flatten(1))
    torch.testing.assert_close(elbo_terms(x, inference).elbo, expected, atol=0.1, rtol=0)
    torch.testing.assert_close(log_weights(x, inference).float(), expected.expand(2_000, 4), atol=1e-3, rtol=0)
    if posterior is not MixturePosterior:  # which draws its components too
        drawn = []
        for one in (model, exact):
            torch.manual_seed(1)
            drawn.append(one.infer(x, 5).latents[0].z)
        assert torch.equal(*drawn)


def test_a_full_covariance_starts_at_independent_latents():
    posterior = FullGaussianPosterior(FEATURES, 3)(torch.randn(4, FEATURES))
    assert torch.equal(posterior.scale_tril, torch.diag_embed(posterior.stddev))


# ---- a correlated true posterior ------------------------------------------------------------------------------------


@torch.no_grad()
def set_full(head: FullGaussianPosterior, exact: LinearPosterior) -> None:
    root = torch.linalg.cholesky(exact.covariance)
    head.weight[:LATENTS], head.bias[:LATENTS] = exact.weight, exact.bias
    head.weight[LATENTS:] = 0
    head.bias[LATENTS : 2 * LATENTS] = unbounded(2 * root.diagonal().log())
    head.bias[2 * LATENTS] = root[1, 0] / root[1, 1]


@torch.no_grad()
def set_flow(head: IAFPosterior, exact: LinearPosterior) -> None:
    """Write ``z_2 = a z_1 + rest`` as a step: its gate is half open, and m is ``2 a (relu(z_1) - relu(-z_1))``."""
    (mean_1, mean_2), ((v_1, v_12), (_, v_2)) = (exact.weight, exact.covariance)
    slope = v_12 / v_1
    head.base.weight.zero_()
    head.base.weight[:LATENTS] = torch.stack([mean_1, 2 * (mean_2 - slope * mean_1)])
    head.base.bias[:LATENTS] = torch.stack([exact.bias[0], 2 * (exact.bias[1] - slope * exact.bias[0])])
    head.base.bias[LATENTS:] = unbounded(torch.stack([v_1, 4 * (v_2 - slope * v_12)]).log())
    for parameter in (*head.context.parameters(), *head.networks.parameters()):
        parameter.zero_()
    (network,) = head.networks
    plus, minus = 2, 3  # units of degree 1, which see the first latent
    network.first.weight[plus, 0], network.first.weight[minus, 0] = 1, -1
    network.second.weight[plus, plus] = network.second.weight[minus, minus] = 1
    network.last.weight[1, plus], network.last.weight[1, minus] = 2 * slope, -2 * slope
    network.last.bias[2:] = torch.tensor([200.0, -2.0])  # logits of the gates, to which 2 is added


@torch.no_grad()
@pytest.mark.parametrize(
    ("posterior", "put", "prior"),
    [
        (FullGaussianPosterior, set_full, FullStandardNormal),
        (FullGaussianPosterior, set_full, StandardNormal),
        (lambda **sizes: IAFPosterior(**sizes, steps=1, hidden=4), set_flow, StandardNormal),
    ],
    ids=["full, torch's KL", "full", "iaf"],
)
def test_a_correlated_posterior_reaches_the_evidence(posterior, put, prior):
    model, evidence, exact = correlated_pca(posterior=posterior, prior=prior)
    put(model.posterior_head, exact)
    x = evidence.sample((5,))
    images, expected = x.unflatten(1, SHAPE), evidence.log_prob(x)
    inference = model.infer(images, 20_000)
    terms = elbo_terms(images, inference)
    assert terms.rates.shape == (5, 1)
    assert (model.rate_parts, model.has_codes) == (1, False)
    torch.testing.assert_close(terms.elbo, expected, atol=0.03, rtol=0)
    torch.testing.assert_close(log_weights(images, inference).float(), expected.expand(20_000, 5), atol=1e-3, rtol=0)
    mean = x @ exact.weight.T + exact.bias
    covariance = exact.covariance
    kl = 0.5 * (covariance.trace() + (mean**2).sum(1) - LATENTS - covariance.logdet())
    analytic = isinstance(model.posterior_head, FullGaussianPosterior)
    torch.testing.assert_close(terms.rate, kl, atol=1e-4 if analytic else 0.03, rtol=0)
    torch.testing.assert_close(inference.latents[0].z.mean(0), mean, atol=0.03, rtol=0)
    torch.testing.assert_close(inference.latents[0].z[:, 0].T.cov(), covariance, atol=0.01, rtol=0)
    estimate = importance_bound(model, images, num_samples=50, at_once=7)
    torch.testing.assert_close(estimate.log_likelihood.float(), expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_independent_latents_fall_short_by_the_correlation():
    """The best product of Gaussians has the diagonal of the precision, and lacks ``-log(1 - rho^2) / 2``."""
    model, evidence, exact = correlated_pca()
    head, covariance = model.posterior_head, exact.covariance
    head.weight.copy_(torch.cat([exact.weight, torch.zeros_like(exact.weight)]))
    head.bias.copy_(torch.cat([exact.bias, unbounded(-covariance.inverse().diagonal().log())]))
    x = evidence.sample((5,))
    rho = covariance[0, 1] / (covariance[0, 0] * covariance[1, 1]).sqrt()
    assert abs(rho) > 0.5
    elbo = elbo_terms(x.unflatten(1, SHAPE), model.infer(x.unflatten(1, SHAPE), 20_000)).elbo
    torch.testing.assert_close(elbo, evidence.log_prob(x) + 0.5 * torch.log(1 - rho**2), atol=0.03, rtol=0)


def test_the_kl_of_a_full_gaussian_is_torchs_own_for_two_full_gaussians():
    q = of_features(FullGaussianPosterior, 4)
    mean, scale = torch.randn(4), torch.rand(4) + 0.5
    found = analytic_rates(q, gaussian(mean, scale))
    full = kl_divergence(q, MultivariateNormal(mean, scale_tril=scale.diag()))
    torch.testing.assert_close(found, full[:, None], rtol=1e-5, atol=1e-5)
    assert analytic_rates(q, Independent(torch.distributions.Laplace(mean, scale), 1)) is None


# ---- flows ----------------------------------------------------------------------------------------------------------


def steps_of(latent_dim: int) -> dict[str, Step]:
    """Return steps of one image that bend codes strongly, in float64."""
    flow = of_features(IAFPosterior, latent_dim, images=1, hidden=20)
    found = dict(zip(("forwards", "backwards"), flow.steps, strict=True))
    for name, step in found.items():
        found[name] = AutoregressiveStep(step.network.double(), step.context.double())
    for rank in (3, latent_dim):
        raw = 3 * torch.randn(1, sum(SylvesterStep.sizes(latent_dim, rank)), dtype=torch.float64)
        found[f"sylvester of rank {rank}"] = SylvesterStep.of(raw, latent_dim, rank)
    return found


@pytest.mark.parametrize("name", ["forwards", "backwards", "sylvester of rank 3", "sylvester of rank 5"])
def test_the_determinant_of_a_step_is_that_of_its_jacobian_by_autograd(name):
    step, seen = steps_of(5)[name], torch.zeros(5, 5)
    z = torch.randn(6, 1, 5, dtype=torch.float64)
    moved, log_det = step(z)
    assert (log_det.abs() > 0.1).any()
    for code, found in zip(z, log_det[:, 0], strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda one: step(one[None, None])[0][0, 0], code[0])
        sign, expected = torch.linalg.slogdet(jacobian)
        assert sign == 1
        torch.testing.assert_close(found, expected)
        if "wards" in name:
            above = jacobian if name == "forwards" else jacobian.flip(0, 1)
            assert not above.triu(1).any()
            seen += above != 0
    assert (moved - z).abs().max() > 0.3
    if "wards" in name:  # every latent depends on all before it
        assert torch.equal(seen > 0, torch.ones(5, 5).tril() > 0)


def test_directions_are_orthonormal_wherever_the_network_throws_them():
    torch.manual_seed(0)
    for raw in (torch.zeros(7, 4), 1e4 * torch.randn(3, 7, 4), torch.ones(2, 7, 4), torch.randn(3, 4, 4)):
        columns = orthonormal(raw.requires_grad_())
        torch.testing.assert_close(columns.mT @ columns, torch.eye(4).expand(*raw.shape[:-2], 4, 4), atol=1e-5, rtol=0)
        columns.square().sum((-2, -1)).sum().backward()
        assert raw.grad.isfinite().all()


def test_the_inverse_of_an_autoregressive_flow_finds_the_density_that_its_draw_had():
    q = of_features(IAFPosterior, 40, steps=3, hidden=64, size=1.5)
    first = q.rsample((2,))
    at_its_draw = q.log_prob(first)
    second = q.rsample((4,))  # each has its own
    torch.testing.assert_close(q.log_prob(first), at_its_draw, atol=2e-3, rtol=0)
    torch.testing.assert_close(q.log_prob(second.clone()), q.log_prob(second), atol=2e-3, rtol=0)
    assert q.log_prob(second).shape == (4, 3)
    back = second
    for step in reversed(q.steps):
        back, _ = step.inverse(back)
    torch.testing.assert_close(step_through(q, back), second, atol=1e-3, rtol=0)


def test_codes_of_others_have_a_density_however_far_from_its_draws():
    """A strong flow expands them beyond float32, code after code."""
    q = of_features(IAFPosterior, 40, steps=2, hidden=64, size=2.0)
    z = torch.randn(100, 3, 40)
    log_density = q.log_prob(z)
    assert not log_density.isnan().any()
    assert (log_density < -1e4).any()


def step_through(q: Flow, z: Tensor) -> Tensor:
    for step in q.steps:
        z, _ = step(z)
    return z


def test_a_code_that_was_drawn_without_gradients_has_a_density_with_them():
    q = of_features(IAFPosterior, 3)
    z = q.sample((2,))
    assert not z.requires_grad
    assert q.log_prob(z).requires_grad
    with torch.no_grad():
        assert not q.log_prob(z).requires_grad


def test_a_sylvester_flow_says_that_it_knows_no_other_code():
    q = of_features(SylvesterPosterior, 4, rank=2)
    z = q.rsample((5,))
    assert q.log_prob(z).shape == (5, 3)
    with pytest.raises(NotApplicable, match="no inverse in closed form"):
        q.log_prob(z.clone())


def test_the_prior_is_taken_where_the_flow_ends():
    """Halfway from N(0, 1) to 10: N(5, 1/4), whose KL from N(0, 1) is (25 + 1/4 - 1) / 2 + log 2; there it begins."""
    network = MADE(1, 4)
    with torch.no_grad():
        network.last.weight.zero_()
        network.last.bias.copy_(torch.tensor([10.0, -2.0]))
    standard = gaussian(torch.zeros(1, 1), torch.ones(1, 1))
    q = Flow(standard, [AutoregressiveStep(network, torch.zeros(1, 4))])
    prior = StandardNormal(1)()
    z = q.sample((100_000,))
    with torch.no_grad():
        rate = rates(Latent(q, prior, z))
    assert rate.shape == (1, 1)
    assert rate.item() == pytest.approx(0.5 * (25 + 0.25 - 1) + math.log(2), abs=0.03)


# ---- densities ------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(
    ("posterior", "options"), [(FullGaussianPosterior, {}), (IAFPosterior, {"hidden": 16}), (MixturePosterior, {})]
)
def test_a_density_in_two_dimensions_sums_to_1(posterior, options):
    q = of_features(posterior, 2, images=1, size=1.0, **options)
    z = q.sample((5_000,))[:, 0]
    low, high = z.amin(0) - 3, z.amax(0) + 3
    axes = [torch.linspace(a, b, 300) for a, b in zip(low, high, strict=True)]
    grid = torch.cartesian_prod(*axes)
    cell = (high - low).prod() / 299**2
    mass = q.log_prob(grid[:, None])[:, 0].exp() * cell
    assert mass.sum().item() == pytest.approx(1, abs=2e-3)
    mean = (mass[:, None] * grid).sum(0)
    assert ((mean - z.mean(0)).abs() < 4 * z.std(0) / 5_000**0.5 + 0.01).all()


@torch.no_grad()
def test_the_weights_of_a_sylvester_flow_integrate_a_density_to_1():
    """It has a density at its own draws alone: the mean of p(z) / q(z) over them is the integral of p."""
    q = of_features(SylvesterPosterior, 2, size=1.0, rank=2)
    z = q.sample((100_000,))
    narrow = gaussian(z.mean(0), 0.5 * z.std(0))
    ratio = (narrow.log_prob(z) - q.log_prob(z)).exp()
    assert ((ratio.mean(0) - 1).abs() < 4 * ratio.std(0) / 100_000**0.5).all()
    assert (ratio.std(0) > 0.3).all()


# ---- mixture --------------------------------------------------------------------------------------------------------


def components(images: int = 2, parts: int = 3, latents: int = 1) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return 2 * torch.randn(images, parts, latents), torch.rand(images, parts, latents) + 0.3


def test_the_density_of_a_mixture_is_the_mean_of_its_components():
    mean, scale = components(latents=2)
    q = EvenMixture(gaussian(mean, scale))
    z = q.sample((7,))
    by_hand = torch.stack(
        [
            torch.exp(-0.5 * (((z - mean[:, part]) / scale[:, part]) ** 2).sum(-1))
            / (2 * math.pi * scale[:, part].prod(-1))
            for part in range(3)
        ]
    ).mean(0)
    torch.testing.assert_close(q.log_prob(z), by_hand.log())


def test_samples_take_every_component_equally_often():
    far = torch.tensor([-100.0, 0.0, 100.0])[:, None]
    q = EvenMixture(gaussian(far.expand(4_000, 3, 1), torch.ones(4_000, 3, 1)))
    assert q.sample().shape == (4_000, 1)
    assert q.sample((2, 3)).shape == (2, 3, 4_000, 1)
    z = q.sample((6,))[..., 0]
    taken = (z / 100).round()
    assert torch.equal(taken[:3].sort(0).values, far.div(100).expand(3, 4_000))  # each once in three samples
    for sample in taken:  # and each sample is of the mixture
        assert (sample.unique(return_counts=True)[1] / 4_000 - 1 / 3).abs().max() < 0.03


def test_the_gradient_of_a_mixtures_rate_is_that_of_the_integral():
    """Through the chosen component and the density of the whole, against quadrature in float64."""
    parameters = [p.double().requires_grad_() for p in components()]
    prior = gaussian(torch.tensor([0.5]), torch.tensor([1.5]))
    grid = torch.linspace(-25, 25, 20_001, dtype=torch.float64)
    log_q = EvenMixture(gaussian(*parameters)).log_prob(grid[:, None, None].expand(-1, 2, 1))
    log_p = prior.log_prob(grid[:, None])
    exact = torch.trapezoid(log_q.exp() * (log_q - log_p[:, None]), grid, dim=0)
    expected = torch.autograd.grad(exact.sum(), parameters)
    estimates = []
    for _ in range(40):
        q = EvenMixture(gaussian(*parameters))
        rate = rates(Latent(q, prior, q.rsample((1_000,))))
        assert rate.shape == (2, 1)
        estimates.append((rate.detach().flatten(), *torch.autograd.grad(rate.sum(), parameters)))
    for found, value in zip(map(torch.stack, zip(*estimates, strict=True)), (exact.detach(), *expected), strict=True):
        assert ((found.mean(0) - value).abs() < 4 * found.std(0) / 40**0.5 + 1e-6).all()


# ---- precision ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("posterior", [FullGaussianPosterior, IAFPosterior, SylvesterPosterior, MixturePosterior])
def test_codes_are_drawn_in_float32_under_autocast(posterior):
    model, evidence, _ = correlated_pca(posterior=posterior)
    x = evidence.sample((3,)).unflatten(1, SHAPE)
    drawn = []
    for enabled in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            latent = model.infer(x, 4).latents[0]
        drawn.append((latent.z, latent.posterior.log_prob(latent.z)))
    for ours, theirs in zip(*drawn, strict=True):
        assert theirs.dtype == torch.float32
        assert torch.equal(ours, theirs)
    assert x.shape[1:].numel() == PIXELS
