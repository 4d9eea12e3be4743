"""How a model uses its latents, from the posteriors of N images in D latents; rates and bounds are in nats."""

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from scipy.stats import kstest
from torch import Tensor
from torch.distributions import Normal

if TYPE_CHECKING:  # scikit-learn takes seconds to import, and training needs no mixture
    from sklearn.mixture import GaussianMixture

ACTIVE_VARIANCE = 0.01  # Burda et al. 2016, section 5
FULL_COVARIANCE_IMAGES = 10  # images for each latent of each component that full covariances need


def variance_of_means(mean: Tensor) -> Tensor:
    """Return the variance ``[D]`` over images of each latent's posterior mean ``[N, D]``, in float64.

    It is 0 for a latent that carries nothing; the variance of *sampled* codes is 1 for it.
    """
    return mean.double().var(0, correction=0)


def active_units(mean: Tensor) -> Tensor:
    """Return which latents ``[D]`` are active: variance of the mean above 0.01 (Burda et al. 2016, section 5)."""
    return variance_of_means(mean) > ACTIVE_VARIANCE


def most_informative(rate_per_latent: Tensor, count: int) -> list[int]:
    """Return the indices of the ``count`` latents with the largest mean rate, largest first."""
    return torch.argsort(rate_per_latent, descending=True)[:count].tolist()


class Directions(NamedTuple):
    """The orthogonal directions in which codes vary most."""

    axes: Tensor  # [K, D], unit vectors whose largest entry is positive
    deviation: Tensor  # [K], standard deviation of the codes along each
    share: Tensor  # [K], share of the variance of all latents; 0 without variance


def principal_directions(codes: Tensor, count: int) -> Directions:
    """Return the first ``count`` principal directions of codes ``[N, D]``; fewer if there are fewer latents."""
    variances, vectors = torch.linalg.eigh(codes.double().T.cov(correction=0).reshape(codes.shape[1], -1))
    variances, axes = variances.flip(0)[:count].clamp_min(0), vectors.T.flip(0)[:count]
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    share = (variances / variance_of_means(codes).sum()).nan_to_num()
    return Directions(axes.float(), variances.sqrt().float(), share)


def rates(mean: Tensor, scale: Tensor) -> Tensor:
    """Return the mean over images of each latent's rate ``KL(q(z_d|x) || N(0, 1))``, ``[D]``, in float64."""
    mean, scale = mean.double(), scale.double()
    return (0.5 * (mean**2 + scale**2 - 1) - scale.log()).mean(0)


def log_mixture(
    z: Tensor, mean: Tensor, scale: Tensor, log_weights: Tensor | None = None, at_once: int = 2**22
) -> Tensor:
    """Return the log density ``log sum_c w_c N(z; m_c, diag(s_c^2))`` of a mixture at codes ``[M, D]``, ``[M]``.

    It is in float64. The squares are expanded, so that all pairs cost two matrix products; what cancels there would
    cost float32 some 1e-4 nats.

    Args:
        z: the codes.
        mean: of each component, ``[C, D]``.
        scale: standard deviations, ``[C, D]``.
        log_weights: ``[C]``, or ``[M, C]`` where each code has its own; None for equal ones.
        at_once: pairs that are in memory together.
    """
    z, mean, precision = z.double(), mean.double(), scale.double() ** -2
    constant = -0.5 * (precision.log().neg() + math.log(2 * math.pi) + mean**2 * precision).sum(1)
    rows, count = [], max(1, at_once // len(mean))
    for number, part in enumerate(z.split(count)):
        pairs = constant - 0.5 * (part**2 @ precision.T) + part @ (mean * precision).T
        if log_weights is not None:
            own = log_weights if log_weights.dim() == 1 else log_weights[number * count : (number + 1) * count]
            rows.append(torch.logsumexp(pairs + own, 1))
        else:
            rows.append(torch.logsumexp(pairs, 1) - math.log(len(mean)))
    return torch.cat(rows)


class Surgery(NamedTuple):
    """The two parts of the mean rate, ``I(x; z) + KL(q(z) || p(z))``, each between two bounds, in nats.

    Hoffman & Johnson 2016, "ELBO surgery"; q(z) is the aggregate posterior.
    """

    rate: float  # their sum
    information: tuple[float, float]  # mutual information of image and code under q
    gap: tuple[float, float]  # KL of the aggregate posterior to the prior
    standard_error: float  # of the bounds, over images
    ceiling: float  # log N, which the lower bound on the information cannot pass


def log_posterior(z: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Return the log density ``log q(z_n|x_n)`` of a code of each of N images ``[N, D]``, ``[N]``, in float64."""
    return Normal(mean.double(), scale.double()).log_prob(z.double()).sum(1)


def surgery(
    mean: Tensor, scale: Tensor, z: Tensor, mixture: "GaussianMixture", log_prior: Tensor | None = None
) -> Surgery:
    """Bound both parts from the posteriors of N images and a draw ``z`` ``[N, D]`` from each.

    Any density r gives ``E_q[log r(z) - log p(z)] = KL(q||p) - KL(q||r)``, a lower bound on the gap; r is a mixture
    fitted to *other* images' codes. With the mixture of the N posteriors themselves as r it is an upper bound: the rate
    minus it is InfoNCE with the posterior as critic, a lower bound on the information and at most log N (Poole et al.
    2019, arXiv 1905.06922, eq. 12).

    ``log_prior`` is the model's own log p(z) of the draws, ``[N]``; the rate is then its estimate from them. Without it
    the prior is N(0, I), and the rate is exact.
    """
    ceiling = math.log(len(z))
    if log_prior is None:
        prior, rate = Normal(0.0, 1.0).log_prob(z.double()).sum(1), rates(mean, scale).sum().item()
    else:
        prior, rate = log_prior, (log_posterior(z, mean, scale) - log_prior).mean().item()
    fitted = torch.from_numpy(mixture.score_samples(z.double().numpy())) - prior
    inside = log_mixture(z, mean, scale) - prior
    # Sampling noise can swap bounds that are close.
    lower, upper = sorted(min(max(bound.mean().item(), 0.0), rate) for bound in (fitted, inside))
    upper = max(upper, rate - ceiling)
    error = max(fitted.std().item(), inside.std().item()) / len(z) ** 0.5 if len(z) > 1 else rate
    return Surgery(rate, (rate - upper, rate - lower), (lower, upper), error, ceiling)


def fit_mixture(z: Tensor, components: int, seed: int) -> "GaussianMixture":
    """Fit a Gaussian mixture to codes ``[N, D]``: ex-post density estimation (Ghosh et al. 2020, arXiv 1903.12436).

    Covariances are full if there are ten codes for each latent of each component, else diagonal. There are at most as
    many components as codes.
    """
    from sklearn.mixture import GaussianMixture

    count, dims = z.shape
    components = min(components, count)
    full = count >= FULL_COVARIANCE_IMAGES * dims * components
    mixture = GaussianMixture(
        components,
        covariance_type="full" if full else "diag",
        reg_covar=1e-4,  # keeps the covariance of a collapsed latent invertible
        random_state=seed % 2**32,
        max_iter=200,
    )
    return mixture.fit(z.double().numpy())


def draw_mixture(mixture: "GaussianMixture", count: int, seed: int) -> Tensor:
    """Draw ``count`` codes ``[count, D]`` from a fitted mixture, float32, in random order."""
    mixture.random_state = np.random.RandomState(seed % 2**32)
    codes, _ = mixture.sample(count)
    shuffled = np.random.default_rng(seed).permutation(codes)
    return torch.from_numpy(shuffled).float()


class Agreement(NamedTuple):
    """How one latent's codes compare with the standard normal."""

    mean: float
    std: float
    ks: float  # Kolmogorov-Smirnov distance, 0 to 1


def agreement(z: Tensor, prior: Tensor | None = None) -> Agreement:
    """Mean, standard deviation and Kolmogorov-Smirnov distance of codes ``[N]`` of one latent.

    The distance is to N(0, 1), or to draws ``[M]`` from another prior.
    """
    other = "norm" if prior is None else prior.double().numpy()
    return Agreement(z.mean().item(), z.std(correction=0).item(), float(kstest(z.double().numpy(), other).statistic))


class Misplaced(NamedTuple):
    """What share of codes in a plane is where the prior would not have put them."""

    share: float  # total variation distance over cells
    by_chance: float  # the expectation for as many codes from the prior


def misplaced(z: Tensor, prior: Tensor | None = None, side: int = 8) -> Misplaced:
    """Return the share of codes ``[N, 2]`` that must move to fill ``side^2`` cells as the prior does.

    The cells are equally likely under N(0, I). For another prior, of which there are draws ``[M, 2]``, M far above N,
    ``side`` columns and ``side`` rows are equally likely, and the cells as likely as the draws say.
    """
    if prior is None:
        share, expected = _shares((Normal(0.0, 1.0).cdf(z.double()) * side).long(), side), 1 / side**2
        # The mean absolute deviation of a binomial share, by its normal approximation, summed over the cells.
        chance = 0.5 * side**2 * math.sqrt(2 / math.pi * expected * (1 - expected) / len(z))
    else:
        edges = prior.double().quantile(torch.linspace(0, 1, side + 1, dtype=torch.float64)[1:-1], dim=0).T.contiguous()
        share, expected = (
            _shares(torch.searchsorted(edges, codes.double().T.contiguous()).T, side) for codes in (z, prior)
        )
        chance = 0.5 * (2 / math.pi * expected * (1 - expected) / len(z)).sqrt().sum().item()
    return Misplaced(0.5 * (share - expected).abs().sum().item(), chance)


def _shares(cells: Tensor, side: int) -> Tensor:
    """Return the share ``[side^2]`` of the codes in each cell, of their columns and rows ``[N, 2]``."""
    cells = cells.clamp(0, side - 1)
    return torch.bincount(cells[:, 0] * side + cells[:, 1], minlength=side**2).double() / len(cells)


def carriers(rate_per_latent: Tensor, share: float = 0.99) -> int:
    """Return the smallest number of latents that together carry ``share`` of the rate; 0 without any rate."""
    largest = rate_per_latent.double().sort(descending=True).values.cumsum(0)
    return int((largest < share * largest[-1]).sum()) + 1 if largest[-1] > 0 else 0


def verdict(active: int, rate_per_latent: Tensor, gap: tuple[float, float], kl_weight: float) -> str:
    """Say in words what the rates mean and what to try.

    Args:
        active: active latents.
        rate_per_latent: mean rates ``[D]``, nats per image.
        gap: bounds on the aggregate posterior's KL to the prior, nats.
        kl_weight: the weight of the rate in training.
    """
    latent_dim, rate, used = len(rate_per_latent), rate_per_latent.sum().item(), carriers(rate_per_latent)
    lower = f"model.kl_weight={kl_weight / 4:g}" if kl_weight > 0 else "another learning rate"
    if active == 0:
        return (
            f"0 of {latent_dim} latents active: complete posterior collapse, every image gets the same picture; "
            f"try {lower}, model.kl_warmup_steps=5000 or a smaller optimizer.lr"
        )
    text = f"{active} of {latent_dim} latents active" if active < latent_dim else f"all {latent_dim} latents active"
    if used < active:
        text += f", {used} carry 99 % of the rate"
    if used < latent_dim / 4:
        text += (
            f": posterior collapse of the others; try {lower} or model.kl_warmup_steps=5000 for more, "
            f"or model.latent_dim={used} for the same with less"
        )
    if gap[0] > max(1.0, 0.1 * rate):
        text += (
            f". The codes are at least {gap[0]:.1f} nats from the prior: draw from the mixture, "
            f"or try model.kl_weight={max(1.0, 2 * kl_weight):g}"
        )
    return text
