"""What the value of every key of ``conf/`` must be: one table per command, used by the command line and constructors.

Nothing here imports torch, so a bad value is reported before that import takes seconds.
"""

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from src.system.directions import COMPARABLE
from src.system.errors import UserError
from src.system.kinds import (
    FLAG,
    Anything,
    Choice,
    Either,
    Kind,
    ListOf,
    Made,
    Nothing,
    Number,
    OneGroup,
    Text,
    Whole,
    hint_of,
    one_or_each,
    or_null,
    spelled,
)
from src.system.places import Place, no_file, no_folder, no_match, no_run

TARGET = Text("the dotted name of a class", r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
PATH = Place()
FOLDER = Place("a folder", obstacle=no_folder)
RUN_FOLDER = Place("the folder that a training left", obstacle=no_run)
CHECKPOINT = Place("a checkpoint", obstacle=no_file)
OWN_IMAGES = Place("a picture, a folder or a glob such as 'scans/*.png'", obstacle=no_match)
SEED = Whole(0, 2**32 - 1)
PART = Number(above=0, below=1)
SHARE = Either((Whole(0), Number(at_least=0, at_most=1), Nothing()), "a share from 0.0 to 1.0, or how many")
SOME = Either((Whole(1), Number(above=0, at_most=1), Nothing()), "a share above 0.0, or how many")
BATCH_NORM = Choice(("before", "after", "none"))
BEST = Choice(("min", "max"))
METRIC = Text("the name of a metric, such as val/elbo", r"\S+")
SPLIT = Choice(("val", "test"))
CLASSES = or_null(ListOf(Either((Text(), Whole(0)), "the name of a class"), at_least=1))
AUTO = Choice(("auto",))
DEVICE = Choice(("auto", "cpu", "cuda"))


def some_of(*names: str, at_least: int = 1) -> Either:
    """Return the kind of ``all``, one name, or a list of names."""
    some = (Choice(("all", *names)), ListOf(Choice(names), at_least=at_least))
    return Either(some, f"all, one or a list [in,brackets] of {', '.join(names)}")


# In the order of the checks. `*` matches any text that no line above it matches.
TRAIN: dict[str, Kind] = {
    "seed": or_null(SEED),
    "tags": ListOf(Either((Text(), Number(), FLAG), "a word or a number")),
    "compile": Choice((True, False, "auto")),
    "compare_by": Choice(COMPARABLE),
    "test": FLAG,
    "ckpt_path": or_null(Choice(("last",)), CHECKPOINT),
    "run_dir": PATH,
    # the model
    "model._target_": TARGET,
    "model.latent_dim": Whole(1),
    "model.kl_weight": Number(at_least=0),
    "model.kl_warmup_steps": Whole(0),
    "model.kl_cycle_steps": Whole(0),
    "model.num_samples": Whole(1),
    "model.start_at_mean": FLAG,
    "model.depth": Whole(1),
    "model.loss._target_": TARGET,
    "model.loss.free_nats": Number(at_least=0),
    "model.loss.capacity": Number(at_least=0),
    "model.loss.steps": Whole(0),
    "model.loss.bounds": Whole(1),
    "model.loss.decoder_bounds": or_null(Whole(1)),
    "model.loss.elbo_share": Number(at_least=0, at_most=1),
    "model.loss.gradient": Choice(("plain", "stl", "dreg")),
    "model.encoder._target_": TARGET,
    "model.decoder._target_": TARGET,
    "model.posterior._target_": TARGET,
    "model.posterior.steps": Whole(1),
    "model.posterior.hidden": Whole(1),
    "model.posterior.rank": Whole(1),
    "model.posterior.components": Whole(1),
    "model.prior._target_": TARGET,
    "model.prior.components": Whole(1),
    "model.prior.start": Choice(("images", "mean")),
    "model.prior.flows": Whole(1),
    "model.prior.hidden": Whole(1),
    "model.likelihood._target_": TARGET,
    "model.likelihood.scale": Number(above=0),
    "model.likelihood.learned": FLAG,
    "model.likelihood.components": Whole(1),
    "model.*._target_": TARGET,
    "model.*._partial_": FLAG,
    "model.*.widths": ListOf(Whole(1), at_least=1),
    "model.*.kernel_size": one_or_each(Whole(1)),
    "model.*.stride": one_or_each(Whole(1)),
    "model.*.padding": one_or_each(Whole(0)),
    "model.*.norm": BATCH_NORM,
    "model.*.dense_norm": BATCH_NORM,
    "model.*.hidden_norm": BATCH_NORM,
    "model.*.act": Choice(("relu", "leaky_relu", "silu", "gelu", "tanh", "gated")),
    "model.*.hidden": or_null(Whole(1)),
    "model.*.dropout": Number(at_least=0, below=1),
    # the data
    "data._target_": TARGET,
    "data.name": Text("letters, digits, '.', '_' and '-': it becomes part of file names", r"[\w.-]+"),
    "data.root": PATH,
    "data.cache_dir": PATH,
    "data.where_to_get": Text(),
    "data.dataset._target_": TARGET,
    "data.dataset.path": TARGET,
    "data.download": FLAG,
    "data.checksum": or_null(Text("64 hexadecimal digits", r"[0-9a-f]{64}")),
    "data.image_size": Whole(1),
    "data.channels": Choice((1, 3)),
    "data.batch_size": Whole(1),
    "data.val_fraction": or_null(PART),
    "data.test_fraction": or_null(PART),
    "data.split_seed": Whole(),
    "data.seed": or_null(SEED),
    "data.binarize": Choice(("none", "threshold", "dynamic")),
    "data.dequantize": Choice((True, False, "auto")),
    "data.on_bad_image": Choice(("raise", "skip")),
    "data.fit": Choice(("stretch", "pad", "crop")),
    "data.group_pattern": or_null(OneGroup()),
    "data.classes": CLASSES,
    "data.contrast_cells": or_null(Whole(1)),
    "data.published": ListOf(Choice(("train", "val", "test"))),
    # the training
    "optimizer._target_": TARGET,
    "optimizer._partial_": FLAG,
    "optimizer.lr": Number(at_least=0),
    "optimizer.betas": ListOf(Number(at_least=0, below=1), length=2),
    "optimizer.weight_decay": Number(at_least=0),
    "optimizer.momentum": Number(at_least=0),
    "optimizer.nesterov": FLAG,
    "optimizer.fused": or_null(FLAG),
    "optimizer.alpha": Number(at_least=0, below=1),
    "optimizer.eps": Number(at_least=0),
    "optimizer.centered": FLAG,
    "optimizer.*": Anything(),
    "schedule._target_": TARGET,
    "schedule.interval": Choice(("epoch", "step")),
    "schedule.monitor": or_null(METRIC),
    "schedule.frequency": or_null(Whole(1)),
    "schedule.factory._target_": TARGET,
    "schedule.factory._partial_": FLAG,
    "schedule.factory.T_max": Whole(1),
    "schedule.factory.mode": or_null(Text()),
    "schedule.factory.factor": Number(above=0),
    "schedule.factory.patience": Whole(0),
    "schedule.factory.start_factor": Number(above=0, at_most=1),
    "schedule.factory.total_iters": Whole(1),
    "schedule.factory.milestones": ListOf(Whole(1), at_least=1),
    "schedule.factory.gamma": Number(above=0),
    "schedule.factory.*": Anything(),
    "trainer._target_": TARGET,
    "trainer.accelerator": Choice(("auto", "cpu", "gpu", "cuda", "mps")),
    "trainer.devices": Either(
        (Whole(1), Choice(("auto", -1)), ListOf(Whole(0), at_least=1), Text("", r"-1|\d+(,\d+)*,?")),
        "how many (at least 1), a list of their numbers, or auto",
    ),
    "trainer.num_nodes": Whole(1),
    "trainer.strategy": Either((Text("the name of a strategy, such as auto or ddp"), Made())),
    "trainer.precision": Choice(("32-true", "bf16-mixed", "16-mixed", "auto"), (32, "32", 16, "16", "bf16")),
    "trainer.max_epochs": or_null(Whole(1), Choice((-1,))),
    "trainer.max_steps": Either((Whole(1), Choice((-1,)))),
    "trainer.limit_train_batches": SOME,
    "trainer.limit_val_batches": SHARE,
    "trainer.limit_test_batches": Either((*SOME.kinds,), f"{SOME.said}; test=false leaves the test out"),
    "trainer.check_val_every_n_epoch": or_null(Whole(1)),
    "trainer.accumulate_grad_batches": Whole(1),
    "trainer.gradient_clip_val": or_null(Number(at_least=0)),
    "trainer.gradient_clip_algorithm": or_null(Choice(("norm", "value"))),
    "trainer.log_every_n_steps": or_null(Whole(0)),
    "trainer.deterministic": or_null(Choice((True, False, "warn"))),
    "trainer.benchmark": or_null(FLAG),
    "trainer.detect_anomaly": or_null(FLAG),
    "trainer.sync_batchnorm": FLAG,
    "trainer.num_sanity_val_steps": or_null(Whole(-1)),
    "trainer.enable_model_summary": or_null(FLAG),
    "trainer.use_distributed_sampler": Choice((False,)),
    # Lightning would replace the sampler that makes the batches.
    "trainer.overfit_batches": Either((Choice((0, 0.0)),), "0, or in its place trainer.limit_train_batches"),
    "trainer.default_root_dir": PATH,
    "trainer.*": Anything(),
    # callbacks and loggers
    "callbacks.*._target_": TARGET,
    "callbacks.guard.read_every": or_null(Whole(1)),
    "callbacks.noise.seed": or_null(SEED),
    "callbacks.dashboard.every_n_epochs": Whole(1),
    "callbacks.dashboard.num_images": Whole(1),
    "callbacks.figures.folder": PATH,
    "callbacks.figures.tested": FLAG,
    "callbacks.early_stopping.patience": Whole(1),
    "callbacks.early_stopping.min_delta": Number(),
    "callbacks.checkpoint.save_top_k": Whole(-1),
    "callbacks.*.monitor": or_null(METRIC),
    "callbacks.*.mode": or_null(BEST),
    "callbacks.*.dirpath": PATH,
    "callbacks.*.filename": or_null(Text("a file name")),
    "callbacks.*.save_on_train_epoch_end": FLAG,
    "callbacks.*.enable_version_counter": FLAG,
    "callbacks.*": Anything(),
    "logger.*._target_": TARGET,
    "logger.*.save_dir": PATH,
    "logger.*.name": or_null(Text(pattern="(?s).*")),
    "logger.*.version": or_null(Text(pattern="(?s).*"), Whole(0)),
    "logger.*.default_hp_metric": FLAG,
    "logger.*.offline": FLAG,
    "logger.*.project": Text(),
    "logger.*.run_name": Text(pattern="(?s).*"),
    "logger.*.experiment_name": Text(),
    "logger.*.tracking_uri": Text(),
    "logger.*.artifact_location": or_null(PATH),
    "logger.*": Anything(),
    # the run's folder and sweeps
    "hydra.run.dir": PATH,
    "hydra.sweep.dir": PATH,
    "hydra.job.chdir": or_null(FLAG),
    "hydra.verbose": Either((FLAG, Text("the name of a logger"), ListOf(Text()))),
    "hydra.launcher.slots": or_null(Whole(1)),
    "hydra.launcher.per_gpu": Whole(1),
    "hydra.launcher.threads": or_null(Whole(1)),
    "hydra.launcher.warm": FLAG,
    "hydra.sweeper.trials": Whole(1),
    "hydra.sweeper.at_once": or_null(Whole(1)),
    "hydra.sweeper.startup": Whole(0),
    "hydra.sweeper.seed": SEED,
}
READER: dict[str, Kind] = {
    "run": RUN_FOLDER,
    "checkpoint": Choice(("best", "last")),
    "seed": or_null(SEED),
    "device": DEVICE,
    "data.root": or_null(FOLDER),
    "other_data": FLAG,
    "cache_dir": PATH,
}
JUDGED = READER | {"split": SPLIT}
OWN = {
    "images": Either(
        (OWN_IMAGES, ListOf(OWN_IMAGES, at_least=1), Nothing()), f"{OWN_IMAGES.words}, or a list of these"
    ),
    "invert": FLAG,
}
PARTS = ("elbo", "latents", "reconstruction", "representation", "samples", "bound")
PICTURES = (
    *("reconstructions", "samples", "losses", "samples_from_mixture", "rates", "scatter", "manifold", "histogram"),
    *("directions", "traversals", "plane", "interpolations", "class_means", "neighbours"),
)
KEYS: dict[str, dict[str, Kind]] = {
    "train": TRAIN,
    "evaluate": JUDGED
    | {
        "parts": some_of(*PARTS),
        "budget": or_null(Number(above=0), AUTO),
        "bound.samples": Either((Whole(1), AUTO)),
        "bound.images": or_null(Whole(1), AUTO),
        "latents.components": Whole(1),
        "samples.images": Either((Whole(10), AUTO)),
        "samples.bootstrap": Whole(2),
        "samples.components": Whole(1),
        "samples.inception": or_null(FLAG),
        "representation.train_images": Whole(2),
    },
    "detect": READER
    | OWN
    | {
        "run": Either((RUN_FOLDER, ListOf(RUN_FOLDER, at_least=1)), f"{RUN_FOLDER.words}, or a list of these"),
        "normal": CLASSES,
        "samples": Whole(1),
        "kinds": or_null(OneGroup()),
        "folder": or_null(PATH),
    },
    "explore": JUDGED
    | OWN
    | {
        "figures": some_of(*PICTURES, at_least=0),
        "noise": or_null(Number(above=0, at_most=10)),
        "embed": or_null(Choice(("npz", "csv", True, False))),
    },
    "audit": {key: kind for key, kind in TRAIN.items() if key.startswith("data.")}
    | {"seed": or_null(SEED), "folder": PATH},
    "report": {"folder": Place("the folder of a multirun, or any that holds run folders", obstacle=no_folder)},
    "benchmark": {
        "experiments": Either((Text(), ListOf(Text(), at_least=1)), "a list of experiments"),
        "rounds": Whole(1),
        "seconds": Number(above=0),
        "device": DEVICE,
        "overrides": Either((Text(), ListOf(Text())), "a list of overrides, each in quotes"),
        "data_dir": PATH,
        "folder": PATH,
    },
    "growth": {
        "network": Text(),
        "images": ListOf(Whole(100)),
        "sides": ListOf(Whole(1)),
        "latents": ListOf(Whole(1)),
        "depths": ListOf(Whole(1)),
        "rounds": Whole(1, 50),  # as many as an epoch of growth.IMAGES has room for
        "seconds": Number(above=0),
        "device": DEVICE,
        "folder": PATH,
    },
}


def pattern_of(key: str, keys: Mapping[str, Kind]) -> str | None:
    """Return the entry of a table for a dotted key: the key itself, else the first pattern that matches it."""
    return key if key in keys else next((pattern for pattern in keys if fnmatchcase(key, pattern)), None)


def kind_of(key: str, keys: Mapping[str, Kind] = TRAIN) -> Kind | None:
    """Return what the value of a dotted key must be; None for a key that is not in the table."""
    pattern = pattern_of(key, keys)
    return None if pattern is None else keys[pattern]


def takes_paths(kind: Kind | None) -> bool:
    """Return whether a text of this kind is a path."""
    return any(isinstance(one, Place) for one in (kind.kinds if isinstance(kind, Either) else (kind,)))


def groups_of(keys: Mapping[str, Kind]) -> Iterator[str]:
    """Yield the dotted names that hold keys, not values: ``model``, ``trainer``, ``model.likelihood``, ..."""
    seen = set()
    for pattern in keys:
        parts = pattern.split(".")[:-1]
        for end in range(1, len(parts) + 1):
            name = ".".join(parts[:end])
            if "*" not in name and name not in seen:
                seen.add(name)
                yield name


def check(key: str, value: Any, kind: Kind, typed: str | None = None) -> None:
    """Raise a :class:`UserError` that says what the value must be unless ``value`` is of this kind.

    ``typed`` is the override that set the value, if there is one.
    """
    if kind.takes(value):
        return
    hint = hint_of(kind, value)
    advice = f"give {kind.words}" + (f"; {hint}" if hint else "")
    if isinstance(kind, Text) and value is not None and not isinstance(value, str | list | dict):
        advice += f" (a text that looks like something else needs quotes: '{key}=\"{spelled(value)}\"')"
    raise UserError(f"{typed or f'{key}={spelled(value)}'}: {advice}")


def require(group: str, **values: Any) -> None:
    """Check the arguments of a constructor against the kinds of their keys in ``conf/<group>``.

    Raises:
        UserError: for the first that is of another kind.
    """
    for name, value in values.items():
        check(f"{group}.{name}", value, kind_of(f"{group}.{name}"))
