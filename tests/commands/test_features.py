"""A model that sees features: trained from the command line, then evaluated and explored as any run is."""

import re

import pytest
import torch
from PIL import Image

from src.evaluation.samples import samples
from src.evaluation.suite import evaluate
from src.evaluation.table import evaluation_table
from src.exploration import denoising, gallery, own_images, scores
from src.reporting.results import read_results
from src.reporting.words import elbo_name
from src.runs.load import load_run, predictor_of
from src.system.errors import NotApplicable
from tests.helpers import QUICK, cli


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = tmp_path_factory.mktemp("features") / "run"
    settings = (*QUICK[1:], "model=conv_features", "model.encoder.widths=[8,16]")
    done = cli(*settings, "trainer.max_epochs=1", f"hydra.run.dir={run}")
    assert done.returncode == 0, done.stdout
    return run, done


def test_a_density_of_features_is_named_so_on_the_terminal_and_in_reports(trained):
    run, done = trained
    assert "test −elbo of features " in done.stdout
    assert "pseudo" not in done.stdout
    assert "bits" not in done.stdout
    assert elbo_name(read_results(run.parent).table.iloc[0]) == "elbo of features"
    for picture in ("reconstructions", "samples", "losses", "strip"):
        with Image.open(run / "figures" / f"{picture}.png") as image:
            assert len(image.convert("L").getcolors()) > 10, picture


def test_what_compares_pixels_says_that_there_are_none(trained, tmp_path):
    predictor = predictor_of(load_run(trained[0]), "test", None, "cpu", str(tmp_path))
    figures = dict(evaluate(predictor, {"reconstruction": {}, "representation": {"train_images": 200}}))
    assert "PSNR and SSIM compare pixels, and this model sees features" in figures["reconstruction"]["skipped"]
    assert figures["representation"]["linear_probe"]["accuracy"] > 0.2  # a tenth by chance
    bound = {"log_likelihood": 1.0, "standard_error": 0.1, "gap": 1.0, "gap_standard_error": 0.1, "samples": 2}
    words = evaluation_table(
        {"bound": bound | {"median_effective_samples": 1.0, "images": 9}},
        predictor.model.metric_names(predictor.datamodule.pixels),
    )
    assert "(likelihood of features, K = 2)" in words
    with pytest.raises(NotApplicable, match="Inception's features are those of pixels, and this model sees features"):
        samples(predictor, images=10, bootstrap=2, components=2, inception=True)
    with pytest.raises(NotApplicable, match="noise=0.1 is added to pixels"):
        denoising.check_noise(0.1, predictor.datamodule)


def test_pictures_show_what_the_model_sees(trained, picture_folder, monkeypatch):
    monkeypatch.setattr(scores, "REFERENCES", 10)
    run = load_run(trained[0])
    predictor = predictor_of(run, "test", None, "cpu", "cache")
    drawn = dict(gallery.draw(predictor, gallery.PICTURES, explicit=False))
    assert set(gallery.PICTURES) - set(drawn) == {"manifold"}
    own = own_images.read(str(picture_folder({"0.png": (20, 16)})), predictor.datamodule)
    found = scores.scores(predictor, own.x)
    (page,) = dict(scores.draw(predictor, own, found)).values()
    assert "−elbo of features" in re.sub(r"\s+", " ", page.get_suptitle())
    module = predictor.datamodule
    itself = scores.scores(predictor, module.seen(module.splits.train[:2]))
    torch.testing.assert_close(itself.distance, torch.zeros(2), atol=1e-3, rtol=0)  # nearest to itself, as it is seen
    assert itself.nearest.tolist() == module.splits.train[:2].tolist()
