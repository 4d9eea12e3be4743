"""The table of a report: the points' own numbers, whatever started them."""

import json
import math
from pathlib import Path

import pytest

from src.reporting.contact_sheet import tiles
from src.reporting.levels import as_stored
from src.reporting.report import write_report
from src.reporting.results import plain, read_results
from src.reporting.statistics import configurations
from src.sweeps.plan import Plan
from src.sweeps.status import compared
from src.system.locks import lock
from tests.points import record, trade, write_grid, write_point


def test_the_table_holds_the_points_own_numbers(tmp_path):
    grid = {"model.latent_dim": [2, 4, 8], "model.kl_weight": [0.5, 1.0, 4.0], "seed": [0, 1, 2]}
    written = write_grid(tmp_path, grid, trade, fixed=[("experiment", "mnist_lstm")])
    results = read_results(tmp_path)
    assert results.swept == ["model.latent_dim", "model.kl_weight"]
    assert len(results.table) == len(written) == 27
    for row in results.table.itertuples():
        own = written[row.point]
        assert (row.test_elbo, row.test_rate, row.value) == (
            own["test"]["elbo"],
            own["test"]["rate"],
            own["best"]["val/elbo"],
        )
        assert (row.wall_seconds, row.process_mib, row.fingerprint) == (60.0, 900.0, "f" * 32)
        assert row.whole_seconds == 90.0
    assert results.table["model.kl_weight"].tolist()[:4] == [0.5, 0.5, 0.5, 1.0]  # grid order
    assert results.differences() == []


def test_values_are_numbers_where_they_can_be():
    assert [plain(v) for v in ("2", "0.5", "1e-3", "lstm", "[1,2]", None)] == [2, 0.5, 0.001, "lstm", "[1,2]", None]


def test_runs_that_were_started_one_by_one_are_compared_by_what_was_typed(tmp_path):
    for seed, epochs in ((0, 5), (1, 7)):
        run = tmp_path / f"2026-11-2{seed}"
        (run / ".hydra").mkdir(parents=True)
        (run / ".hydra" / "overrides.yaml").write_text(f"- model=lstm\n- trainer.max_epochs={epochs}\n")
        (run / "metrics.json").write_text(json.dumps(record(epochs=epochs)))
    results = read_results(tmp_path)
    assert results.swept == ["trainer.max_epochs"]
    assert results.table["trainer.max_epochs"].tolist() == [5, 7]


def single_run(folder: Path, overrides: list[str], choices: dict[str, str], **metrics) -> None:
    """A run that nobody swept."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(json.dumps(overrides))
    (folder / ".hydra" / "hydra.yaml").write_text(json.dumps({"hydra": {"runtime": {"choices": choices}}}))
    (folder / "metrics.json").write_text(json.dumps(record(**metrics)))


def test_a_key_that_some_runs_do_not_name_is_looked_up_or_left_open(tmp_path):
    single_run(tmp_path / "a", ["model=lstm"], {"model": "lstm"})
    single_run(tmp_path / "b", ["model=conv_tiny", "optimizer.lr=1e-3"], {"model": "conv_tiny"})
    single_run(tmp_path / "c", ["experiment=mnist_conv_wide"], {"model": "conv_wide"}, test={"elbo": -90.0})
    results = read_results(tmp_path)
    assert results.table.model.tolist() == ["lstm", "conv_tiny", "conv_wide"]
    assert results.table["optimizer.lr"].tolist() == ["–", 0.001, "–"]
    assert results.differences() == []
    assert "3 finished" in write_report(results).read_text()


def test_settings_that_another_command_changed_are_not_taken_for_seeds(tmp_path):
    def undrawn(typed):
        return {**trade(typed), "test": {}}

    write_grid(tmp_path, {"model.latent_dim": [2, 8], "model.kl_weight": [1.0, 4.0]}, undrawn)
    write_grid(tmp_path, {"model.latent_dim": [16, 32]}, undrawn)
    results = read_results(tmp_path)
    assert results.swept == ["model.latent_dim", "model.kl_weight"]
    assert configurations(results.finished, results.swept, ["test_elbo"]).seeds.tolist() == [1] * 6
    assert "6 finished" in write_report(results).read_text()


def test_points_that_have_not_begun_are_waited_for(tmp_path):
    asked = [[f"model.kl_weight={w}"] for w in (1, 2)]
    write_point(tmp_path, ["model.kl_weight"], asked[0], 0, record())
    Plan({"model.kl_weight": "1,2"}, {}, "", asked).save(tmp_path)
    results = read_results(tmp_path)
    assert results.table.status.tolist() == ["finished", "waiting"]
    assert "1 finished, 1 waiting" in write_report(results).read_text()


def test_what_several_attempts_took_together_is_not_known(tmp_path):
    for place, (status, attempts) in enumerate((("finished", 1), ("finished", 2), ("running", 1))):
        metrics = record() if status == "finished" else None
        run = write_point(tmp_path, ["seed"], [f"seed={place}"], place, metrics, status)
        written = {**json.loads((run / "point.json").read_text()), "attempts": attempts}
        (run / "point.json").write_text(json.dumps(written | ({"seconds": 0.0} if status == "running" else {})))
    single_run(tmp_path / "alone", ["seed=3"], {})
    whole = dict(read_results(tmp_path).table[["point", "whole_seconds"]].itertuples(index=False))
    assert [point for point, seconds in whole.items() if seconds == 90.0] == ["seed-0"]
    assert sum(math.isnan(seconds) for seconds in whole.values()) == 3


def test_the_loss_of_different_kl_weights_chooses_nothing(tmp_path):
    def figures(typed):
        return {
            "test": {},
            "kl_weight": typed["model.kl_weight"],
            "best": {"val/loss": 10.0 * typed["model.kl_weight"]},
        }

    write_grid(tmp_path, {"model.kl_weight": [0.5, 1.0]}, figures)
    page = write_report(read_results(tmp_path)).read_text()
    assert "val/loss has another meaning at every KL weight" in page
    assert '<div class="best">' not in page


def test_points_are_compared_by_what_they_say_at_the_epoch_they_kept(tmp_path):
    """As by versions that had one metric for both, whose records hold that alone."""

    def figures(typed):
        loss = {0.5: 60.0, 1.0: 100.0}[typed["model.kl_weight"]]
        best = {"val/loss": loss, "val/elbo": {0.5: -102.0, 1.0: -100.0}[typed["model.kl_weight"]]}
        return {"test": {}, "kl_weight": typed["model.kl_weight"], "best": best, "config": {"compare_by": "val/elbo"}}

    write_grid(tmp_path, {"model.kl_weight": [0.5, 1.0]}, figures)
    results = read_results(tmp_path)
    assert results.table.value.tolist() == [-102, -100]
    assert results.table.maximize.all()
    assert "Next: kl_weight = 0.5." in write_report(results).read_text().split("Chosen by val −pseudo-elbo:")[1]


def test_a_run_without_what_it_is_compared_by_is_compared_by_nothing():
    """Another metric in its place would be searched in the wrong direction."""
    best = {"val/loss": 60.0, "val/elbo": -100.0}
    assert compared({"best": best, "config": {"compare_by": "val/bits_per_dim"}}) == ("val/bits_per_dim", None)
    assert compared({"best": best, "config": {"compare_by": "val/elbo"}}) == ("val/elbo", -100.0)
    assert compared({"best": best, "config": {}}) == ("val/loss", 60.0)
    assert compared({}) == (None, None)


def test_memory_is_that_of_the_gpu_only_where_all_points_were_on_gpus(tmp_path):
    peak = {"peak_memory_mib": {"process": 900.0, "gpu": 300.0}}
    devices = {0: "1 x cpu", 1: "1 x cuda"}
    for name, seeds, memory in (("mixed", [0, 1], [900.0, 900.0]), ("gpu", [1], [300.0])):
        write_grid(tmp_path / name, {"seed": seeds}, lambda typed: {**peak, "devices": devices[typed["seed"]]})
        results = read_results(tmp_path / name)
        write_report(results)
        assert results.table.memory_mib.tolist() == memory


def test_numbers_of_different_kinds_are_kept_apart_and_it_is_said_why(tmp_path):
    def figures(typed):
        binary = typed["data.binarize"] == "threshold"
        return {"pseudo_likelihood": not binary, "data": {"name": "mnist", "fingerprint": str(int(binary)) * 32}}

    write_grid(tmp_path, {"data.binarize": ["none", "threshold"], "seed": [0, 1]}, figures)
    results = read_results(tmp_path)
    assert [len(family) for family in results.families()] == [2, 2]
    assert len(results.differences()) == 2
    assert "binarization" in results.differences()[0]
    page = write_report(results).read_text()
    assert "Not all of these numbers may be compared" in page
    assert "no best point over all" in page
    assert page.count('<div class="best">') == 2


def test_bits_of_densities_and_of_probabilities_compare(tmp_path):
    """A density on [0, 1] of 8 + b bits a dimension and probabilities of b bits cost the same."""
    density = -100.0 + 64 * math.log(256)
    kinds = {"student": ("dequantized", "d" * 32, density), "logistic_mixture": ("grey", "a" * 32, -99.0)}

    def figures(typed):
        pixels, fingerprint, elbo = kinds[typed["likelihood@model.likelihood"]]
        data = {"name": "mnist", "fingerprint": fingerprint, "stored_fingerprint": "a" * 32, "image_shape": [1, 8, 8]}
        return {
            "test": {"elbo": elbo, "distortion": -elbo - 20.0, "rate": 20.0, "bits_per_dim": 2.25},
            "best": {"val/bits_per_dim": 2.0, "val/elbo": elbo},
            "config": {"compare_by": typed.get("compare_by", "val/bits_per_dim")},
            **{"pixels": pixels, "likelihood": typed["likelihood@model.likelihood"], "data": data},
            "pseudo_likelihood": False,
        }

    grid = {"likelihood@model.likelihood": [*kinds]}
    write_grid(tmp_path / "bits", grid, figures)
    write_grid(tmp_path / "nats", {**grid, "compare_by": ["val/elbo"]}, figures)
    assert [len(family) for family in read_results(tmp_path / "nats").families()] == [1, 1]
    results = read_results(tmp_path / "bits")
    assert not results.differences()
    (family,) = results.families()
    assert as_stored(family).test_elbo.tolist() == pytest.approx([-100, -99])
    assert as_stored(family).test_distortion.tolist() == pytest.approx([80, 79])
    page = write_report(results).read_text()
    assert "counted as probabilities of their 256 levels" in page
    assert page.count('<div class="best">') == 1
    assert [tile["figures"] for tile in tiles(results)] == 2 * ["2.25 bits per dimension"]


def test_a_run_that_trains_is_running_and_a_config_that_has_no_end_is_none(tmp_path):
    levels = "".join(f"b{i}: &b{i} [{', '.join([f'*b{i - 1}'] * 9)}]\n" for i in range(1, 12))
    for name in ("trains", "stopped"):
        (tmp_path / name / ".hydra").mkdir(parents=True)
        (tmp_path / name / ".hydra" / "overrides.yaml").write_text("- model=lstm\n")
        (tmp_path / name / ".hydra" / "config.yaml").write_text(f"b0: &b0 [x, x]\n{levels}")
    single_run(tmp_path / "done", ["model=conv_tiny"], {"model": "conv_tiny"})
    held = lock(tmp_path / "trains")
    results = read_results(tmp_path)
    held.close()
    assert dict(zip(results.table.point, results.table.status, strict=True)) == {
        "done": "finished",
        "stopped": "interrupted",
        "trains": "running",
    }
    assert write_report(results).exists()
