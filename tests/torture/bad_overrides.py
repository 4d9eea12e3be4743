"""Malformed overrides, generated from the keys of the composed configs."""

from collections.abc import Iterator
from typing import NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from src.runs.folder import flatten
from src.system.keys import KEYS, kind_of
from tests.helpers import composed
from tests.torture.commands import QUIET, SMALL, Settings, at_once, run
from tests.torture.looks import answered, infinite, refused
from tests.torture.table import Case, typed

# Each base has some keys that the others lack; together they have nearly all.
BASES = (
    (),
    ("schedule=plateau",),
    ("schedule=cosine",),
    ("model=mlp", "schedule=multistep"),
    ("schedule=warmup",),
    ("optimizer=sgd",),
    ("likelihood@model.likelihood=gaussian",),
    ("model=conv_deep", "model.encoder.widths=[4,8]"),
    ("model=conv_dropout", "data.image_size=32"),
    ("model=lstm", "data.image_size=28"),
)
JUNK = (
    *("abc", "nan", "inf", "-inf", "-1", "0", "1.5", "1e400", "-0.0", "null", "true", '""', "' '", "[]", "[1,2]"),
    *("[a,[b]]", "{a:1}", "{}", "1_000", "0x10", "1e-320", "99999999999", "${nope}", "${oc.env:NOPE}", "${.}", "???"),
    *(
        "'unclosed",
        '"unclosed',
        "[1,2",
        "{a:",
        "a b",
        "🙂",
        "é\u0301",
        "\\",
        "a=b",
        "a\nb",
        "$HOME",
        "~",
        "-",
        "*",
        "%s",
    ),
    *("None", "True", "1;2", "<x>", "!!python/name:os.system", "choice(1)", "range(1,3)", "glob(*)"),
)
WRITTEN = (  # complete overrides
    *("model", "=", "model=", "=model", "model=kaputt", "modell=conv_tiny", "model@x=conv_tiny", "+model=lstm"),
    *("model=[conv_tiny,lstm]", "model=null", "data=null", "trainer=null", "optimizer=null", "callbacks=null"),
    *("logger=null", "schedule=null", "experiment=nope", "sweep=nope", "~model", "~data", "~trainer", "~optimizer"),
    *(
        "~seed",
        "~nope",
        "~callbacks",
        "~callbacks.guard",
        "~callbacks.checkpoint",
        "~callbacks.last",
        "~callbacks.noise",
    ),
    *("~callbacks.early_stopping", "~callbacks.history", "+latent_dim=3", "++latent_dim=3", "latent_dim=3", "lr=1"),
    *("model.latent_dimm=3", "model.latent.dim=3", "optimiser.lr=1", "trainer.maxepochs=3", "+trainer.nope=1"),
    *("+optimizer.nope=1", "+callbacks.x=1", "+callbacks.x._target_=os.system", "+callbacks.x._target_=nope.Nope"),
    *("model._target_=os.system", "model._target_=src.nope", "optimizer._target_=torch.optim.Nope", "data._target_=x"),
    *("optimizer._target_=torch.nn.Linear", "schedule=cosine ++schedule.factory.nope=1", "--nope", "--cfg", "--cfg=x"),
    *("hydra.run.dir=", "hydra/launcher=nope", "hydra.nope=1", "ckpt_path=/nope", "ckpt_path=.", "ckpt_path=''"),
    *("model.encoder.widths=[4,8,16,32,64,128]", "model.encoder=null", "model.decoder=null", "model.likelihood=null"),
    *("data.val_fraction=0.999", "data.test_fraction=0.999", "data.image_size=1", "data.batch_size=1"),
    *("data.batch_size=100000", "trainer.precision=64", "trainer.precision=16-mixed", "trainer.accelerator=tpu"),
    *(
        "trainer.devices=0",
        "trainer.devices=99",
        "trainer.devices=[7]",
        "trainer.strategy=ddp",
        "trainer.strategy=fsdp",
        "+trainer.logger=3",
    ),
    *("model.depth=40", "trainer.max_epochs=0", "trainer.max_steps=0", "trainer.limit_train_batches=0"),
    *("trainer.limit_val_batches=0", "trainer.limit_test_batches=0", "+trainer.overfit_batches=2"),
    *("+trainer.val_check_interval=0.5", "trainer.check_val_every_n_epoch=2", "trainer.accumulate_grad_batches=9"),
    *("callbacks.checkpoint.monitor=val/nope", "callbacks.early_stopping.monitor=nope", "schedule=plateau"),
    *("callbacks.checkpoint.save_top_k=-1", "callbacks.checkpoint.save_top_k=0", "callbacks.checkpoint.filename=a/b"),
    *(
        "model.likelihood._target_=src.models.likelihoods.Likelihood",
        "model.latent_dim=99999999999",
        "data.image_size=999999",
    ),
    *("likelihood@model.likelihood=gaussian model.likelihood.scale=1e308", "trainer.max_time=x", "+trainer.max_time=x"),
    *("data.binarize=dynamic data.dequantize=true", "data.channels=3", "compile=maybe", "+trainer.fast_dev_run=true"),
)


class Override(NamedTuple):
    """One malformed override.

    Attributes:
        words: the words on the command line.
        expected: what the value must be according to the table of keys; None if it may be valid.
        key: the key that it sets.
    """

    words: tuple[str, ...]
    expected: str | None = None
    key: str = ""


def overrides() -> Iterator[Override]:
    """Yield every leaf of the composed configs with every value of ``JUNK``."""
    seen = set()
    for base in BASES:
        tree = OmegaConf.to_container(composed(*SMALL, *base), resolve=False)
        for key, _ in flatten(tree):
            if key in seen or key in ("run_dir",):
                continue
            seen.add(key)
            for value in JUNK:
                yield Override((*base, f"{key}={value}"), _expected(key, value), key)


def _expected(key: str, value: str) -> str | None:
    """Return what the value of a key must be, or None where this value may be valid."""
    kind = kind_of(key, KEYS["train"])
    try:
        parsed = OverridesParser.create().parse_override(f"{key}={value}")
    except Exception:  # Hydra raises several kinds of errors for what it cannot parse
        return "something that Hydra can read"
    if parsed.is_sweep_override() or "${" in value or kind is None:
        return None
    return None if kind.takes(parsed.value()) else kind.words


def cases(settings: Settings) -> Iterator[Case]:
    """Try some 220 generated overrides, and all of ``WRITTEN``."""
    drawn = settings.some(list(overrides()), 220, "overrides")
    written = [Override(tuple(text.split(" "))) for text in settings.some(WRITTEN, len(WRITTEN), "written")]

    def try_it(numbered: tuple[int, Override]) -> Case:
        number, override = numbered
        folder = settings.folder / "overrides" / str(number)
        small = [word for word in SMALL if word.split("=")[0] not in {w.split("=")[0] for w in override.words}]
        quiet = [word for word in QUIET if not override.key.startswith(word[1:])]
        words = [*small, "trainer=debug", *quiet, *override.words, f"hydra.run.dir={folder}"]
        done = run(words, limit=60)
        faults = answered(done) if folder.name in override.words else refused(done)
        if done.status == 0 and override.expected:
            faults.append(f"accepted, though the value must be {override.expected}")
        elif done.status == 0 and (folder / "metrics.json").exists():
            faults += infinite(folder)
        elif done.status and folder.exists():
            left = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
            faults += [f"refused after it had written {left}"] if _before_training(done.output) else []
        if done.status and not faults and override.expected and override.key.split(".")[-1] not in done.output:
            faults.append(f"the error line does not name {override.key}")
        return Case("inputs: overrides", " ".join(map(repr, override.words)), typed(words), faults, done.output)

    yield from at_once(settings.jobs, try_it, enumerate([*written, *drawn]))


def _before_training(output: str) -> bool:
    """Tell whether a command failed before it read any image."""
    return " training, " not in output
