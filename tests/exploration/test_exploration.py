"""Every picture, for models and data that can and cannot have it, and a user's own images."""

import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.distributions import Normal

from src.data.pixels import Pixels
from src.exploration import curves, denoising, export, gallery, grids, latents, overview, own_images, scores, traversals
from src.exploration.gallery import PICTURES
from src.exploration.traversals import linear, spherical
from src.metrics import posterior
from src.models.objectives import elbo_terms
from src.models.predictor import Predictor
from src.runs.load import load_run, predictor_of
from src.system.errors import NotApplicable, UserError
from tests.helpers import QUICK, built, cli
from tests.variants import VARIANTS


@pytest.fixture(scope="module")
def predictor(finished) -> Predictor:
    return predictor_of(load_run(finished[0]), "test", None, "cpu", "cache")


def of(*overrides: str) -> Predictor:
    datamodule, model = built(*QUICK, *overrides)
    return Predictor(model.eval(), datamodule)


@pytest.fixture(scope="module")
def explored(finished, tmp_path_factory):
    """Explore a run from the command line, with every kind of output."""
    run = Path(shutil.copytree(finished[0], tmp_path_factory.mktemp("explored") / "run"))
    own = run.parent / "own"
    own.mkdir()
    for number in range(3):
        Image.fromarray(np.full((30, 40, 3), 80 * number, dtype=np.uint8)).save(own / f"mine_{number}.png")
    done = cli(f"run={run}", f"images={own}/*.png", "embed=npz", module="src.explore")
    assert done.returncode == 0, done.stdout
    return run, done


def test_every_picture_is_drawn(explored):
    run, done = explored
    (own,) = (run / "figures" / "pictures").iterdir()
    assert own.name.startswith("own-")
    names = (*PICTURES, f"pictures/{own.name}/pictures")
    for name in names:
        with Image.open(run / "figures" / f"{name}.png") as image:
            assert min(image.size) > 100, name
            assert len(image.convert("L").getcolors()) > 10, name
        assert f"figures/{name}.png" in done.stdout
    assert not list(run.rglob("*.tmp"))
    tags = set()
    for file in (run / "tensorboard").glob("events*"):
        tags.update(EventAccumulator(str(file)).Reload().Tags()["images"])
    assert {f"explore/{name}" for name in names} <= tags


def test_embeddings_are_the_posteriors_with_their_names(explored, predictor):
    run, _ = explored
    with np.load(run / "embedding" / "test.npz") as saved:
        codes = predictor.codes("test")
        np.testing.assert_array_equal(saved["mean"], codes.mean)
        np.testing.assert_array_equal(saved["scale"], codes.scale)
        assert saved["label"].tolist() == [str(label) for label in codes.label.tolist()]
        assert saved["name"].tolist() == [str(i) for i in predictor.datamodule.splits.test.tolist()]
    (own,) = (run / "embedding").glob("pictures-own-*.npz")
    with np.load(own) as saved:
        assert [Path(name).name for name in saved["name"]] == ["mine_0.png", "mine_1.png", "mine_2.png"]
        assert saved["mean"].shape == (3, 2)
    config = (run / "tensorboard" / "projector_config.pbtxt").read_text()
    assert config.count("embeddings {") == 1
    assert list((run / "tensorboard").rglob("sprite.png"))
    assert len((next((run / "tensorboard").rglob("tensors.tsv"))).read_text().splitlines()) == 359


def test_csv_holds_the_same(predictor, tmp_path):
    paths = [*export.export(predictor, None, tmp_path, "csv")]
    assert [path.name for path in paths] == ["train.csv", "val.csv", "test.csv"]
    table = pd.read_csv(paths[2])
    assert list(table.columns) == ["name", "class", "mean_0", "mean_1", "scale_0", "scale_1"]
    np.testing.assert_allclose(table[["mean_0", "mean_1"]], predictor.codes("test").mean, rtol=1e-4, atol=1e-6)
    assert export.form_of(True, predictor.model) == "npz"
    with pytest.raises(UserError, match="embed=xls: give one of npz, csv"):
        export.form_of("xls", predictor.model)
    _, flow = built("model=conv_tiny", "data.image_size=8", "posterior@model.posterior=iaf")
    with pytest.raises(UserError, match="embed=csv: the posterior of this model is not a Gaussian"):
        export.form_of("csv", flow)


@pytest.mark.parametrize(
    ("overrides", "impossible"),
    [
        (["model.latent_dim=1"], {"losses", "manifold", "histogram", "plane"}),
        (["model.latent_dim=5", "data.binarize=dynamic"], {"losses", "manifold"}),
    ],
)
def test_pictures_that_a_model_cannot_have_say_why(overrides, impossible, caplog):
    caplog.set_level("INFO")
    predictor = of(*overrides)
    drawn = [name for name, _ in gallery.draw(predictor, PICTURES, explicit=False)]
    assert set(PICTURES) - set(drawn) == impossible
    assert all(f"no {name}: " in caplog.text for name in impossible)
    with pytest.raises(UserError, match="figures=manifold: only a model with 2 latents"):
        list(gallery.draw(predictor, ["manifold"], explicit=True))
    with pytest.raises(UserError, match="figures=sample: give all, one or a list .* of reconstructions"):
        gallery.choose("sample")


@pytest.mark.parametrize(
    ("variant", "reason"),
    [
        ("sylvester", "the posterior of this model is not a Gaussian of independent latents"),
        ("chain", "the posterior of this model is not a Gaussian of independent latents"),
    ],
)
def test_pictures_of_codes_ask_the_model_whether_it_has_them(variant, reason, caplog):
    caplog.set_level("INFO")
    flow = ("model=conv_tiny", "posterior@model.posterior=sylvester")  # it has no density but at its draws
    predictor = of(*VARIANTS.get(variant, flow))
    drawn = {name for name, _ in gallery.draw(predictor, PICTURES, explicit=False)}
    assert drawn == {"reconstructions", "samples", "neighbours"}
    missing = set(PICTURES) - drawn - {"losses"}
    assert all(f"no {name}: {reason}" in caplog.text for name in missing)
    with pytest.raises(UserError, match=f"figures=rates: {reason}"):
        list(gallery.draw(predictor, ["rates"], explicit=True))
    x = torch.cat([batch.x for batch, _ in predictor.batches("val", 6)])
    found = scores.scores(predictor, x[:2])  # which needs none
    assert found.costs.total.isfinite().all()
    once, again = (next(predictor.reconstruct([x])) for _ in range(2))
    assert torch.equal(once, again)


@pytest.mark.parametrize(
    "prior", [["vamp", "model.prior.components=5"], ["real_nvp", "model.prior.flows=2", "model.prior.hidden=8"]]
)
def test_pictures_follow_the_prior(prior, monkeypatch):
    predictor = of(f"prior@model.prior={prior[0]}", *prior[1:])
    with torch.no_grad():
        predictor.model.posterior_head.bias[:2] += 3  # codes, and with them VampPrior's, lie around 3
    drawn = {name for name, _ in gallery.draw(predictor, ["rates", "histogram", "plane"], explicit=True)}
    assert drawn == {"rates", "histogram", "plane"}
    asked = []
    monkeypatch.setattr(
        predictor.__class__, "decode", lambda self, z: asked.append(z) or iter([torch.zeros(len(z), 1, 4, 4)])
    )
    traversals.manifold(predictor)
    traversals.traversals(predictor)
    draws = predictor.model.prior().sample((20_000,))
    at = (draws[:, None] < asked[0].unflatten(0, (20, 20))[-1]).float().mean(0)  # the lowest row
    torch.testing.assert_close(at[:, 0], (torch.arange(20) + 0.5) / 20, atol=0.02, rtol=0)
    assert at[0, 1].item() == pytest.approx(0.025, abs=0.01)
    first = overview.best_latents(predictor, 1)[0]
    at = (draws[:, None, first] < asked[1].unflatten(0, (2, 7))[0, :, first]).float().mean(0)
    torch.testing.assert_close(at, torch.linspace(0.05, 0.95, 7), atol=0.02, rtol=0)
    z = predictor.codes("test").sample(0)
    expected = predictor.model.prior().log_prob(z).double()
    torch.testing.assert_close(predictor.log_prior(z), expected.detach())


def test_images_without_classes_have_pictures_too(picture_folder, tmp_path):
    root = picture_folder({f"{i:02}.png": (20, 20) for i in range(40)})
    predictor = of("data=image_folder", f"data.root={root}", "data.channels=1", "data.image_size=16",
                 f"data.cache_dir={tmp_path}")  # fmt: skip
    with pytest.raises(NotApplicable, match="no class labels"):
        overview.class_means(predictor)
    assert len(overview.scatter(predictor).axes) == 1
    assert len(embedding_names(predictor, tmp_path)) == len(predictor.datamodule.splits.val)


def test_two_classes_are_compared_with_a_scale_and_a_picture_with_the_nearest_of_each(picture_folder, tmp_path):
    root = picture_folder({f"{('ill', 'well')[i % 2]}/{i:02}.png": (16, 16) for i in range(60)})
    predictor = of("data=image_folder", f"data.root={root}", "data.channels=1", "data.image_size=16",
                 f"data.cache_dir={tmp_path}")  # fmt: skip
    figure = overview.class_means(predictor)
    panel, scale = figure.axes
    assert [label.get_text() for label in panel.get_xticklabels()] == ["ill", "well", "well − ill"]
    codes = predictor.codes("test")
    means = torch.stack([codes.mean[codes.label == label].mean(0) for label in (0, 1)])
    ill, well = torch.cat([*predictor.decode(means)])
    assert scale.get_ylim()[1] == pytest.approx((well - ill).abs().max().item(), rel=1e-5)

    pool, train = predictor.datamodule.pool, predictor.datamodule.splits.train
    own = train[pool.labels[train] == 0][:2]
    found = scores.scores(predictor, pool.images[own] / 255)
    assert torch.equal(found.nearest_of["ill"], own)  # themselves
    flat = pool.images.flatten(1) / 255.0
    of_well = train[pool.labels[train] == 1]
    assert torch.equal(found.nearest_of["well"], of_well[torch.cdist(flat[own], flat[of_well]).argmin(1)])
    pictures = own_images.Pictures(["a", "b"], pool.images[own], pool.images[own] / 255, "x")
    (_, drawn), *_ = scores.draw(predictor, pictures, found)
    rows = [label.get_text() for label in drawn.axes[0].get_yticklabels()]
    assert rows[-2:] == ["nearest\nill", "nearest\nwell"]


def embedding_names(predictor, folder):
    list(export.export(predictor, None, folder, "csv"))
    names = pd.read_csv(folder / "val.csv")["name"].tolist()
    assert all(name.endswith(".png") for name in names)
    return names


def test_the_manifold_is_decoded_at_normal_quantiles(predictor, monkeypatch):
    asked = []
    monkeypatch.setattr(
        predictor.__class__, "decode", lambda self, z: asked.append(z) or iter([torch.zeros(len(z), 1, 4, 4)])
    )
    traversals.manifold(predictor)
    z = asked[0].unflatten(0, (20, 20))
    shares = Normal(0.0, 1.0).cdf(z)
    torch.testing.assert_close(shares[0, :, 0], (torch.arange(20) + 0.5) / 20)  # latent 0 grows to the right
    torch.testing.assert_close(shares[:, 0, 1], (torch.arange(20).flip(0) + 0.5) / 20)  # latent 1 grows upwards
    asked.clear()
    traversals.traversals(predictor)
    rows = asked[0].unflatten(0, (2, 7))
    first = overview.best_latents(predictor, 1)[0]
    torch.testing.assert_close(Normal(0.0, 1.0).cdf(rows[0, :, first]), torch.linspace(0.05, 0.95, 7))
    centre = predictor.codes(predictor.split).mean.mean(0)
    torch.testing.assert_close(rows[0, :, 1 - first], centre[1 - first].expand(7))


def test_an_arc_keeps_the_length_and_a_line_cuts_through():
    a, b = torch.tensor([3.0, 0.0, 0.0]), torch.tensor([0.0, 3.0, 0.0])
    arc, line = spherical(a, b, 5), linear(a, b, 5)
    torch.testing.assert_close(arc.norm(dim=1), torch.full((5,), 3.0))
    torch.testing.assert_close(arc[2], torch.tensor([1.0, 1.0, 0.0]) * 3 / 2**0.5)
    for path in (arc, line):
        torch.testing.assert_close(path[[0, -1]], torch.stack([a, b]))
    assert line[2].norm() < 2.2
    for c in (-a, torch.zeros(3), a):  # no arc between them
        torch.testing.assert_close(spherical(a, c, 5), linear(a, c, 5))
    assert torch.isfinite(spherical(torch.zeros(3), torch.zeros(3), 3)).all()


def test_own_pictures_are_prepared_as_the_runs_images(picture_folder, predictor, caplog):
    root = picture_folder({"a.png": (16, 16), "deep/b.jpg": (40, 50, 3), "c.png": (9, 9, 4)})
    read = own_images.read(str(root), predictor.datamodule)
    assert [Path(name).name for name in read.names] == ["a.png", "c.png", "b.jpg"]
    assert read.x.shape == (3, 1, 16, 16)
    with Image.open(root / "a.png") as image:
        np.testing.assert_allclose(read.x[0, 0], np.asarray(image) / 255, atol=1e-6)
    assert len(own_images.read([f"{root}/*.png", str(root / "deep")], predictor.datamodule).names) == 3
    (root / "a.png").write_bytes(b"no picture")
    assert [Path(name).name for name in own_images.read(str(root), predictor.datamodule).names] == ["c.png", "b.jpg"]
    assert "left out: cannot decode" in caplog.text
    with pytest.raises(UserError, match=r"cannot decode .*a\.png"):
        own_images.read(str(root / "a.png"), predictor.datamodule)
    with pytest.raises(UserError, match="no picture there"):
        own_images.read(f"{root}/*.gif", predictor.datamodule)


def test_the_figures_of_different_pictures_have_different_folders(picture_folder, predictor, monkeypatch):
    root = picture_folder({"x/a.png": (9, 9), "y/x/a.png": (9, 9)})

    def folder(*places, invert=False):
        return own_images.read([str(place) for place in places], predictor.datamodule, invert).folder

    first = folder(root / "x")
    others = [
        folder(root / "y" / "x"),
        folder(root / "x", root / "y" / "x"),
        folder(root / "x" / "*.png"),
        folder(root / "x", invert=True),
    ]
    assert all(name.startswith("x-") for name in others)
    assert len({first, *others}) == 5
    assert others[-1] == f"{first}-inverted"
    monkeypatch.chdir(root)
    assert folder("x") == folder("./x/") == first


def test_many_pictures_have_pages_and_the_list_says_which(predictor, monkeypatch):
    monkeypatch.setattr(scores, "REFERENCES", 10)
    names = [f"folder/NORMAL2-IM-{i:04}-0001-0001.jpeg" for i in range(21)]
    levels = torch.randint(0, 256, (21, 1, 16, 16), dtype=torch.uint8)
    own = own_images.Pictures(names, levels, levels / 255, "scans", inverted=True)
    found = scores.scores(predictor, own.x)
    pages = dict(scores.draw(predictor, own, found))
    assert [*pages] == ["pictures_1", "pictures_2"]
    assert "Reconstructions of inverted pictures, PSNR" in " ".join(pages["pictures_1"].get_suptitle().split())
    rows = scores.table(predictor, own, found)
    assert rows.figure.tolist() == ["pictures_1.png"] * 18 + ["pictures_2.png"] * 3
    assert rows.inverted.all()
    said = scores.words(predictor, rows)
    assert "of each inverted picture, the 20 highest of 21" in said
    dearest = found.costs.total.argmax().item()
    assert said.splitlines()[1].startswith(f"  {names[dearest]} ")
    assert said.splitlines()[1].endswith(f"  {rows.figure[dearest]}")
    labels = [tick.get_text().split("\n")[0] for axes in pages["pictures_1"].axes for tick in axes.get_xticklabels()]
    assert len({*labels}) == 18
    assert [name for name, _ in denoising.draw(predictor, own, 0.1)] == ["denoising_1", "denoising_2"]


def test_a_second_call_replaces_its_own_figures_alone(explored, predictor, picture_folder):
    """Denoised figures lie beside those with scores; other pictures have another folder."""
    run, _ = explored
    (before,) = (run / "figures" / "pictures").iterdir()
    kept = {path: path.read_bytes() for path in before.iterdir()}
    root = picture_folder({"0.png": (16, 16)})
    folder = run / "figures" / "pictures" / own_images.read(str(root), predictor.datamodule).folder
    folder.mkdir()
    for name in ("denoising_1", "denoising_2", "pictures"):  # of an earlier call, when there were more pictures
        (folder / f"{name}.png").touch()
    done = cli(f"run={run}", f"images={root}", "figures=[]", "noise=0.2", module="src.explore")
    assert done.returncode == 0, done.stdout
    assert "images= with noise= get no scores" in done.stdout
    assert "PSNR" not in done.stdout
    assert sorted(path.name for path in folder.iterdir()) == ["denoising.png", "pictures.png"]
    assert {path: path.read_bytes() for path in before.iterdir()} == kept


def test_own_pictures_are_scored(explored, predictor, monkeypatch):
    """Scores are terms of the elbo, and a validation image has its rank among all of them."""
    run, done = explored
    (file,) = (run / "figures" / "pictures").glob("own-*/pictures.csv")
    rows = pd.read_csv(file)
    assert rows.figure.tolist() == ["pictures.png"] * 3
    assert not rows.inverted.any()
    assert [Path(name).name for name in rows.file] == ["mine_0.png", "mine_1.png", "mine_2.png"]
    np.testing.assert_allclose(rows.negative_elbo, rows.distortion + rows.rate)
    assert f"{rows.negative_elbo.max():,.1f} nats (above 100 % of validation images)" in done.stdout
    assert "a rank is no diagnosis" in done.stdout
    unseen = torch.cat([batch.x for batch, _ in predictor.batches("val")])
    found = scores.scores(predictor, unseen)
    order = found.costs.total.argsort()
    np.testing.assert_allclose(found.rank[order], torch.arange(len(order)) / len(order))
    monkeypatch.setattr(scores, "REFERENCES", 10)  # quick: from here on no rank matters
    alone = scores.scores(predictor, unseen[7:8])  # a score does not depend on the other pictures
    np.testing.assert_allclose(alone.costs.total, found.costs.total[7:8], rtol=1e-5)
    with torch.no_grad():
        inference = predictor.model.infer(unseen[:50], 200)
        terms = elbo_terms(unseen[:50], inference)
    assert found.costs.total[:50].mean().item() == pytest.approx(-terms.elbo.mean().item(), rel=0.02)
    known, place = predictor.datamodule.pool, predictor.datamodule.splits.train[3]
    again = scores.scores(predictor, known.images[place][None] / 255)
    assert again.distance.item() == pytest.approx(0, abs=1e-4)


def test_negatives_are_recognized_and_turned(predictor, tmp_path):
    """People draw digits black on white."""
    white = np.full((16, 16), 255, np.uint8)
    white[4:12, 7:9] = 0
    Image.fromarray(white).save(tmp_path / "one.png")
    own = own_images.read(str(tmp_path / "one.png"), predictor.datamodule)
    assert "invert=true inverts them" in scores.look_like_negatives(predictor, own)
    turned = own_images.read(str(tmp_path / "one.png"), predictor.datamodule, invert=True)
    torch.testing.assert_close(turned.x, 1 - own.x)
    assert scores.look_like_negatives(predictor, turned._replace(inverted=False)) is None
    assert scores.look_like_negatives(predictor, own._replace(inverted=True)) is None


def test_principal_directions_are_those_of_the_codes():
    torch.manual_seed(0)
    turn, _ = torch.linalg.qr(torch.randn(5, 5))
    codes = torch.randn(20_000, 5) * torch.tensor([3.0, 2.0, 1.0, 0.1, 0.0]) @ turn.T + 7
    found = posterior.principal_directions(codes, 3)
    np.testing.assert_allclose(found.deviation, [3, 2, 1], rtol=0.03)
    np.testing.assert_allclose((found.axes @ turn)[:, :3].abs(), np.eye(3), atol=0.05)
    np.testing.assert_allclose(found.share, np.array([9, 4, 1]) / 14.01, rtol=0.05)
    assert posterior.principal_directions(torch.ones(3, 1), 8).share.tolist() == [0]


def test_directions_start_at_the_mean_of_the_training_codes(predictor, monkeypatch):
    seen = []

    def keep(predictor, z):
        seen.append(z)
        return torch.zeros(*z.shape[:2], 1, 8, 8)

    monkeypatch.setattr(traversals, "decode_table", keep)
    traversals.directions(predictor)
    codes = predictor.codes("train").mean
    (z,) = seen
    torch.testing.assert_close(z[:, 3], codes.mean(0).expand(len(z), -1))
    along = (codes - codes.mean(0)) @ (z[0, 6] - z[0, 3]) / (z[0, 6] - z[0, 3]).norm()
    assert (z[0, 6] - z[0, 3]).norm().item() == pytest.approx(2 * along.std(correction=0).item(), rel=1e-4)


def test_own_pictures_have_the_depth_of_the_runs_images(tmp_path, caplog):
    ramp = np.linspace(0, 4095, 16 * 16).reshape(16, 16)
    for folder, values in {"run/full": ramp, "own/dark": ramp / 8, "own/deeper": 16 * ramp}.items():
        (tmp_path / folder).parent.mkdir(exist_ok=True)
        Image.fromarray(values.astype(np.uint16)).save(tmp_path / f"{folder}.png")
    options = ("data=image_folder", "data.channels=1", "data.image_size=16", f"data.cache_dir={tmp_path}/cache")
    datamodule, _ = built(*QUICK, *options, f"data.root={tmp_path}/run")
    (dark,) = own_images.read(f"{tmp_path}/own", datamodule).x
    np.testing.assert_allclose(dark[0], ramp / 8 / 4095, atol=1.5 / 255)
    assert "deeper.png: its values go from 0 to 65,520, not from 0 to 4,095" in caplog.text
    digits, _ = built(*QUICK)  # their images have 8 bits: the pictures' own depth counts
    np.testing.assert_allclose(own_images.read(f"{tmp_path}/run", digits).x[0, 0], ramp / 4095, atol=1.5 / 255)


def test_pictures_whose_names_are_no_utf8(picture_folder, predictor, tmp_path):
    root = picture_folder({"plain.png": (16, 16)})
    shutil.copy(root / "plain.png", os.fsencode(root) + b"/caf\xe9.png")
    own = own_images.read(str(root), predictor.datamodule)
    assert [Path(name).name for name in own.names] == [r"caf\xe9.png", "plain.png"]
    for _, figure in scores.draw(predictor, own, scores.scores(predictor, own.x)):
        gallery.write(figure, tmp_path / "a.png")
    for form in ("csv", "npz"):
        *_, path = export.export(predictor, own, tmp_path, form)
        names = (
            np.load(path)["name"].tolist() if form == "npz" else pd.read_csv(path, encoding="utf-8")["name"].tolist()
        )
        assert names == own.names


def test_noise_is_what_was_asked_for(predictor):
    x = torch.full((1, 1, 200, 200), 0.5)
    assert (denoising.add_noise(x, 0.1, Pixels.GREY) - x).std().item() == pytest.approx(0.1, rel=0.05)
    flipped = denoising.add_noise((torch.rand_like(x) < 0.3).float(), 0.2, Pixels.BINARY)
    assert set(flipped.unique().tolist()) == {0.0, 1.0}
    zeros = torch.zeros_like(x)
    assert denoising.add_noise(zeros, 0.2, Pixels.BINARY).mean().item() == pytest.approx(0.2, rel=0.1)
    for noise in (0, -1, "much"):
        with pytest.raises(UserError, match=f"noise={noise}"):
            denoising.check_noise(noise, predictor.datamodule)
    ((name, figure),) = denoising.draw(predictor, None, 0.3)
    assert name == "denoising"
    assert "dB before" in figure.get_suptitle()
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["original", "noisy", "reconstruction"]


@pytest.mark.parametrize(("count", "rows", "columns"), [(16, 4, 8), (19, 4, 8), (3, 2, 3)])
def test_stacks_put_reconstructions_below_originals(count, rows, columns):
    originals = torch.linspace(0, 0.4, count).view(-1, 1, 1, 1).expand(count, 1, 64, 64)
    picture = grids.stacks([originals, originals + 0.5])
    pair = 2 * 66 + 2 + grids.PAIR_GAP
    assert picture.shape == (3, rows // 2 * pair - grids.PAIR_GAP, columns * 66 + 2)
    for top in range(0, picture.shape[1], pair):
        above, below = (picture[0, top + i * 66 + 30, 30::66] for i in (0, 1))
        torch.testing.assert_close(below, above + 0.5)
    assert grids.grid(torch.rand(4, 1, 8, 8)).shape[1] > 64
    white = grids.grid(torch.ones(2, 1, 64, 64))  # has a frame on white paper
    assert white[:, 30, 30].tolist() == [1] * 3
    assert white[:, 30, [0, 66, 132]].max() < 0.9
    assert grids.picture(picture, "title").axes[0].get_title() == "title"


def test_labels_stand_at_the_middle_of_their_rows_and_columns():
    figure = grids.labelled(torch.rand(2, 3, 1, 64, 64), "title", ["a", "b"], ["x", "y", "z"], "across", "down")
    axes = figure.axes[0]
    assert axes.get_yticks().tolist() == [1 + 33, 1 + 33 + 66]
    assert axes.get_xticks().tolist() == [1 + 33, 1 + 33 + 66, 1 + 33 + 132]
    assert (axes.get_xlabel(), axes.get_ylabel(), figure.get_suptitle()) == ("across", "down", "title")


def test_few_pictures_have_a_figure_of_a_sensible_size_and_no_empty_frames():
    for count, widest in ((1, 7), (7, 12)):
        rows = {"original": torch.ones(count, 1, 64, 64), "reconstruction": torch.ones(count, 1, 64, 64)}
        figure = grids.stacked(rows, "title", ["a.png"] * count, 6)
        width, height = figure.get_size_inches()
        assert 5 < width < widest
        assert height < 8
    image = figure.axes[-1].images[0].get_array()
    assert image.shape == figure.axes[0].images[0].get_array().shape
    assert image[:, 68:].min() == 1  # beside the seventh there is white paper


def test_class_names_do_not_cover_each_other():
    places = torch.tensor([[0.5, 0.5], [0.52, 0.5], [0.49, 0.51], [0.9, 0.5], [0.5, 0.5]])
    moved = latents.apart(places, (0.1, 0.04))
    assert torch.equal(moved[:, 0], places[:, 0])
    assert moved[3].tolist() == places[3].tolist()  # it overlapped none
    heights = moved[[0, 1, 2, 4], 1].sort().values
    assert (heights.diff() > 0.039).all()


def test_loss_curves_show_what_was_logged():
    epochs = [{"epoch": e, "train/elbo": -10.0 + e, "val/elbo": -11.0 + e, "val/rate": 1.0} for e in range(3)]
    figure = curves.loss_curves(epochs, {"elbo": "pseudo-elbo", "distortion": "pseudo-distortion"})
    lines = {line.get_label(): line.get_ydata().tolist() for axes in figure.axes for line in axes.get_lines()}
    assert lines["−pseudo-elbo, training"] == [10, 9, 8]
    assert lines["−pseudo-elbo, validation"] == [11, 10, 9]
    assert lines["rate, validation"] == [1, 1, 1]
    assert "rate, training" not in lines
    assert all(axes.get_lines()[0].get_xdata().tolist() == [1, 2, 3] for axes in figure.axes)


def test_a_loss_that_is_not_the_elbo_is_drawn_too():
    epoch = {"val/elbo": -90.0, "val/distortion": 70.0, "val/rate": 20.0}
    names = {"elbo": "elbo", "distortion": "distortion"}
    for loss, drawn in ((90.0, []), (88.0, [[88.0]])):
        figure = curves.loss_curves([{"epoch": 0, **epoch, "val/loss": loss}], names)
        lines = [line for line in figure.axes[0].get_lines() if line.get_label() == "loss, validation"]
        assert [line.get_ydata().tolist() for line in lines] == drawn


def test_loss_curves_of_one_epoch_have_no_other_and_hide_no_dot():
    epoch = {f"{stage}/{name}": -30.0 for stage in ("train", "val") for name in ("elbo", "distortion", "rate")}
    figure = curves.loss_curves([{"epoch": 0, **epoch}], {"elbo": "pseudo-elbo", "distortion": "pseudo-distortion"})
    FigureCanvasAgg(figure).draw()
    for axes in figure.axes:
        low, high = axes.get_xlim()
        assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1]
        assert axes.get_legend().get_window_extent().y1 < axes.get_window_extent().y0
        assert figure.bbox.contains(*axes.get_legend().get_window_extent().p0)


def test_dots_of_codes_lie_where_they_should_in_the_colours_of_their_classes():
    image = latents.dots(torch.tensor([[0.0, 0.0], [2.0, 4.0], [0.0, 4.0]]), torch.tensor([0, 1, -1]), 101)
    assert image.shape == (3, 101, 101)
    first, second, none = ([int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in ("#332288", "#88CCEE", "#BBBBBB"))
    for x, y, colour in ((26, 97, first), (74, 1, second), (26, 1, none)):  # the first latent to the right, upwards
        torch.testing.assert_close(image[:, y, x], torch.tensor(colour))
    assert (image.sum(0) < 3).sum() == 12


def test_an_autoencoder_is_explored_and_scored_by_its_distortion():
    datamodule, model = built("model=conv_tiny", "data.image_size=8", "loss=reconstruction")
    predictor = Predictor(model.eval(), datamodule)
    datamodule.setup("test")
    epochs = [{"epoch": 0, "train/distortion": 9.0, "val/distortion": 8.0}]
    figure = curves.loss_curves(epochs, model.metric_names(Pixels.GREY))
    assert [axes.get_title() for axes in figure.axes] == ["Distortion"]
    x = overview.originals_of(predictor, 3)
    drawn = {name for name, _ in gallery.draw(predictor, PICTURES, explicit=False)}
    assert drawn == {*PICTURES} - {"rates", "losses"}  # its latents are chosen by their variance
    own = own_images.Pictures(["a.png", "b.png", "c.png"], (255 * x).byte(), x, "scans")
    scored = scores.scores(predictor, x)
    rows = scores.table(predictor, own, scored)
    assert not {"negative_elbo", "rate"} & {*rows.columns}
    assert rows.distortion.tolist() == pytest.approx(scored.costs.total.tolist())
    said = scores.words(predictor, rows)
    assert said.startswith("pseudo-distortion of each picture")
    assert f"{rows.distortion.max():,.1f} nats" in said.splitlines()[1]
