"""The plan of a sweep: its folder, the names of its points, and the overrides of each."""

import re
import sys
from pathlib import Path

import pytest
from hydra.conf import ConfigSourceInfo
from hydra.core.hydra_config import HydraConfig

from hydra_plugins.sweep_callback import Sweep, last_words
from src.reporting.results import read_results
from src.sweeps.plan import Plan, plan_of, point_name, sweep_folder
from src.sweeps.points import program_of
from src.system.errors import UserError
from src.system.files import quoted
from tests.helpers import multirun_config
from tests.points import trade, write_grid, write_point


def test_a_sweep_is_split_into_what_is_swept_and_what_is_fixed():
    config = multirun_config("model.latent_dim=2,8", "model=lstm", "model.kl_weight=1", "sweep=rate_distortion")
    plan = plan_of(config, "typed")
    assert plan.swept == {"model.latent_dim": "2,8"}  # the preset sweeps kl_weight, the command line fixes it
    assert plan.fixed == {"model": "lstm", "model.kl_weight": "1"}


def test_the_folder_of_a_sweep_follows_from_its_command():
    def folder(*overrides):
        config = multirun_config(*overrides)
        return sweep_folder(plan_of(config, ""), config)

    one = folder("model=lstm", "data=mnist", "model.latent_dim=2,8", "seed=0,1")
    assert one.parent == Path("outputs/multirun/mnist/lstm")
    assert one.name.startswith("latent_dim-seed-")
    assert one == folder("seed=0,1", "model.latent_dim=2,8", "model=lstm", "data=mnist")
    others = [
        folder("model=lstm", "data=mnist", "model.latent_dim=2,8", "seed=0,2"),
        folder("model=lstm", "data=mnist", "model.latent_dim=2,8", "seed=0,1", "model.depth=2"),
        folder("model=lstm,conv_tiny", "data=mnist", "model.latent_dim=2,8", "seed=0,1"),
    ]
    assert len({one, *others}) == 4


@pytest.mark.parametrize(
    ("overrides", "swept", "name"),
    [
        (["a.latent_dim=2", "b=1"], ["a.latent_dim"], "latent_dim-2"),
        (["a.lr=2", "b.lr=1e-3"], ["b.lr", "a.lr"], "a.lr-2__b.lr-1e-3"),
        (["model=lstm", "seed=0", "z=1"], ["seed", "model", "z"], "model-lstm__z-1__seed-0"),
        (["seed=0"], [], "point"),
    ],
)
def test_a_point_is_called_after_its_swept_values(overrides, swept, name):
    assert point_name(overrides, dict.fromkeys(swept)) == name


def test_names_of_points_are_plain_short_and_different():
    values = ["[1,2]", "[1,3]", "'a b'", "x/../../y", "1" * 400, "1" * 399 + "2"]
    names = [point_name([f"widths={value}"], {"widths": None}) for value in values]
    assert len(set(names)) == len(values)
    for name in names:
        assert len(name) < 200
        assert all(c.isalnum() or c in "._+-" for c in name)


def test_hydra_reads_a_quoted_path_back():
    from hydra.core.override_parser.overrides_parser import OverridesParser

    for path in ("plain/folder", "it's, [odd]=x", "back\\slash", "a\\'b\\"):
        parsed = OverridesParser.create().parse_override(f"hydra.run.dir={quoted(Path(path))}")
        assert parsed.value() == path


def test_a_damaged_plan_is_one_clear_line(tmp_path):
    assert Plan.load(tmp_path) is None
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(UserError, match=r"sweep.json is damaged"):
        Plan.load(tmp_path)


def test_points_get_the_options_of_hydra_but_not_those_of_the_sweep():
    config = multirun_config("hydra.verbose=true", "hydra.launcher.slots=2", "hydra.sweep.dir=x")
    program = program_of(config.hydra)
    assert program[:2] == ["src.train", "--config-name"]
    assert program[-1] == "hydra.verbose=true"


def test_a_preset_that_sets_more_than_the_sweep_is_refused(tmp_path):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "mine.yaml").write_text("hydra: {}\ntrainer: {max_epochs: 3}\n")
    config = multirun_config("model.latent_dim=2,3")
    config.hydra.runtime.choices.sweep = "mine"
    config.hydra.runtime.config_sources.append(ConfigSourceInfo(str(tmp_path), "file", "test"))
    with pytest.raises(UserError, match="sets trainer: a preset only says what is swept"):
        plan_of(config, "")


def test_runs_that_are_only_tried_go_apart():
    for trainer, folder in {"cpu": "outputs", "debug": "outputs/debug"}.items():
        config = multirun_config(f"trainer={trainer}")
        HydraConfig.instance().set_config(config)
        try:
            assert config.hydra.run.dir.startswith(f"{folder}/digits/conv_deep/2")
        finally:
            HydraConfig.instance().cfg = None
        assert config.hydra.sweep.dir == f"{folder}/multirun"


def test_the_grid_of_a_command_is_known_beforehand():
    plan = plan_of(multirun_config("sweep=rate_distortion", "model.kl_weight=1,2", "seed=0,1", "model=lstm"), "")
    assert len(plan.points) == 3 * 2 * 2
    assert plan.points[1] == ["model.latent_dim=2", "model.kl_weight=1", "seed=1", "model=lstm"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("trainer=gpu", "trainer.devices=3"), "trainer.devices=3 GPUs a point, and 2 are here"),
        (("trainer=gpu", "trainer.devices=1,2"), "trainer.devices cannot be swept"),
    ],
)
def test_a_sweep_that_this_machine_cannot_run_leaves_no_folder(words, why, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(sys, "argv", ["train"])
    config = multirun_config("model.latent_dim=2,3", *words)
    config.hydra.sweep.dir = str(tmp_path)
    with pytest.raises(SystemExit, match=f"error: {why}"):
        Sweep().on_multirun_start(config)
    assert not list(tmp_path.iterdir())
    config = multirun_config("model.latent_dim=2,3", "trainer=gpu", "trainer.devices=2")
    config.hydra.sweep.dir = str(tmp_path)
    Sweep().on_multirun_start(config)
    assert (Path(config.hydra.sweep.dir) / "sweep.json").exists()


def test_the_last_words_of_a_sweep_are_how_many_are_done_and_which_is_best(tmp_path, capsys):
    grid = {"model.latent_dim": [2, 4], "model.kl_weight": [0.5, 1], "seed": [0, 1]}
    write_grid(tmp_path, grid, lambda typed: {**trade(typed), "test": {}})  # without what figures need
    config = multirun_config("model.latent_dim=2,4")
    config.hydra.sweep.dir = str(tmp_path)
    Sweep().on_multirun_end(config)
    said = capsys.readouterr().out.splitlines()
    # Two seeds with elbos that are 0.3 apart: half of that times Student's 12.71 for one degree of freedom.
    best = r"best latent_dim=4, kl_weight=0.5: val −pseudo-elbo \d+\.\d\d ± 1.91 \(2 seeds\)"
    assert re.fullmatch(rf"8 of 8 done; {best}; report: {tmp_path}/report/index.html", said[-1])

    loss = {"best": {"val/loss": 1.0}}
    write_grid(
        tmp_path / "loss", {"model.kl_weight": [0.5, 1]}, lambda typed: {**loss, "kl_weight": typed["model.kl_weight"]}
    )
    assert last_words(read_results(tmp_path / "loss")) == ["2 of 2 done"]
    write_point(tmp_path / "none", [], ["model.latent_dim=2"], status="failed", error="no")
    assert last_words(read_results(tmp_path / "none")) == ["0 of 1 done"]
