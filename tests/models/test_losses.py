"""Every loss is what its formula says: limits, closed forms, and gradients beside those of brute force."""

from functools import partial

import pytest
import torch
from hydra.errors import InstantiationException
from torch import Tensor
from torch.distributions import Independent, Normal
from torch.nn.utils import parameters_to_vector

from src.models.autoencoder import FittedGaussian, PointPosterior
from src.models.importance_weighted import ImportanceWeighted
from src.models.likelihoods import GaussianLikelihood
from src.models.losses import Capacity, Elbo, FreeBits, Reconstruction
from src.models.objectives import ElboTerms, elbo_terms, iwae_bound, log_weights, rising
from src.models.priors import MixturePrior
from src.models.vae import VAE
from src.system.explain import explain
from tests.helpers import built, examples, fit
from tests.linear_gaussian import LATENTS, NOISE, PIXELS, SHAPE, Flat, LinearDecoder, probabilistic_pca

OPTIONS = {"image_shape": SHAPE, "latent_dim": LATENTS, "encoder": Flat, "decoder": LinearDecoder}


def linear(num_samples: int, loss=None, **options) -> VAE:
    """Return a linear VAE that is far from its optimum."""
    torch.manual_seed(0)
    return VAE(**OPTIONS, likelihood=GaussianLikelihood(NOISE), num_samples=num_samples, loss=loss, **options)


def images(count: int) -> Tensor:
    torch.manual_seed(3)
    return torch.randn(count, *SHAPE)


def gradients(model: VAE, x: Tensor, value=None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss of each image, and the gradients of its mean in the encoder and in the rest; same noise."""
    model.zero_grad()
    torch.manual_seed(1)
    inference = model.infer(x, model.num_samples)
    terms = elbo_terms(x, inference)
    loss = model.loss(model, x, inference, terms, *model.schedule) if value is None else value(x, inference, terms)
    loss.mean().backward()
    generative = [*model.decoder.parameters(), *model.latent_prior.parameters()]
    encoder, decoder = (
        parameters_to_vector([p.grad for p in part]) for part in (model.posterior_head.parameters(), generative)
    )
    return loss.detach().double(), encoder, decoder


def close(a: tuple, b: tuple) -> None:
    for one, other in zip(a, b, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


# ---- importance weights ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "value"),
    [
        (ImportanceWeighted(), lambda x, i, terms: -iwae_bound(log_weights(x, i))),
        (ImportanceWeighted(bounds=6), lambda x, i, terms: -log_weights(x, i).mean(0)),  # the elbo, its rate sampled
        (
            ImportanceWeighted(bounds=2),
            lambda x, i, terms: -(iwae_bound(log_weights(x, i)[:3]) + iwae_bound(log_weights(x, i)[3:])) / 2,
        ),
        (ImportanceWeighted(elbo_share=1.0), lambda x, i, terms: -terms.elbo),
        (
            ImportanceWeighted(elbo_share=0.25),
            lambda x, i, terms: -0.25 * terms.elbo - 0.75 * iwae_bound(log_weights(x, i)),
        ),
    ],
    ids=["iwae", "single samples", "miwae", "elbo", "ciwae"],
)
def test_the_bound_and_its_gradient_are_those_of_the_formula(loss, value):
    x = images(8)
    close(gradients(linear(6, loss), x), gradients(linear(6), x, value))


def test_one_sample_is_the_elbo_with_a_sampled_rate():
    x = images(8)
    ours = gradients(linear(1, ImportanceWeighted()), x)
    close(ours, gradients(linear(1), x, lambda x, i, terms: -log_weights(x, i).mean(0)))


@torch.no_grad()
def test_the_bound_rises_from_the_elbo_to_the_evidence():
    model, evidence = probabilistic_pca(num_samples=2_000, loss=ImportanceWeighted())
    model.posterior_head.weight[:LATENTS] *= 0.8  # no longer the true posterior
    torch.manual_seed(0)
    x = evidence.sample((20,))
    bounds = []
    for bounds_of in (2_000, 400, 20, 1):
        model.loss.bounds = bounds_of
        bounds.append(-gradients_free(model, x.unflatten(1, SHAPE)).mean().item())
    assert bounds[0] < bounds[1] < bounds[2] < bounds[3]
    assert bounds[3] == pytest.approx(evidence.log_prob(x).mean().item(), abs=0.03)
    assert bounds[0] < bounds[3] - 0.5


def gradients_free(model: VAE, x: Tensor) -> Tensor:
    inference = model.infer(x, model.num_samples)
    return model.loss(model, x, inference, elbo_terms(x, inference), *model.schedule)


@pytest.mark.parametrize("options", [{}, {"bounds": 2}, {"elbo_share": 0.3}], ids=["iwae", "miwae", "ciwae"])
@pytest.mark.parametrize("gradient", ["stl", "dreg"])
def test_no_sample_moves_the_true_posterior(gradient, options):
    """At the true posterior all weights are equal to p(x), so what is left of the gradient is the score's noise."""
    model, evidence = probabilistic_pca(num_samples=6, loss=ImportanceWeighted(**options, gradient=gradient))
    x = evidence.sample((1,)).unflatten(1, SHAPE)
    _, ours, _ = gradients(model, x)
    model.loss.gradient = "plain"
    _, plain, _ = gradients(model, x)
    assert plain.abs().max() > 0.1
    assert ours.abs().max() < 1e-4


@pytest.mark.parametrize("options", [{}, {"bounds": 2}, {"elbo_share": 0.3}], ids=["iwae", "miwae", "ciwae"])
def test_the_doubly_reparameterized_gradient_has_the_plain_ones_mean_and_less_noise(options):
    """Values and decoder gradients are equal draw by draw; encoder gradients are in the mean over many draws."""
    model, _ = probabilistic_pca(num_samples=6, loss=ImportanceWeighted(**options, gradient="dreg"))
    with torch.no_grad():
        model.posterior_head.weight *= 0.98  # near the true posterior, where the plain gradient is mostly noise
    x = images(1).expand(4_000, *SHAPE)
    draws = {}
    for kind in ("plain", "dreg"):
        model.loss.gradient = kind
        value, encoder, decoder = gradients(model, x)
        parts = []
        for seed in range(40):
            torch.manual_seed(seed)
            inference = model.infer(x[:100], 6)
            loss = model.loss(model, x[:100], inference, elbo_terms(x[:100], inference), *model.schedule)
            parts.append(torch.autograd.grad(loss.mean(), model.posterior_head.bias)[0])
        draws[kind] = value, decoder, encoder, torch.stack(parts)
    (value, decoder, _, parts), (plain_value, plain_decoder, _, plain_parts) = (
        draws["dreg"],
        draws["plain"],
    )
    torch.testing.assert_close(value, plain_value)
    torch.testing.assert_close(decoder, plain_decoder, rtol=1e-3, atol=1e-3 * float(plain_decoder.abs().max()))
    error = (parts.var(0) + plain_parts.var(0)).sqrt() / len(parts) ** 0.5
    assert ((parts.mean(0) - plain_parts.mean(0)).abs() < 4 * error).all()
    assert (parts.std(0) < plain_parts.std(0)).all()


def test_each_sample_of_the_doubly_reparameterized_gradient_counts_by_its_squared_weight():
    """It is ``sum_k w_k^2 (d log w_k / dz_k) (dz_k / d phi)`` with normalised weights w (Tucker et al. 2019, eq. 8)."""
    x = images(8)
    model = linear(6, ImportanceWeighted(gradient="dreg"))
    _, ours, _ = gradients(model, x)
    model.zero_grad()
    torch.manual_seed(1)
    (latent,), likelihood, _ = model.infer(x, 6)
    normal = latent.posterior.base_dist
    fixed = Independent(Normal(normal.loc.detach(), normal.scale.detach()), 1)
    weights = likelihood.log_prob(x) + latent.prior.log_prob(latent.z) - fixed.log_prob(latent.z)
    (slopes,) = torch.autograd.grad(weights.sum(), latent.z, retain_graph=True)
    (weights.softmax(0).detach() ** 2 * (slopes * latent.z).sum(-1)).sum(0).mean().neg().backward()
    brute = parameters_to_vector([p.grad for p in model.posterior_head.parameters()])
    torch.testing.assert_close(ours, brute, rtol=1e-4, atol=1e-4 * float(brute.abs().max()))


@pytest.mark.parametrize("gradient", ["plain", "stl", "dreg"])
@pytest.mark.parametrize("share", [0.0, 0.3])
def test_piwae_trains_the_encoder_by_several_bounds_and_decoder_and_prior_by_one(gradient, share):
    x, options = images(8), {"prior": partial(MixturePrior, components=3)}
    both = ImportanceWeighted(3, 1, share, gradient)
    value, encoder, decoder = gradients(linear(6, both, **options), x)
    several, one = ImportanceWeighted(3, None, share, gradient), ImportanceWeighted(1, None, share)
    _, encoder_of_several, decoder_of_several = gradients(linear(6, several, **options), x)
    value_of_one, _, decoder_of_one = gradients(linear(6, one, **options), x)
    close((value, encoder, decoder), (value_of_one, encoder_of_several, decoder_of_one))
    assert (decoder_of_several - decoder_of_one).abs().max() > 0.01


def test_as_many_bounds_for_the_decoder_are_a_miwae():
    assert ImportanceWeighted(bounds=3, decoder_bounds=3).bound == "miwae"


@pytest.mark.parametrize("gradient", ["plain", "stl", "dreg"])
@pytest.mark.parametrize("options", [{"bounds": 3, "decoder_bounds": 1}, {"elbo_share": 0.2}])
def test_what_is_logged_is_the_bound_whichever_gradient_trains(gradient, options):
    model = linear(6, ImportanceWeighted(**options, gradient=gradient))
    x = images(8)
    torch.manual_seed(1)
    loss, rows = model.train().loss_and_rows(x, *model.schedule)
    torch.manual_seed(1)
    with torch.no_grad():
        evaluated, expected = model.eval().loss_and_rows(x, *model.schedule, moments=True)
    torch.testing.assert_close(loss, evaluated)
    torch.testing.assert_close(rows[:, :3], expected[:, :3])
    torch.testing.assert_close(rows[:, 1] + rows[:, 2], -elbo_of(model, x))  # the elbo is that of single samples


def elbo_of(model: VAE, x: Tensor) -> Tensor:
    torch.manual_seed(1)
    return elbo_terms(x, model.infer(x, model.num_samples)).elbo.detach()


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (("loss=iwae", "model.kl_weight=2"), "leave model.kl_weight=1"),
        (("loss=ciwae", "model.kl_warmup_steps=10"), "model.kl_warmup_steps=0"),
        (("loss=miwae", "model.num_samples=9"), "model.loss.bounds=8 must divide model.num_samples=9"),
        (("loss=piwae", "model.loss.decoder_bounds=3"), "model.loss.decoder_bounds=3 must divide model.num_samples=64"),
        (("loss=reconstruction", "model.kl_weight=0.5"), "leave model.kl_weight=1"),
        (("loss=reconstruction", "model.num_samples=2"), "all samples of a point are one: leave 1"),
        (("loss=reconstruction", "prior@model.prior=mixture"), "leave prior@model.prior=fitted_gaussian"),
        (("prior@model.prior=fitted_gaussian",), "under loss=reconstruction alone"),
        (("posterior@model.posterior=point",), "choose loss=reconstruction"),
        *(
            (
                ("loss=iwae", f"model.loss.gradient={gradient}", *typed),
                "needs a Gaussian posterior: choose model.loss.gr",
            )
            for gradient, typed in (
                ("dreg", ["posterior@model.posterior=mixture"]),  # its samples depend on each other
                ("stl", ["posterior@model.posterior=iaf"]),
                ("dreg", ["model._target_=tests.variants.Chain"]),
            )
        ),
        *(
            (("prior@model.prior=vamp", f"posterior@model.posterior={flow}"), "choose posterior@model.posterior=gauss")
            for flow in ("sylvester", "iaf")
        ),
        (("loss=reconstruction", "posterior@model.posterior=iaf"), "leave posterior@model.posterior=point"),
        (("loss=reconstruction", "prior@model.prior=standard_normal"), "leave prior@model.prior=fitted_gaussian"),
        (("model.kl_cycle_steps=50",), "model.kl_warmup_steps of 1 to 50 steps, not 0"),
        (("model.kl_cycle_steps=50", "model.kl_warmup_steps=51"), "model.kl_warmup_steps of 1 to 50 steps, not 51"),
        (("prior@model.prior=exemplar", "posterior@model.posterior=iaf"), "this one has none: choose"),
    ],
)
def test_a_loss_that_a_setting_makes_meaningless_is_refused(typed, message):
    with pytest.raises(InstantiationException) as caught:
        built("model=conv_tiny", "data.image_size=8", *typed)
    assert message in explain(caught.value)


def test_the_capacity_of_a_split_is_compared_with_its_rate_whatever_the_batches():
    datamodule, model = built("model=conv_tiny", "data.image_size=8", "loss=capacity", "data.batch_size=16")
    trainer = fit(model, datamodule, limit_train_batches=3)
    of = {name.removeprefix("val/"): float(value) for name, value in trainer.callback_metrics.items()}
    assert of["loss"] == pytest.approx(of["distortion"] + 100 * abs(of["rate"] - 25), rel=1e-6)


# ---- how the rate enters --------------------------------------------------------------------------------------------


def test_the_weight_rises_again_each_cycle():
    assert [rising(step, 4, 8) for step in (0, 2, 4, 7, 8, 10, 12)] == [0, 0.5, 1, 1, 0, 0.5, 1]
    assert [rising(step, 0, 8) for step in (0, 9)] == [1, 1]
    model = linear(1, kl_weight=2.0, kl_warmup_steps=4, kl_cycle_steps=8)
    assert model.eval().current_kl_weight == 2


def test_free_bits():
    terms = ElboTerms(torch.tensor([10.0, 20.0]), torch.tensor([1.2, 2.0]), torch.tensor([[1.0, 0.2], [1.8, 0.2]]))
    rates = terms.rates.requires_grad_()
    loss = FreeBits(0.5)(None, None, None, terms, 3.0)
    torch.testing.assert_close(loss, torch.tensor([10.0, 20.0]) + 3 * (1.4 + 0.5))  # means 1.4 and 0.2
    loss.mean().backward()
    torch.testing.assert_close(rates.grad, torch.tensor([[1.5, 0.0], [1.5, 0.0]]))  # nothing presses the second latent
    for free in (FreeBits(0.0), FreeBits(0.5).eval()):
        assert torch.equal(free(None, None, None, terms, 3.0), Elbo()(None, None, None, terms, 3.0))


def test_capacity():
    terms = ElboTerms(torch.tensor([10.0, 20.0]), torch.tensor([1.0, 2.0]), torch.zeros(2, 0))
    loss = Capacity(6.0, steps=4)
    assert [loss.schedule(step) for step in (0, 1, 4, 9)] == [(0.0,), (1.5,), (6.0,), (6.0,)]
    torch.testing.assert_close(loss(None, None, None, terms, 3.0, 1.0), torch.tensor([11.5, 21.5]))  # |1.5 - 1|
    torch.testing.assert_close(loss(None, None, None, terms, 3.0, 2.5), torch.tensor([13.0, 23.0]))
    assert loss.eval().schedule(0) == (6.0,)
    mean = Elbo()(None, None, None, terms, 3.0).mean()
    torch.testing.assert_close(loss(None, None, None, terms, 3.0, 0.0).mean(), mean)  # the beta-VAE


# ---- no density at all ----------------------------------------------------------------------------------------------


def test_an_autoencoder_has_a_distortion_and_nothing_else():
    datamodule, model = built("model=conv_tiny", "data.image_size=8", "loss=reconstruction")
    x = examples(datamodule, "train", 16)
    assert (model.has_elbo, model.has_codes, model.rate_parts) == (False, True, 0)
    _loss, rows = model.loss_and_rows(x, *model.schedule)
    code = model.embed(x).mean
    torch.testing.assert_close(rows[:, 0], -model.decode(code).log_prob(x))
    assert torch.equal(rows[:, 0], rows[:, 1])
    assert torch.equal(rows[:, 2], torch.zeros(16))
    assert rows.shape == (16, 3)
    rows = model.eval().loss_and_rows(x, *model.schedule, moments=True)[1]
    torch.testing.assert_close(rows[:, 3:], torch.cat([model.embed(x).mean, model.embed(x).mean ** 2], 1))


@torch.no_grad()
def test_the_gaussian_that_follows_codes_has_their_moments():
    torch.manual_seed(0)
    fitted = FittedGaussian(3)
    assert torch.equal(fitted().mean, torch.zeros(3))
    codes = torch.randn(600, 3) @ torch.randn(3, 3) + torch.tensor([5.0, 0.0, -2.0])
    for batch in codes.split(20):
        fitted.follow(batch)
    torch.testing.assert_close(fitted().mean, codes.mean(0))
    torch.testing.assert_close(fitted().covariance_matrix, codes.T.cov(correction=0), atol=1e-3, rtol=1e-3)
    for _ in range(1000):
        fitted.follow(codes[:20])  # where codes settle late, the late ones count
    torch.testing.assert_close(fitted().mean, codes[:20].mean(0), atol=1e-2, rtol=1e-3)
    torch.testing.assert_close(fitted().covariance_matrix, codes[:20].T.cov(correction=0), atol=0.05, rtol=0.02)
    flat = FittedGaussian(4)
    flat.follow(torch.zeros(5, 4))  # codes in a point have a density still
    assert flat().sample((7,)).isfinite().all()


@pytest.mark.parametrize(("latents", "size"), [(40, 12.0), (40, 124.0), (200, 1e4)])
@torch.no_grad()
def test_the_gaussian_of_codes_in_a_plane_draws_codes_in_it(latents, size):
    """Rounding gives their covariance negative eigenvalues, of which float32 would make draws 100 times too large."""
    torch.manual_seed(0)
    plane = torch.linalg.qr(torch.randn(latents, 2))[0]
    fitted = FittedGaussian(latents)
    for _ in range(20):
        fitted.follow(size * torch.randn(100, 2) @ plane.T)
    draws = fitted().sample((4_000,))
    inside = draws @ plane
    torch.testing.assert_close(inside.std(0), torch.full((2,), size), rtol=0.1, atol=0)
    assert (draws - inside @ plane.T).std(0).max() < 0.01 * size


def test_a_linear_autoencoder_finds_the_principal_components():
    """Its optimum reconstructs as many principal components as it has latents (Baldi & Hornik 1989)."""
    torch.manual_seed(0)
    model = VAE(
        **OPTIONS,
        likelihood=GaussianLikelihood(1.0),
        loss=Reconstruction(),
        posterior=PointPosterior,
        prior=FittedGaussian,
    )
    x = (torch.randn(200, LATENTS + 2) @ torch.randn(LATENTS + 2, PIXELS)).unflatten(1, SHAPE)
    parameters = [*model.posterior_head.parameters(), *model.decoder.parameters()]
    optimizer = torch.optim.LBFGS(parameters, max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss, _ = model.loss_and_rows(x, *model.schedule)
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        error = ((model.decode(model.embed(x).mean).mean - x) ** 2).sum()
    flat = x.flatten(1)
    values = torch.linalg.svdvals(flat - flat.mean(0))
    torch.testing.assert_close(error, (values[LATENTS:] ** 2).sum(), rtol=1e-2, atol=0)
