"""Compare metrics with closed forms, brute force, and the libraries that they must agree with."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torchmetrics.image import PeakSignalNoiseRatio

from src.metrics import distances, posterior, probes
from src.metrics.reconstruction import Similarity


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


# ---- posteriors ----------------------------------------------------------------------------------------------------


def test_a_latent_that_carries_nothing_is_not_active_though_its_codes_vary():
    mean = torch.randn(5_000, 3) * torch.tensor([0.9, 0.05, 0.0])
    scale = torch.sqrt(1 - torch.tensor([0.9, 0.05, 0.0]) ** 2).expand(5_000, 3)
    assert posterior.active_units(mean).tolist() == [True, False, False]
    sampled = (mean + scale * torch.randn_like(mean)).var(0)
    torch.testing.assert_close(sampled, torch.ones(3), atol=0.06, rtol=0)  # Yin & Wang 2023 would call all three active
    assert posterior.most_informative(posterior.rates(mean, scale), 2) == [0, 1]


def test_aggregate_density_is_the_mixture_of_the_posteriors():
    mean, scale, z = torch.randn(40, 3).double(), torch.rand(40, 3).double() + 0.1, torch.randn(30, 3).double()
    mixture = MixtureSameFamily(Categorical(logits=torch.zeros(40)), Independent(Normal(mean, scale), 1))
    torch.testing.assert_close(posterior.log_mixture(z, mean, scale, at_once=100), mixture.log_prob(z).double())


@pytest.mark.parametrize("offset", [0.0, 1.5])
def test_rate_is_cut_into_information_and_gap_between_true_bounds(offset):
    """Gaussian codes: the information is -1/2 log(1 - s^2) a latent, the gap 1/2 offset^2."""
    signal = torch.tensor([0.95, 0.6])
    mean = signal * torch.randn(4_000, 2) + torch.tensor([offset, 0.0])
    scale = torch.sqrt(1 - signal**2).expand(4_000, 2)
    z = mean + scale * torch.randn_like(mean)
    other = signal * torch.randn(4_000, 2) + scale * torch.randn(4_000, 2) + torch.tensor([offset, 0.0])
    bounds = posterior.surgery(mean, scale, z, posterior.fit_mixture(other, 1, 0))
    information, gap = -0.5 * torch.log(1 - signal**2).sum().item(), 0.5 * offset**2
    noise = 0.05
    assert bounds.information[0] - noise <= information <= bounds.information[1] + noise
    assert bounds.gap[0] - noise <= gap <= bounds.gap[1] + noise
    assert bounds.information[1] - bounds.information[0] < 0.1  # both bounds are tight here
    for information_bound, gap_bound in ((0, 1), (1, 0)):
        both = bounds.information[information_bound] + bounds.gap[gap_bound]
        assert both == pytest.approx(posterior.rates(mean, scale).sum().item(), abs=1e-6)
    assert 0 < bounds.standard_error < 0.1


def test_information_cannot_pass_its_ceiling():
    mean = torch.randn(100, 20) * 10
    bounds = posterior.surgery(
        mean, torch.full_like(mean, 0.01), mean, posterior.fit_mixture(torch.randn(500, 20) * 10, 1, 0)
    )
    assert bounds.information[0] <= bounds.ceiling + 1e-9 < bounds.information[1]
    assert bounds.ceiling == pytest.approx(math.log(100))


def test_mixture_finds_the_clusters_and_draws_from_them():
    centres = torch.tensor([[-5.0, 0.0], [5.0, 0.0], [0.0, 8.0]])
    z = centres.repeat_interleave(300, 0) + 0.3 * torch.randn(900, 2)
    mixture = posterior.fit_mixture(z, 3, seed=1)
    drawn = posterior.draw_mixture(mixture, 600, seed=2)
    assert torch.cdist(drawn, centres).min(1).values.max() < 2
    assert torch.equal(drawn, posterior.draw_mixture(mixture, 600, seed=2))
    assert not torch.equal(drawn, posterior.draw_mixture(mixture, 600, seed=3))
    halves = torch.cdist(drawn[:300], centres).argmin(1).bincount(minlength=3)
    assert halves.min() > 50  # not sorted by component
    assert posterior.fit_mixture(torch.randn(30, 20), 10, 0).covariance_type == "diag"
    assert posterior.fit_mixture(torch.randn(4, 2), 10, 0).n_components == 4


def test_agreement_is_small_for_normal_codes_only():
    assert posterior.agreement(torch.randn(10_000)).ks < 0.02
    off = posterior.agreement(torch.randn(10_000) * math.sqrt(0.5))  # what Yin & Wang 2023's KL makes of codes
    assert off.std == pytest.approx(math.sqrt(0.5), abs=0.02)
    assert off.ks > 0.05


def test_misplaced_codes_are_seen_where_each_latent_alone_looks_normal():
    """The latents are x, and x with a random sign: each is exactly normal, together they lie on a cross."""
    x = torch.randn(20_000)
    cross = torch.stack([x, x * (torch.rand(20_000) < 0.5).float().mul(2).sub(1)], 1)
    assert all(posterior.agreement(column).ks < 0.02 for column in cross.T)
    assert posterior.misplaced(cross).share > 0.5
    for count in (300, 20_000):
        normal = [posterior.misplaced(torch.randn(count, 2)) for _ in range(20)]
        assert np.mean([m.share for m in normal]) == pytest.approx(normal[0].by_chance, rel=0.1)


def test_verdicts_say_what_to_try():
    def rate(*nats):
        return torch.tensor(nats)

    collapsed = posterior.verdict(0, rate(0.0, 0.0), (0.0, 0.0), kl_weight=4)
    assert "0 of 2 latents active: complete posterior collapse" in collapsed
    assert "model.kl_weight=1," in collapsed
    some = posterior.verdict(7, torch.cat([torch.ones(7), torch.zeros(57)]), (0.0, 1.0), kl_weight=1)
    assert some.startswith("7 of 64 latents active: posterior collapse of the others")
    assert "model.latent_dim=7" in some
    assert posterior.verdict(2, rate(3.0, 3.0), (0.1, 1.0), 1) == "all 2 latents active"
    nearly = posterior.verdict(36, torch.cat([torch.ones(11), torch.full((53,), 0.001)]), (0.0, 1.0), 1)
    assert nearly.startswith("36 of 64 latents active, 11 carry 99 % of the rate: posterior collapse")
    assert "at least 9.0 nats from the prior" in posterior.verdict(2, rate(9.0, 9.0), (9.0, 9.5), 1)


# ---- distances -----------------------------------------------------------------------------------------------------


def exactly(mean, std, count=400):
    """Return samples whose mean is ``mean`` and whose covariance is the diagonal ``std^2``, up to rounding."""
    x = torch.randn(count, len(mean), dtype=torch.float64)
    x = x - x.mean(0)
    white = x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T
    return white * torch.tensor(std, dtype=torch.float64) + torch.tensor(mean, dtype=torch.float64)


def test_frechet_distance_is_the_closed_form():
    a, b = exactly([1.0, 2.0, 3.0], [1.0, 2.0, 0.5]), exactly([0.0, 2.0, 5.0], [3.0, 1.0, 0.5])
    assert distances.frechet(a, b) == pytest.approx(1 + 4 + (4 + 1 + 0), rel=1e-9)
    assert distances.frechet(a, a) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_is_scipys_where_that_is_well_conditioned():
    a, b = torch.randn(2_000, 12).double(), torch.randn(1_500, 12).double() @ torch.randn(12, 12).double() + 1
    root = sqrtm(torch.cov(a.T).numpy() @ torch.cov(b.T).numpy())
    expected = (a.mean(0) - b.mean(0)).square().sum() + torch.cov(a.T).trace() + torch.cov(b.T).trace()
    assert distances.frechet(a, b) == pytest.approx(expected.item() - 2 * np.trace(root).real, rel=1e-8)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_frechet_distance_is_finite_and_real_on_ten_samples_in_192_dimensions(offset):
    """scipy's matrix root is complex here. The distance is checked under autocast and far from the origin too."""
    a, b = torch.randn(10, 192), torch.randn(10, 192)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = distances.frechet(a.double() + offset, b.double() + offset)
    assert math.isfinite(value)
    # Both covariances have rank 9: the trace of the root is the nuclear norm of the product of their roots.
    x, y = ((s.double() - s.double().mean(0)) / 3 for s in (a, b))
    cross = torch.linalg.matrix_norm(x @ y.T, "nuc")
    means = (a.double().mean(0) - b.double().mean(0)).square().sum()
    assert value == pytest.approx((means + x.square().sum() + y.square().sum() - 2 * cross).item(), rel=1e-4)


def test_standard_error_of_the_frechet_distance_is_its_spread_over_samples():
    def pair():
        return torch.randn(500, 4).double(), torch.randn(500, 4).double() * 1.2 + 0.5

    spread = torch.tensor([distances.frechet(*pair()) for _ in range(200)]).std().item()
    estimates = [distances.bootstrapped_frechet(*pair(), repeats=100).standard_error for _ in range(5)]
    assert np.mean(estimates) == pytest.approx(spread, rel=0.3)


def test_kernel_distance_is_the_unbiased_cubic_mmd_with_its_spread():
    def pair():
        return torch.randn(200, 5).double(), torch.randn(200, 5).double() + 0.3

    def kernel(x, y):
        return (x @ y.T / 5 + 1) ** 3

    def brute_force(a, b):
        within = [(kernel(x, x).sum() - kernel(x, x).diagonal().sum()) / (len(x) * (len(x) - 1)) for x in (a, b)]
        return (sum(within) - 2 * kernel(a, b).mean()).item()

    a, b = pair()
    estimate = distances.kernel_distance(a, b, subsets=2_000)
    assert estimate.value == pytest.approx(brute_force(a, b), rel=0.05)
    spread = torch.tensor([brute_force(*pair()) for _ in range(300)]).std().item()
    estimates = [distances.kernel_distance(*pair()).standard_error for _ in range(20)]
    assert np.mean(estimates) == pytest.approx(spread, rel=0.3)


def test_score_runs_from_one_to_the_number_of_classes():
    sure = torch.eye(7).repeat(200, 1) * 100
    assert distances.inception_score(sure).value == pytest.approx(7, rel=0.02)
    assert distances.inception_score(torch.zeros(700, 7)).value == pytest.approx(1)
    assert distances.inception_score(sure[::7]).value == pytest.approx(1)  # sure, but always of the same class


def test_manifold_is_what_brute_force_counts():
    real, other = torch.randn(120, 3).double(), torch.randn(90, 3).double() * 1.5 + 0.4
    k = 5
    between = torch.cdist(real, other)
    radius_real, radius_other = (torch.cdist(x, x).sort(1).values[:, k] for x in (real, other))
    got = distances.manifold(real, other, k)
    inside = [[between[i, j] <= radius_real[i] for j in range(90)] for i in range(120)]
    assert got.precision == pytest.approx(np.mean([any(inside[i][j] for i in range(120)) for j in range(90)]))
    assert got.density == pytest.approx(np.sum(inside) / (k * 90))
    assert got.coverage == pytest.approx(np.mean([any(row) for row in inside]))
    recalled = [any(between[i, j] <= radius_other[j] for j in range(90)) for i in range(120)]
    assert got.recall == pytest.approx(np.mean(recalled))
    assert distances.manifold(real, real + 1_000) == (0, 0, 0, 0)


def test_nearest_finds_the_copy():
    pool = torch.randint(0, 256, (50, 1, 6, 6), dtype=torch.uint8)
    index = torch.arange(0, 50, 2)
    stored = (pool / 255).__getitem__
    distance, place = distances.nearest(pool[[4, 30]] / 255, stored, index, at_once=7)
    assert place.tolist() == [4, 30]
    torch.testing.assert_close(distance, torch.zeros(2), atol=2e-3, rtol=0)
    distance, place = distances.nearest(pool[[4, 30]] / 255 + 0.1, stored, torch.tensor([4, 30]))
    torch.testing.assert_close(distance, torch.full((2,), 0.1), atol=1e-3, rtol=0)


# ---- reconstructions and representations ---------------------------------------------------------------------------


def test_similarity_of_known_errors():
    originals = torch.rand(6, 1, 16, 16) * 0.8
    similarity = Similarity(16)
    similarity.update(originals[:4] + 0.1, originals[:4])
    similarity.update(originals[4:] + 0.01, originals[4:])
    figures = similarity.compute()
    assert figures["psnr"] == pytest.approx((4 * 20 + 2 * 40) / 6, rel=1e-4)  # the mean over images, not over pixels
    assert (
        figures["psnr"]
        == pytest.approx(  # torchmetrics agrees
            PeakSignalNoiseRatio(data_range=1.0, dim=(1, 2, 3))(
                torch.cat([originals[:4] + 0.1, originals[4:] + 0.01]), originals
            ).item()
        )
    )
    assert 0 < figures["ssim"] < 1
    assert figures["ms_ssim"] is None
    assert Similarity(8).metrics.keys() == {"psnr"}
    exact = Similarity(16)  # a black image that is drawn at or below 0 is exact
    black = torch.zeros(1, 16, 16)
    exact.update(torch.stack([originals[0] + 0.1, black - 0.1]), torch.stack([originals[0], black]))
    assert exact.compute()["psnr"] == pytest.approx((20 + 100) / 2, rel=1e-4)
    for side, expected in ((175, None), (176, 1)):
        large = Similarity(side)
        x = torch.rand(2, 1, side, side)
        large.update(x, x)
        assert large.compute()["ms_ssim"] == (expected and pytest.approx(expected))
        assert large.compute()["ssim"] == pytest.approx(1)


def labelled(count, rng, classes=3):
    labels = rng.integers(0, classes, count)
    return probes.Labelled(rng.normal(size=(count, 6)) * 5 + labels[:, None] * [3, 2, 0, 0, 0, 0], labels)


@pytest.mark.parametrize("classes", [2, 3])
def test_probes_are_scikit_learns(classes):
    rng = np.random.default_rng(0)
    train, val, test = (labelled(count, rng, classes) for count in (300, 200, 250))
    scaler = StandardScaler().fit(train.codes)
    for probe, name, make in (
        (probes.linear_probe, "C", lambda c: LogisticRegression(C=c, max_iter=2_000)),
        (probes.nearest_neighbours, "k", KNeighborsClassifier),
    ):
        got = probe(train, val, test)
        model = make(got[name]).fit(scaler.transform(train.codes), train.labels)
        assert got["accuracy"] == model.score(scaler.transform(test.codes), test.labels)
        assert got["validation_accuracy"] == model.score(scaler.transform(val.codes), val.labels)
        chances = model.predict_proba(scaler.transform(test.codes))
        of = chances[:, 1] if classes == 2 else chances
        assert got["auroc"] == pytest.approx(roc_auc_score(test.labels, of, multi_class="ovr"))


def test_probes_choose_on_validation_and_not_on_test():
    rng = np.random.default_rng(0)
    train, val, test = (labelled(200, rng) for _ in range(3))
    test.labels[:] = (test.labels + 1) % 3  # whatever is best on validation is wrong here
    got = probes.nearest_neighbours(train, val, test)
    scaler = StandardScaler().fit(train.codes)
    scores = {
        k: KNeighborsClassifier(k)
        .fit(scaler.transform(train.codes), train.labels)
        .score(scaler.transform(val.codes), val.labels)
        for k in probes.NEIGHBOURS
    }
    assert scores[got["k"]] == max(scores.values())
    assert got["accuracy"] < 0.4
    missing = probes.Labelled(test.codes[test.labels > 0], test.labels[test.labels > 0])
    assert probes.linear_probe(train, val, missing)["auroc"] is None
