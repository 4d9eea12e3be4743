"""Mistakes that are reported before torch is imported: every key, every kind of mistake, one line each."""

import os
import re
import subprocess
import sys
import time
from itertools import zip_longest

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from src.evaluation.suite import PARTS
from src.exploration.gallery import PICTURES
from src.networks.blocks import ACTIVATIONS
from src.runs.folder import flatten
from src.system import configs, keys
from src.system.configs import check_config, check_sweep, expand_home, parsed
from src.system.errors import UserError
from src.system.help import help_of
from src.system.kinds import Anything, Choice, ListOf, Number, OneGroup, Text, Whole, one_or_each, or_null
from src.system.overrides import check_options, refusal
from src.training.recipe import PRECISIONS
from tests.helpers import EXPERIMENTS, ROOT, assert_one_line_error, cli, command, multirun_config

CONF = ROOT / "conf"
RUN = "tests/fixtures/sweep/latent_dim-2__seed-0"
GROUPS = ("data", "optimizer", "schedule", "trainer", "callbacks", "logger")


def answer(*words: str, of: str = "train") -> str | None:
    """Return the message of a command for a mistake, None if there is none."""
    try:
        check_options(words)
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose(of, overrides=[w for w in words if not w.startswith("-")], return_hydra_config=True)
        check_config(config, of)
    except Exception as error:
        return refusal(error, CONF, of, words)
    return None


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (Whole(1, 3), [1, 3], [0, 4, 1.0, True, None, "1", [1]]),
        (Number(above=0, below=1), [0.5], [0, 1, float("nan"), float("inf"), "0.5", True]),
        (Number(at_least=0), [0, 1e9], [-1e-9, float("inf")]),
        (Choice((1, 3)), [1, 3], [True, 1.0, "1", 2]),
        (Choice((True, "auto")), [True, "auto"], [1, "true"]),
        (Text(), ["a", "two\nlines"], ["", 3, None, True]),
        (OneGroup(), [r"(\d+)"], [r"\d+", "(a)(b)", "(", 3]),
        (ListOf(Whole(1), length=2), [[1, 2]], [[1], [1, 0], 1, "12"]),
        (one_or_each(Whole(1)), [1, [1, 2]], [0, [], [1, "a"]]),
        (or_null(Whole(1)), [None, 1], [0]),
    ],
)
def test_a_kind_takes_its_values_and_no_others(kind, good, bad):
    assert all(kind.takes(value) for value in good)
    assert [value for value in bad if kind.takes(value)] == []
    assert kind.words


def test_every_key_of_every_config_has_a_kind_and_a_value_of_it(monkeypatch):
    monkeypatch.setattr(configs, "find_spec", lambda package: package)  # loggers of packages that may not be here
    groups = [[f"{group}={path.stem}" for path in CONF.glob(f"{group}/*.yaml")] for group in ("model", *GROUPS)]
    for part in ("posterior", "prior", "likelihood"):
        groups.append([f"{part}@model.{part}={path.stem}" for path in CONF.glob(f"{part}/*.yaml")])
    assert sum(map(len, groups)) > 20
    together = [[*filter(None, choices)] for choices in zip_longest(*groups)]  # choices of different groups
    for words in [*together, *([f"experiment={name}"] for name in EXPERIMENTS)]:
        given = [*words, *(["data.root=x"] if "data=image_folder" in words else [])]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("train", overrides=given, return_hydra_config=True)
        check_config(config, "train")
        for key in leaves(config):
            known = not isinstance(keys.kind_of(key), Anything | None) or key.startswith("hydra")
            assert known, f"src/system/training_keys.py does not know {key}"
    assert [answer(f"run={RUN}", of=of) for of in ("evaluate", "explore")] == [None, None]
    for path in CONF.glob("data/*.yaml"):
        here = ["data.root=tests"] if path.stem in ("image_folder", "chest_xray") else []
        assert answer(f"data={path.stem}", *here, of="audit") is None
    assert [answer(of="benchmark"), answer("folder=tests", of="report")] == [None, None]


def leaves(config, at=""):
    for name in config:
        if hasattr(config._get_node(name), "items") and config[name] is not None:
            yield from leaves(config[name], f"{at}{name}.")
        else:
            yield f"{at}{name}"


def test_the_table_names_the_parts_pictures_activations_and_precisions_of_the_code():
    assert list(PARTS) == list(keys.PARTS)
    assert list(PICTURES) == list(keys.PICTURES)
    assert list(ACTIVATIONS) == list(keys.kind_of("model.encoder.act").choices)
    assert set(PRECISIONS) | {"auto"} == set(keys.kind_of("trainer.precision").choices)


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("trainer.max_epochs=two", "trainer.max_epochs=two: give a whole number"),
        ("trainer.limit_train_batches=1.5", "trainer.limit_train_batches=1.5: give a share above 0.0"),
        ("trainer.precision=bf16-mix", "one of 32-true, bf16-mixed, 16-mixed, auto; did you mean bf16-mixed?"),
        ("trainer.devices=0", "trainer.devices=0: give how many (at least 1)"),
        ("optimizer.lr=abc", "optimizer.lr=abc: give a number of at least 0"),
        ("optimizer.betas=[0.9,1.5]", "optimizer.betas=[0.9,1.5]: give a list of 2"),
        ("optimizer.betas=[0.9]", "optimizer.betas=[0.9]: give a list of 2"),
        ("model.kl_weight=nan", "model.kl_weight=nan: give a number of at least 0"),
        ("model.encoder.widths=[8,a]", "model.encoder.widths=[8,a]: give a list of at least 1 in brackets"),
        ("model.encoder.act=rellu", "did you mean relu?"),
        ("data.batch_size=64.0", "data.batch_size=64.0: give a whole number of at least 1"),
        ("data.val_fraction=2", "data.val_fraction=2: give a number above 0 and below 1, or null"),
        ("data.binarize=dynamik", "did you mean dynamic?"),
        ("data.name=a/b", "data.name=a/b: give letters, digits"),
        ("seed=-1", "seed=-1: give a whole number from 0 to 4294967295, or null"),
        ("seed=1e11", "seed=1e11: give a whole number"),
        ("tags=quick", "tags=quick: give a list in brackets"),
        ("compile=maybe", "compile=maybe: give one of true, false, auto"),
        ("callbacks.dashboard.every_n_epochs=0", "every_n_epochs=0: give a whole number of at least 1"),
        ("trainer.max_steps=0", "trainer.max_steps=0: give a whole number of at least 1"),
        ("trainer.limit_train_batches=0", "trainer.limit_train_batches=0: give a share above 0.0, or how many"),
        ("trainer.limit_test_batches=0", "test=false leaves the test out"),
        ("trainer.use_distributed_sampler=true", "trainer.use_distributed_sampler=true: give one of false"),
        ("trainer.accumulate_grad_batches=-1", "trainer.accumulate_grad_batches=-1: give a whole number of at least 1"),
        ("trainer.accumulate_grad_batches=1.5", "trainer.accumulate_grad_batches=1.5: give a whole number"),
        ("trainer.log_every_n_steps=-1", "trainer.log_every_n_steps=-1: give a whole number of at least 0"),
        ("trainer.gradient_clip_val=-1", "trainer.gradient_clip_val=-1: give a number of at least 0"),
        ("data.dequantize=maybe", "data.dequantize=maybe: give one of true, false"),
        ("model.kl_weight=inf", "model.kl_weight=inf: give a number of at least 0"),
        ("compare_by=val/elbow", "compare_by=val/elbow: give one of val/elbo"),
        ("trainer.max_epochs={a:1}", "trainer.max_epochs={a:1}: give a whole number"),
        ("model.latent_dim=0", "model.latent_dim=0: give a whole number of at least 1"),
        ("data.batch_size=1e2", "data.batch_size=1e2: give a whole number"),
        ("hydra.verbose=3", "hydra.verbose=3: give one of true, false"),
        ("callbacks.early_stopping.patience=0", "patience=0: give a whole number of at least 1"),
    ],
)  # fmt: skip
def test_a_value_that_a_key_cannot_have_is_answered_with_what_it_must_be(word, line):
    (override,) = parsed([word])
    key = override.key_or_group
    with pytest.raises(UserError) as caught:
        keys.check(key, override.value(), keys.kind_of(key), word)
    assert line in str(caught.value)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        # values
        ("trainer.max_epochs=0", "trainer.max_epochs=0: give a whole number of at least 1"),
        ("trainer.limit_val_batches=0", "no val/loss for callbacks.early_stopping to watch: ~callbacks.early_stopping"),
        ("+trainer.overfit_batches=2", "give 0, or in its place trainer.limit_train_batches"),
        ("model=conv_dropout model.decoder.dropout=-0.5", "model.decoder.dropout=-0.5: give a number of at least 0"),
        ("data.split_seed=null", "data.split_seed=null: give a whole number"),
        # directions
        (
            "callbacks.checkpoint.monitor=val/loss callbacks.checkpoint.mode=max",
            "val/loss is the better the smaller; give callbacks.checkpoint.mode=min",
        ),
        ("callbacks.early_stopping.mode=max", "the better the smaller; give callbacks.early_stopping.mode=min"),
        (
            "schedule=plateau schedule.monitor=val/rate schedule.factory.mode=max",
            "val/rate is the better the smaller; give schedule.factory.mode=min",
        ),
        ("callbacks.checkpoint.monitor=val/mine", "callbacks.checkpoint.mode: say min or max"),
        ("schedule=plateau schedule.monitor=val/mine", "schedule.factory.mode: say min or max"),
        (
            "+callbacks.a._target_=lightning.pytorch.callbacks.EarlyStopping +callbacks.a.monitor=val/elbo",
            "callbacks.a.mode=min would keep the worst: val/elbo is the better the larger; give callbacks.a.mode=max",
        ),
        ("+callbacks.x=1", "callbacks.x has no _target_"),
        # values that other documentation suggests
        ("schedule=null", "~schedule leaves it out"),
        ("callbacks=null", "~callbacks leaves it out"),
        ("trainer.devices=9999", "trainer.devices=9999 processes on a CPU: this machine has processors for"),
        ("~compare_by", "compare_by is missing: it may be set, but not left out"),
        ("logger=null", "~logger leaves it out"),
        ("data=image_folder data.root=2024", "quotes: 'data.root=\"2024\"'"),
        ("data=image_folder data.root=tests data.group_pattern=a", "a regular expression with one (group)"),
        ("schedule=cosine schedule.factory.T_max=0", "schedule.factory.T_max=0: give a whole number"),
        ("schedule=multistep schedule.factory.milestones=[]", "schedule.factory.milestones=[]: give a list"),
        ("hydra.launcher.slots=0", "hydra.launcher.slots=0: give a whole number of at least 1, or null"),
        ("hydra.run.dir=", "hydra.run.dir=: give a path"),
        ("model.latent_dim=${nosuch}", "Interpolation key 'nosuch' not found"),
        ("model.latent_dim=${data.channels} data.channels=2", "data.channels=2: give one of 1, 3"),
        # files that do not exist
        ("ckpt_path=nowhere.ckpt", "give one of last, or a checkpoint, or null; there is no file nowhere.ckpt"),
        ("ckpt_path=tests", "tests is a folder"),
        # keys that do not exist
        ("latent_dim=8", "latent_dim is no key: did you mean model.latent_dim=8?"),
        ("+latent_dim=8", "latent_dim is no key: did you mean model.latent_dim=8?"),
        ("++lr=0.1", "lr is no key: did you mean optimizer.lr=0.1?"),
        ("epochs=3", "epochs is no key: did you mean trainer.max_epochs=3?"),
        ("model.latnet_dim=3", "model.latnet_dim is no key: did you mean model.latent_dim=3?"),
        ("+model.latnet_dim=3", "model.latnet_dim is no key: did you mean model.latent_dim=3?"),
        ("+model.foo=1", "model.foo is no key of model=conv_deep"),
        ("data.root=x", "data.root is no key of data=digits"),
        ("model.loss.gradient=dreg", "model.loss.gradient is no key of loss=elbo"),
        ("model.prior.flows=3", "model.prior.flows is no key of prior@model.prior=standard_normal"),
        ("likelihood=gaussian", "did you mean likelihood@model.likelihood=gaussian?"),
        ("+callbacks.mine.patience=3", "callbacks.mine has no _target_"),
        # missing values and nodes
        ("data=image_folder", "data.root has no value: Set data.root to a folder"),
        ("~data.name", "data.name is missing"),
        ("model.encoder=3", "model.encoder=3: model.encoder holds keys, such as model.encoder._target_"),
        ("~model.latent_dim", "model.latent_dim is missing"),
        ("model.likelihood=gaussian", "did you mean likelihood@model.likelihood=gaussian?"),
        ("optimizer.lr=${model}", "optimizer.lr=${model}: give a number"),
        ("hydra.launcher.nope=1", "hydra.launcher.nope is no key"),
        # choices
        ("model=conv_depe", "model=conv_depe: choose one of conv_deep, "),
        ("model=conv_depe", "did you mean conv_deep?"),
        ("modle=lstm", "modle is no key: did you mean model=lstm?"),
        ("likelihood@model.likelihood=bernouli", "did you mean bernoulli?"),
        ("prior=standard_normal", "did you mean prior@model.prior=standard_normal?"),
        ("model.prior=standard_normal", "did you mean prior@model.prior=standard_normal?"),
        ("prior@model.prior=normal", "prior@model.prior=normal: choose one of "),
        ("posterior@model.posterior=gausian", "did you mean gaussian?"),
        ("~prior@model.prior", "model.prior._target_ is missing"),
        ("model.num_samples=0", "model.num_samples=0: give a whole number of at least 1"),
        ("hydra/launcher=slot", "did you mean slots?"),
        ("schedule=null", "choose one of cosine, multistep, plateau, warmup; ~schedule leaves it out"),
        ("model=3", "model=3: choose one of"),
        ("model={a:1}", "model={a:1}: choose one of"),
        ("trainer.fast_dev_run=true", "+trainer.fast_dev_run=true adds it"),
        ("+foo.bar=1", "foo.bar is no key"),
        ("+hydra.sweeper.params={seed:1}", "these overrides give no config"),
        ("+experiment=mnist_lstm", "experiment has a choice already: leave out the +"),
        ("~model=lstm", "~model leaves out whatever it is"),
        # what cannot be read
        ("lstm", "cannot read 'lstm': write key=value, such as model=lstm"),
        ("=3", "write key=value"),
        ("~=3", "write key=value"),
        ("data.root=/a=b", "put its value into quotes: 'data.root=\"/a=b\"'"),
        ("data.root=/a(b)", "put its value into quotes: 'data.root=\"/a(b)\"'"),
        ("data.root=/a,b", "'data.root=\"/a,b\"' for a text"),
        ("tags=['a]", "its quotes do not match"),
        (r"data.group_pattern=(p\d+)", r"""(p\d+)': put its value into quotes: 'data.group_pattern="(p\d+)"'"""),
        ("model.latent_dim=(3", "its brackets do not match"),
        ("model..latent_dim=3", "model..latent_dim cannot be the name of a key"),
        ("model.latent_dim=2,8", "add -m to sweep over them, write model.latent_dim=[2,8] for a list"),
        ("--model=lstm", "settings are typed without dashes"),
        ("--multirn", "did you mean --multirun?"),
        ("--config-dir", "expected one argument"),
    ],
)  # fmt: skip
def test_a_mistake_is_answered_in_one_line_that_says_what_to_do(words, line):
    said = answer(*words.split(" "))
    assert said is not None, "taken for right"
    assert line in said
    assert "\n" not in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "words",
    [
        "+trainer.fast_dev_run=true",
        "trainer.max_epochs=-1 trainer.max_steps=5",
        "trainer.limit_train_batches=null trainer.check_val_every_n_epoch=null +trainer.val_check_interval=10",
        "trainer.strategy={_target_:lightning.pytorch.strategies.SingleDeviceStrategy,device:cpu}",
        "trainer.precision=32 trainer.devices=[0] trainer.deterministic=warn",
        "optimizer._target_=torch.optim.RMSprop ~optimizer.betas ~optimizer.fused +optimizer.alpha=0.9",
        "optimizer.lr=1e-4 ++model.latent_dim=4 model.kl_weight=1",
        "callbacks.early_stopping=null ~callbacks.dashboard ~logger",
        "+callbacks.lr._target_=lightning.pytorch.callbacks.LearningRateMonitor +callbacks.lr.logging_interval=step",
        "callbacks.checkpoint.dirpath=${run_dir}/mine ckpt_path=${run_dir}/x.ckpt",
        "+logger.csv._target_=lightning.pytorch.loggers.CSVLogger +logger.csv.save_dir=${run_dir}",
        "~schedule ~callbacks",
        "~callbacks.early_stopping ~callbacks.checkpoint trainer.limit_val_batches=0 ~logger",
        "callbacks.early_stopping.monitor=val/mine callbacks.early_stopping.mode=min",
        "+callbacks.a._target_=mine.Threshold +callbacks.a.monitor=val/elbo",
        "model.latent_dim=${data.image_size} tags=[2024,true,word]",
        "schedule=plateau schedule.monitor=val/loss +schedule.factory.cooldown=2",
        "hydra.verbose=true hydra.job.chdir=false",
        "model._target_=mine.Model +model.my_weight=0.3",
    ],
)
def test_what_hydra_lightning_and_torch_accept_is_accepted(words):
    assert answer(*words.split()) is None


def test_a_path_may_begin_with_the_home_folder():
    words = [
        "data=image_folder",
        'data.root="~/a"',
        'hydra.run.dir="~/b"',
        'ckpt_path="~/c"',
        "data.name=x",
        'tags=["~"]',
    ]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", overrides=words, return_hydra_config=True)
    expand_home(config, "train")
    home = os.path.expanduser("~")
    assert [config.data.root, config.hydra.run.dir, config.ckpt_path] == [f"{home}/a", f"{home}/b", f"{home}/c"]
    assert config.tags == ["~"]


def test_files_of_the_user_may_hold_keys_of_their_own(tmp_path):
    for group, text in (
        ("experiment", "# @package _global_\nnote: mine\nseed: 3\n"),
        ("model", "defaults: [lstm]\nmine: 3\n"),
    ):
        (tmp_path / group).mkdir()
        (tmp_path / group / "mine.yaml").write_text(text)
    path = f"hydra.searchpath=[file://{tmp_path}]"
    assert answer(path, "experiment=mine") is None
    assert answer(path, "model=mine", "model.mine=4") is None
    assert "no key" in answer(path, "experiment=mine", "+noet=4")


def test_an_override_with_spaces_around_its_sign_is_named():
    assert "leave out the spaces around =" in answer("model.latent_dim = 3")


@pytest.mark.parametrize(
    ("of", "words", "line"),
    [
        ("evaluate", "run=RUN parts=[elbow]", "give all, one or a list [in,brackets] of elbo, latents"),
        ("evaluate", "run=RUN parts=[]", "parts=[]: give all"),
        ("evaluate", "run=RUN bound.samples=0", "bound.samples=0: give a whole number of at least 1"),
        ("evaluate", "run=RUN split=train", "split=train: give one of val, test"),
        ("evaluate", "", "run has no value: set it: run=... (the folder that a training left)"),
        ("evaluate", "run=42", "quotes: 'run=\"42\"'"),
        ("evaluate", "run=nowhere", "run=nowhere: give the folder that a training left; there is no folder nowhere"),
        ("evaluate", "run=README.md", "README.md is a file"),
        ("evaluate", "run=tests", "has no .hydra/config.yaml; it holds runs, such as run=tests/fixtures/sweep/"),
        ("evaluate", "run=RUN data.root=nowhere", "give a folder, or null; there is no folder nowhere"),
        ("evaluate", "run=RUN checkpoint=a/last.ckpt", "checkpoint=a/last.ckpt: give one of best, last"),
        ("explore", "run=RUN images=nowhere", "'scans/*.png', or a list of these; there is nothing at nowhere"),
        ("explore", "run=RUN images='*.none'", "there is nothing at *.none"),
        ("explore", "run=RUN images=[README.md,nowhere]", "there is nothing at nowhere"),
        ("detect", "run=RUN split=val", "split is no key"),
        ("detect", "run=[RUN,nowhere]", "a list of these; there is no folder nowhere"),
        ("detect", "run=[]", "run=[]: give the folder that a training left, or a list of these"),
        ("detect", "run=RUN normal=NORMAL", "normal=NORMAL: give a list"),
        ("detect", "run=RUN kinds=virus", "kinds=virus: give"),
        ("detect", "run=RUN samples=0", "samples=0: give a whole number of at least 1"),
        ("audit", "data.image_size=0", "data.image_size=0: give a whole number of at least 1"),
        ("audit", "image_size=8", "image_size is no key: did you mean data.image_size=8?"),
        ("audit", "data=image_folder", "data.root has no value: Set data.root to a folder that holds images"),
        ("audit", "data=mnst", "did you mean mnist?"),
        ("audit", "data=null", "data=null: choose one of binarized_mnist, chest_xray,"),
        ("audit", "folder=null", "folder=null: give a path"),
        ("report", "folder=nowhere", "there is no folder nowhere"),
        ("explore", "run=RUN figures=sample", "figures=sample: give all, one or a list"),
        ("explore", "run=RUN noise=-1", "noise=-1: give a number above 0 and up to 10, or null"),
        ("explore", "run=RUN embed=xls", "embed=xls: give one of npz, csv"),
        ("explore", "run=RUN checkpoint=first", "checkpoint=first: give one of best, last"),
        ("report", "", "folder has no value: set it: folder=... (the folder of a multirun"),
        ("benchmark", "experiments=[]", "experiments=[]: give a list of experiments"),
        ("benchmark", "rounds=0", "rounds=0: give a whole number of at least 1"),
        ("benchmark", "seconds=.inf", "seconds=.inf: give a number above 0"),
        ("report", "sweep=outputs/x", "sweep is no key: did you mean folder=outputs/x?"),
        ("report", "sweep=dropout", "sweep is no key: did you mean folder=dropout?"),
        ("benchmark", "device=tpu", "device=tpu: give one of auto, cpu, cuda"),
    ],
)
def test_every_command_answers_a_mistake_in_one_line(of, words, line):
    assert line in answer(*words.replace("RUN", RUN).split(), of=of)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("model.latnet_dim=2,8", "model.latnet_dim is no key: did you mean model.latent_dim=2,8?"),
        ("latent_dim=2,8", "latent_dim is no key: did you mean model.latent_dim=2,8?"),
        ("model.latent_dim=2,0", "model.latent_dim=0: give a whole number of at least 1"),
        ("model.kl_weight=interval(-1,1)", "model.kl_weight=-1.0: give a number of at least 0"),
        ("seed=range(-1,2)", "seed=-1: give a whole number"),
        ("model=lstm,conv_depe", "model=conv_depe: choose one of"),
        ("model=lstm,conv_deep model.depht=1,2", "model.depht is no key"),
        ("seed=0,1 data.batch_size=0", "data.batch_size=0: give a whole number of at least 1"),
        ("sweep=latent_size,dropout", "one preset at a time"),
        ("schedule=null,cosine", "schedule=null: choose one of"),
    ],
)
def test_a_sweep_is_refused_before_it_has_a_folder(words, line):
    config = multirun_config(*words.split(" "))
    with pytest.raises(Exception) as caught:
        check_sweep(config, "train")
    assert line in str(caught.value)


def test_a_sweep_over_choices_and_over_keys_that_only_some_have_is_accepted():
    check_sweep(multirun_config("model=conv_dropout,lstm", "model.latent_dim=2,8", "sweep=rate_distortion"), "train")
    check_sweep(multirun_config("experiment=mnist_conv_dropout", "sweep=dropout"), "train")


def test_a_mistake_leaves_nothing_behind(tmp_path):
    for words in (
        ["seed=-1", f"hydra.run.dir={tmp_path}/run"],
        ["-m", "seed=0,-1", f"hydra.sweep.dir={tmp_path}/sweep"],
    ):
        assert_one_line_error(cli(*words), "seed=-1: give a whole number")
    assert_one_line_error(cli("+latent_dim=8", f"hydra.run.dir={tmp_path}/run"), "model.latent_dim=8")
    assert_one_line_error(cli("model=conv_depe", f"hydra.run.dir={tmp_path}/run"), "conv_deep")
    assert list(tmp_path.iterdir()) == []


def test_what_was_there_before_a_mistake_stays(tmp_path):
    """This mistake is found after Hydra has made the run's folder and begun its log."""
    mine, empty, new, no_images = (tmp_path / name for name in ("mine", "empty", "new", "no images"))
    no_images.mkdir()
    mine.mkdir()
    empty.mkdir()
    (mine / "slurm.log").write_text("of mine")
    for folder in (mine, empty, new):
        done = cli("data=image_folder", f"data.root={no_images}", f"hydra.run.dir={folder}")
        assert_one_line_error(done, "no image files")
    assert [path.name for path in mine.iterdir()] == ["slurm.log"]
    assert list(empty.iterdir()) == []
    assert not new.exists()


def test_a_path_that_cannot_be_made_is_named():
    done = cli("hydra.run.dir=/proc/nowhere")
    assert_one_line_error(done, "cannot use the folder /proc/nowhere (No such file or directory)", "hydra.run.dir")


def test_the_values_of_options_are_not_taken_for_overrides(tmp_path):
    """The user's own folder of YAML files is not a config group."""
    (tmp_path / "mine.yaml").write_text("seed: 1\n")
    done = cli("--config-dir", str(tmp_path), "model.latnet_dim=3")
    assert_one_line_error(done, "did you mean model.latent_dim=3?")


def test_a_sweep_may_set_a_mandatory_key_and_all_its_folders_must_exist():
    check_sweep(multirun_config("data=image_folder", "data.root=conf,tests"), "train")
    check_sweep(multirun_config("data=chest_xray", "data.root=conf,tests"), "train")  # the config's own is not there
    elsewhere = ("hydra/launcher=submitit_slurm", "data=image_folder", "data.root=nowhere", "seed=0,1")
    check_sweep(multirun_config(*elsewhere), "train")  # a node of the cluster has it
    with pytest.raises(UserError, match="image_folder: there is no folder nowhere. Set data.root to a folder"):
        check_sweep(multirun_config("data=image_folder", "data.root=conf,nowhere"), "train")
    with pytest.raises(UserError, match="there is no folder nowhere"):
        check_sweep(multirun_config("data=image_folder", "data.root=nowhere", "seed=0,1"), "train")


def test_a_traceback_is_shown_on_request():
    said = cli("seed=-1", HYDRA_FULL_ERROR="1").stdout
    assert "Traceback" in said
    assert "UserError: seed=-1" in said


@pytest.mark.slow
def test_bad_values_are_reported_faster_than_torch_is_imported():
    """The commands start in new interpreters."""

    def seconds(*call: str) -> float:
        began = time.perf_counter()
        subprocess.run(call, cwd=ROOT, capture_output=True, check=False)
        return time.perf_counter() - began

    torch = seconds(sys.executable, "-c", "import torch")
    for call in (
        command("model.latent_dim=0"),
        command("model=conv_depe"),
        command("data=image_folder", "data.root=nowhere"),
        command("run=nowhere", module="src.evaluate"),
    ):
        assert any(seconds(*call) < torch for _ in range(3))  # at the third try, if the machine is busy


def test_no_command_imports_torch_before_its_config_is_checked():
    modules = "src.train, src.audit, src.detect, src.evaluate, src.explore, src.report, src.benchmark"
    modules += ", hydra_plugins.slots_launcher"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules or 'lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_commands_that_read_explain_their_own_keys_and_list_no_others():
    for of in ("evaluate", "explore", "detect", "report"):
        done = cli("--help", module=f"src.{of}")
        assert done.returncode == 0, done.stdout
        rows = re.findall(r"^  ([\w.]+)=(\S*) *(.*)", done.stdout, re.M)
        with initialize_config_dir(str(CONF), version_base="1.3"):
            tree = compose(of)
        assert {key for key, *_ in rows} == {key for key, _ in flatten(OmegaConf.to_container(tree))}
        assert "chest_xray" not in done.stdout
    assert rows == [("folder", "...", "folder of a multirun, or any folder of runs")]
    assert "run=... " in cli("--help", "run=x", module="src.explore").stdout
    assert re.search(
        r"^  data=digits +the data set, and data.…: its keys", cli("--help", module="src.audit").stdout, re.M
    )
    assert "== Configuration groups ==" in cli("--help").stdout  # all of a training's keys are Hydra's to list


def test_help_finds_comments_of_nested_keys_and_on_several_lines(tmp_path):
    (tmp_path / "more.yaml").write_text("# Of others.\nrun: ???   # which run\n")
    (tmp_path / "mine.yaml").write_text(
        "# python -m src.mine\ndefaults:\n  - more\n  - hydra: reader\n  - _self_\n\n"
        "flag: true\nbound:   # of a bound\n  samples: 5   # how many,\n               # at most\n"
        "  parts:\n    - a\n    - b\nhydra:\n  job: {}\n"
    )
    *_, keys, _ = help_of(tmp_path / "mine.yaml", "About ``it``.").split("\n\n")
    assert [re.split(" {2,}", line.strip()) for line in keys.splitlines()[1:]] == [
        ["run=...", "which run"],
        ["flag=true"],
        ["bound.samples=5", "how many, at most"],
        ["bound.parts=[a,b]"],
    ]


@pytest.mark.parametrize("of", ["train", "audit", "detect", "evaluate", "explore", "report", "benchmark"])
def test_a_command_that_is_started_as_a_file_says_what_to_type(of, tmp_path):
    file = f"src/{of}.py" if of != "benchmark" else "src/benchmark/__main__.py"
    words = [sys.executable, str(ROOT / file), "--help"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: type python -m src.{of} in {ROOT}/\n"


def test_a_logger_whose_package_is_missing_is_refused_at_once(monkeypatch):
    monkeypatch.setattr(configs, "find_spec", lambda package: None)
    assert answer("logger=wandb") == "logger=wandb needs the package wandb: pip install '.[wandb]'"
    assert answer("logger=csv") is None
