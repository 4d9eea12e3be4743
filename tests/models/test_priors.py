"""Learned priors: limit cases with known rates, densities that sum to 1, flows that invert, images that leave out."""

import copy
import functools
import math
import pickle

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

from src.data.training_images import TrainingImages
from src.models.likelihoods import GaussianLikelihood
from src.models.objectives import Latent, elbo_terms, log_weights, rates
from src.models.priors import ExemplarPrior, GaussianMixture, MixturePrior, StandardNormal, VampPrior, bounded_scale
from src.models.real_nvp import RealNVPPrior
from src.models.vae import VAE
from src.runs import build
from src.system.errors import UserError
from src.training.resume import ReproducibleNoise
from tests.helpers import built, composed, data, examples, fit
from tests.linear_gaussian import SHAPE, Flat, LinearDecoder

PIXELS = math.prod(SHAPE)
SMALL = ("model=mlp", "model.encoder.widths=[16]", "model.latent_dim=3", "data.image_size=8")
CHOICES = {
    "mixture": ("model.prior.components=7",),
    "vamp": ("model.prior.components=7",),
    "exemplar": ("model.prior.components=7",),
    "real_nvp": ("model.prior.flows=3", "model.prior.hidden=8"),
}


@functools.cache
def shared_data(*overrides: str):
    return data(*SMALL, *overrides)


def small(prior: str, *overrides: str, seed: int = 0):
    """Return a data module and a new small model with a small prior of that kind."""
    torch.manual_seed(seed)
    datamodule = shared_data(*(override for override in overrides if override.startswith("data.")))
    cfg = composed(*SMALL, f"prior@model.prior={prior}", *CHOICES.get(prior, ()), *overrides)
    return datamodule, build.build_model(cfg, datamodule)


class Some(TrainingImages):
    """Images that are given, ``[N, C, H, W]``."""

    def __init__(self, images: Tensor) -> None:
        super().__init__(tuple(images.shape[1:]))
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, positions: Tensor) -> Tensor:
        return self.images[positions]


def linear_encoder(latents: int):
    """Return a function from images to Gaussians whose means and scales are linear in the pixels."""
    torch.manual_seed(3)
    to_mean, to_scale = nn.Linear(PIXELS, latents), nn.Linear(PIXELS, latents)
    nn.init.normal_(to_mean.weight, std=2.0)

    def encode(x: Tensor) -> Independent:
        return Independent(Normal(to_mean(x.flatten(1)), to_scale(x.flatten(1)).exp() * 0.5), 1)

    return encode


# ---- mixtures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [None, "one", "each"])
def test_matrix_products_give_the_density_of_torchs_mixture(weighted):
    torch.manual_seed(0)
    mean, scale = 3 * torch.randn(50, 4, dtype=torch.float64), torch.rand(50, 4, dtype=torch.float64) + 0.05
    z = 3 * torch.randn(2, 6, 4, dtype=torch.float64)
    shape = {None: (50,), "one": (50,), "each": (6, 50)}[weighted]
    log_weights = (torch.randn(shape, dtype=torch.float64) * (weighted is not None)).log_softmax(-1)
    ours = GaussianMixture(mean, scale, None if weighted is None else log_weights)
    torchs = MixtureSameFamily(Categorical(logits=log_weights), Independent(Normal(mean, scale), 1).expand(shape))
    torch.testing.assert_close(ours.log_prob(z), torchs.log_prob(z), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.mean, torchs.mean)
    torch.testing.assert_close(ours.variance, torchs.variance)
    # Codes of single precision lose nothing but their own rounding.
    narrow = GaussianMixture(mean.float(), scale.float(), None if weighted is None else log_weights.float())
    exact = GaussianMixture(mean.float().double(), scale.float().double(), ours.log_weights)
    torch.testing.assert_close(
        narrow.log_prob(z.float()).double(), exact.log_prob(z.float().double()), rtol=2e-7, atol=1e-6
    )
    drawn = ours.sample((20_000,))
    assert drawn.shape == (20_000, *ours.batch_shape, 4)
    torch.testing.assert_close(drawn.mean(0), ours.mean, atol=0.15, rtol=0)
    torch.testing.assert_close(drawn.var(0), ours.variance, rtol=0.06, atol=0)


def test_a_mixture_begins_near_the_standard_normal():
    torch.manual_seed(0)
    prior = MixturePrior(40)()
    assert prior.mean.norm() < 0.1
    torch.testing.assert_close(prior.variance, torch.ones(40), atol=0.02, rtol=0)
    z = torch.randn(2_000, 40)
    assert (StandardNormal(40)().log_prob(z) - prior.log_prob(z)).mean() < 0.3


# ---- VampPrior ------------------------------------------------------------------------------------------------------


def test_the_rate_is_0_where_the_encoder_ignores_its_image():
    encode = linear_encoder(3)
    images = Some(torch.rand(1, *SHAPE))
    prior = VampPrior(3, images, components=1)
    constant = encode(torch.zeros(1, *SHAPE))

    def ignores(x: Tensor) -> Independent:
        return constant.expand((len(x),))

    x = torch.rand(5, *SHAPE)
    z = ignores(x).sample((10,))
    torch.testing.assert_close(rates(Latent(ignores(x), prior(ignores), z)), torch.zeros(5, 1), atol=1e-6, rtol=0)


@torch.no_grad()
def test_with_all_images_as_pseudo_inputs_the_rate_is_the_mutual_information():
    """q(z) is then the prior, so the mean rate is I(x; z), here of a quadrature, and at most log N."""
    torch.manual_seed(0)
    x = 0.1 + 0.8 * torch.rand(20, *SHAPE)
    encode = linear_encoder(1)
    prior = VampPrior(1, Some(x), components=20)
    torch.testing.assert_close(prior.inputs.sum(0), x.sum(0))  # each image once
    posterior = encode(x)
    z = posterior.sample((20_000,))
    each = posterior.log_prob(z) - prior(encode).log_prob(z)
    assert each.max() <= math.log(20) + 1e-5
    grid = torch.linspace(-30, 30, 20_001, dtype=torch.float64)[:, None, None]
    q = Independent(Normal(posterior.mean.double(), posterior.stddev.double()), 1).log_prob(grid)
    information = torch.trapezoid(q.exp() * (q - q.logsumexp(1, keepdim=True) + math.log(20)), grid[:, 0, 0], dim=0)
    assert 0.5 < information.mean() < math.log(20)
    error = each.mean(1).std() / 20_000**0.5
    assert abs(rates(Latent(posterior, prior(encode), z)).mean() - information.mean()) < 3 * error


@pytest.mark.parametrize("start", ["images", "mean"])
def test_every_pixel_of_a_pseudo_input_gets_a_gradient_from_the_first_step(start):
    """Of black and white images too: their pixels begin at a distance from the ends."""
    datamodule, model = small("vamp", "data.binarize=threshold", f"model.prior.start={start}")
    assert 0 < model.latent_prior.inputs.min() < model.latent_prior.inputs.max() < 1
    model.loss_and_rows(examples(datamodule, "train", 16), 1.0)[0].backward()
    assert (model.latent_prior.values.grad != 0).all()


def test_pseudo_inputs_begin_at_training_images():
    datamodule, model = small("vamp")
    images = datamodule.train_images[torch.arange(len(datamodule.train_images))].clamp(0.05, 0.95)
    distance = (model.latent_prior.inputs.flatten(1)[:, None] - images.flatten(1)).abs().amax(-1)
    assert distance.min(1).values.max() < 1e-5
    assert len(distance.argmin(1).unique()) == 7
    assert len(VampPrior(2, Some(torch.rand(3, *SHAPE)), components=8).values) == 8  # more than there are images


def test_a_vamp_prior_of_posteriors_of_any_kind():
    datamodule, model = small("vamp", "posterior@model.posterior=full_gaussian")
    prior = model.prior()
    assert isinstance(prior.component_distribution, MultivariateNormal)
    loss, _ = model.loss_and_rows(examples(datamodule, "train", 4), 1.0)
    loss.backward()
    assert (model.latent_prior.values.grad != 0).any()


@pytest.mark.parametrize("prior", ["vamp", "exemplar"])
@pytest.mark.parametrize("network", ["conv_tiny", "conv_dropout"])
def test_pseudo_inputs_move_no_statistics_and_draw_no_dropout(prior, network):
    """Batch norm averages the images of the batch alone, and the noise of the step is that of a plain one."""
    overrides = (f"model={network}", "data.image_size=32", "model.latent_dim=3")
    datamodule, plain = built(*overrides)
    _, model = built(*overrides, f"prior@model.prior={prior}", "model.prior.components=4")
    x = examples(datamodule, "train", 8)
    for net in (plain, model):
        torch.manual_seed(1)
        if net is plain and prior == "exemplar":
            torch.randperm(len(datamodule.train_images))  # exemplars come out of the same stream, before the noise
        net.train().loss_and_rows(x, 1.0)
    torch.manual_seed(1)
    posterior = model.encode_steadily(x[:2])
    state = torch.get_rng_state()
    torch.testing.assert_close(model.encode_steadily(x[:1]).mean, posterior.mean[:1])  # no image depends on another
    assert torch.equal(torch.get_rng_state(), state)
    buffers = {name: buffer for name, buffer in plain.named_buffers() if "latent_prior" not in name}
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    assert all(module.training for module in model.modules())


# ---- exemplars ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_an_image_leaves_its_own_exemplar_out():
    x, encode = torch.rand(12, *SHAPE), linear_encoder(2)
    prior = ExemplarPrior(2, Some(x), components=100)  # all of them
    prior.log_variance.fill_(-1.0)
    scale = bounded_scale(prior.log_variance)
    positions = torch.tensor([3, 0, 11])
    z = encode(x[positions]).sample((4,))
    own = prior.train()(encode, positions)
    assert own.batch_shape == (3,)
    pairs = Independent(Normal(encode(x).mean, scale), 1).log_prob(z.unsqueeze(-2))  # [4, 3, 12]
    for column, position in enumerate(positions.tolist()):
        others = [n for n in range(12) if n != position]
        expected = pairs[:, column, others].logsumexp(-1) - math.log(11)
        torch.testing.assert_close(own.log_prob(z)[:, column], expected)
    whole = prior.eval()(encode, positions)
    torch.testing.assert_close(whole.log_prob(z), pairs.logsumexp(-1) - math.log(12))


@torch.no_grad()
def test_the_density_of_a_random_subset_is_that_of_all_others_on_average():
    x, encode = torch.rand(6, *SHAPE), linear_encoder(1)
    prior, position = ExemplarPrior(1, Some(x), components=3).train(), torch.tensor([2])
    z = encode(x[position]).mean
    draws = torch.stack([prior(encode, position).log_prob(z) for _ in range(1_000)]).double()
    others = GaussianMixture(encode(x[[0, 1, 3, 4, 5]]).mean, torch.ones(5, 1)).log_prob(z).double()
    assert draws.exp().std() > 0.01
    assert abs(draws.exp().mean() - others.exp()) < 3 * draws.exp().std() / 1_000**0.5
    assert draws.mean() < others  # so that the rate of training is an upper bound


def test_a_training_step_tells_an_exemplar_prior_which_images_it_has(monkeypatch):
    datamodule, model = small("exemplar")
    batch = datamodule.on_after_batch_transfer(next(iter(datamodule.train_dataloader())), 0)
    torch.testing.assert_close(batch.x, datamodule.train_images[batch.position])
    asked = []
    forward = ExemplarPrior.forward
    monkeypatch.setattr(ExemplarPrior, "forward", lambda self, *args: asked.append(args[1:]) or forward(self, *args))
    model.training_step(batch, 0)
    model.validation_step(batch, 0)  # positions in another split
    assert torch.equal(asked[0][0], batch.position)
    assert asked[-1] in ((), (None,))


def test_too_few_exemplars_are_refused():
    with pytest.raises(UserError, match="components=1: an image leaves itself out"):
        ExemplarPrior(2, Some(torch.rand(4, *SHAPE)), components=1)
    with pytest.raises(UserError, match="needs 2 training images"):
        ExemplarPrior(2, Some(torch.rand(1, *SHAPE))).train()(linear_encoder(2))


# ---- flows ----------------------------------------------------------------------------------------------------------


def random_flow(latents: int) -> RealNVPPrior:
    torch.manual_seed(0)
    prior = RealNVPPrior(latents, flows=3, hidden=8)
    for parameter in prior.parameters():
        nn.init.normal_(parameter, std=0.4)
    return prior


@torch.no_grad()
@pytest.mark.parametrize("latents", [2, 5])
def test_the_log_determinant_of_a_flow_is_that_of_its_jacobian_and_sampling_inverts_it(latents):
    prior = random_flow(latents)
    flow, z = prior(), torch.randn(4, latents)

    def to_noise(code: Tensor) -> Tensor:
        for coupling in prior.couplings:
            code, _ = coupling.inverse(code)
        return code

    jacobians = torch.stack([torch.autograd.functional.jacobian(to_noise, code) for code in z])
    expected = StandardNormal(latents)().log_prob(to_noise(z)) + jacobians.det().abs().log()
    assert jacobians.det().log().abs().min() > 0.01
    torch.testing.assert_close(flow.log_prob(z), expected, rtol=1e-5, atol=1e-5)
    torch.manual_seed(1)
    noise = prior.noise().sample((4,))
    torch.manual_seed(1)
    drawn = flow.sample((4,))
    torch.testing.assert_close(to_noise(drawn), noise, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(flow.log_prob(drawn), flow.log_prob(drawn.clone()), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_new_flow_is_the_standard_normal_bit_for_bit():
    datamodule, plain = small("standard_normal")
    _, model = small("real_nvp")
    x, z = examples(datamodule, "train", 8), torch.randn(5, 8, 3)
    assert torch.equal(model.prior().log_prob(z), plain.prior().log_prob(z))
    weights, drawn = [], []
    for net in (plain, model):
        torch.manual_seed(1)
        weights.append(log_weights(x, net.infer(x, 5)))
        drawn.append(net.generate(5).mean)
    assert torch.equal(*weights)
    assert torch.equal(*drawn)


def test_a_flow_needs_two_halves():
    with pytest.raises(UserError, match="latent_dim=1: a RealNVP prior needs at least 2 latents"):
        RealNVPPrior(1)


# ---- any of them ----------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("kind", ["mixture", "vamp", "exemplar", "one left out", "real_nvp"])
def test_a_density_sums_to_1(kind):
    torch.manual_seed(0)
    images, encode, positions = Some(torch.rand(9, *SHAPE)), linear_encoder(2), None
    prior = {
        "mixture": lambda: MixturePrior(2, components=4),
        "vamp": lambda: VampPrior(2, images, components=4),
        "exemplar": lambda: ExemplarPrior(2, images).eval(),
        "one left out": lambda: ExemplarPrior(2, images, components=4).train(),
        "real_nvp": lambda: random_flow(2),
    }[kind]()
    if kind == "one left out":
        positions = torch.arange(1)
    side = torch.linspace(-25, 25, 601)
    grid = torch.cartesian_prod(side, side)
    density = prior(encode, positions).log_prob(grid[:, None] if positions is not None else grid).double().exp()
    assert density.sum() * (side[1] - side[0]) ** 2 == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("kind", ["mixture", "exemplar"])
def test_every_number_of_a_prior_learns_from_the_first_step(kind):
    datamodule, model = small(kind)
    model.loss_and_rows(examples(datamodule, "train", 16), 1.0)[0].backward()
    assert all((parameter.grad != 0).all() for parameter in model.latent_prior.parameters())


def test_the_rate_trains_the_encoder_through_what_the_prior_is_made_of():
    """The gradient of the prior's pass is part of the encoder's: detached images of the prior give another one."""
    for kind in ("vamp", "exemplar"):
        datamodule, model = small(kind)
        x, gradients = examples(datamodule, "train", 16), []
        for encode in (model.encode_steadily, torch.no_grad()(model.encode_steadily)):
            torch.manual_seed(1)
            model.encode_steadily = encode
            (gradient,) = torch.autograd.grad(model.loss_and_rows(x, 1.0)[0], [next(model.encoder.parameters())])
            gradients.append(gradient)
        assert (gradients[0] - gradients[1]).norm() > 1e-3 * gradients[0].norm()


@pytest.mark.parametrize("kind", CHOICES)
def test_a_resumed_training_ends_with_the_same_weights(kind, tmp_path):
    overrides = ("data.batch_size=300", "data.binarize=dynamic")
    options = {"epochs": 2, "limit_train_batches": 2, "limit_val_batches": 1}
    saving = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    datamodule, straight = small(kind, *overrides)
    fit(straight, datamodule, ReproducibleNoise(0), saving, **options)
    _, rest = small(kind, *overrides, seed=9)
    fit(rest, datamodule, ReproducibleNoise(0), ckpt_path=tmp_path / "epoch=0.ckpt", **options)
    assert rest.trainer.global_step == 4
    assert all(map(torch.equal, straight.parameters(), rest.parameters()))


@torch.no_grad()
def test_evaluation_computes_a_prior_once_for_its_weights(monkeypatch):
    datamodule, model = small("vamp")
    x, calls = examples(datamodule, "val", 4), []
    model.latent_prior.register_forward_hook(lambda *_: calls.append(1))
    model.eval()
    _ = model.rate_parts
    for _ in range(3):
        with torch.inference_mode():
            before = model.infer(x).latents[0].prior.log_prob(torch.zeros(3))
    assert len(calls) == 1
    model.posterior_head.bias += 1
    assert model.prior().log_prob(torch.zeros(3)) != before
    assert len(calls) == 2
    other = copy.deepcopy(model)
    model.load_state_dict({name: value * 0.5 for name, value in model.state_dict().items()})
    model.prior()
    assert len(calls) == 3
    assert other.prior().log_prob(torch.zeros(3)) != model.prior().log_prob(torch.zeros(3))
    with torch.enable_grad():
        assert model.prior().mean.requires_grad


def test_a_validation_after_more_steps_has_a_new_prior():
    """Fused Adam moves weights without a trace in their version counters."""
    datamodule, model = small("exemplar", "optimizer.lr=0.1")
    x, seen = examples(datamodule, "train", 16), []
    (optimizer,) = [model.configure_optimizers()]
    for _ in range(2):
        with torch.no_grad():
            seen.append(model.eval().prior().means)
        for module in model.modules():
            module.training = True  # as Lightning does after a validation
        model.loss_and_rows(x, 1.0)[0].backward()
        optimizer.step()
    assert not torch.allclose(*seen)


# ---- what the data tell a model -------------------------------------------------------------------------------------


def test_a_model_reads_no_image_that_it_does_not_need():
    for kind in ("standard_normal", "mixture", "real_nvp", "exemplar"):  # the last one needs them in training
        datamodule, model = built(*SMALL, f"prior@model.prior={kind}")
        assert datamodule._pool is None
        assert model.images is datamodule.train_images


@pytest.mark.parametrize("treatment", ["data.binarize=dynamic", "data.dequantize=true", "data.binarize=threshold"])
def test_training_images_are_what_the_model_sees_on_average(treatment):
    datamodule = data("data=digits", "data.image_size=8", treatment)
    images, stored = datamodule.train_images, datamodule.pool.images[datamodule.splits.train]
    assert len(images) == len(stored)
    torch.testing.assert_close(images.mean, images[torch.arange(len(images))].mean(0))
    seen = torch.stack([datamodule.scale(stored[:3]) for _ in range(2_000)]).mean(0)
    torch.testing.assert_close(images[torch.arange(3)], seen, atol=0.05, rtol=0)
    assert torch.equal(images[torch.tensor([1])], images[torch.tensor([1])])


def test_a_copied_model_shares_its_training_images_and_a_pickled_one_has_none():
    datamodule, model = small("exemplar")
    assert len(model.images) > 0
    assert copy.deepcopy(model).latent_prior.images is datamodule.train_images
    kept = pickle.loads(pickle.dumps(model.latent_prior))
    assert len(pickle.dumps(model.latent_prior)) < 10_000
    with pytest.raises(UserError, match=r"told of none: give the model images=datamodule.train_images"):
        kept.train()(model.encode_steadily)


def test_a_prior_is_in_no_state_dict_twice():
    plain, vamp = (set(small(kind)[1].state_dict()) for kind in ("standard_normal", "vamp"))
    assert vamp - plain == {"latent_prior.values"}


@torch.no_grad()
def test_a_decoder_can_begin_at_the_mean_training_image():
    for overrides in ((), ("likelihood@model.likelihood=gaussian",)):
        datamodule, model = small("standard_normal", "model.start_at_mean=true", *overrides)
        model.decoder.layers[-2].weight.zero_()
        mean = datamodule.train_images.mean
        drawn = model.decode(torch.randn(2, 3)).mean
        torch.testing.assert_close(drawn[1], mean if overrides else mean.clamp(1e-3, 1 - 1e-3), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model=conv_tiny"], "model.start_at_mean=true needs a decoder with a bias for each pixel, as model=mlp has"),
        ([*SMALL, "likelihood@model.likelihood=continuous_bernoulli"], "needs a likelihood whose mean is set directly"),
    ],
)
def test_what_cannot_begin_at_the_mean_says_so(overrides, words):
    with pytest.raises(Exception, match=words):
        built(*overrides, "model.start_at_mean=true")


def test_a_model_without_data_has_every_prior_that_needs_none():
    options = {"image_shape": SHAPE, "latent_dim": 2, "encoder": Flat, "decoder": LinearDecoder}
    model = VAE(**options, likelihood=GaussianLikelihood(0.3), prior=MixturePrior)
    assert elbo_terms(torch.rand(3, *SHAPE), model.infer(torch.rand(3, *SHAPE))).rate.shape == (3,)
    with pytest.raises(UserError, match="told of none"):
        VAE(**options, likelihood=GaussianLikelihood(0.3), prior=VampPrior)


def test_the_anchors_are_the_published_recipes():
    cfg = composed("experiment=paper_vamp_static")
    assert (cfg.model.encoder.widths, cfg.model.encoder.act, cfg.model.decoder.act) == ([300, 300], "gated", "gated")
    assert (cfg.model.latent_dim, cfg.model.prior.components, cfg.optimizer.lr) == (40, 500, 5e-4)
