"""Damaged and foreign run folders, given to resume, ``evaluate`` and ``explore``."""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from tests.torture.commands import SMALL, Settings, at_once, run
from tests.torture.looks import answered, changed, listing
from tests.torture.table import Case, typed

Change = Callable[[Path, random.Random], None]  # damages a run folder
TRAINED = (*SMALL, "schedule=cosine", "trainer.max_epochs=2", "trainer.limit_train_batches=4")


def _text(file: str, text: str | bytes) -> Change:
    return lambda run, rng: _write(run / file, text)


def _write(path: Path, text: str | bytes) -> None:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def _cut(file: str, share: float) -> Change:
    return lambda run, rng: _write(run / file, (run / file).read_bytes()[: int(share * (run / file).stat().st_size)])


def _flip(file: str, bits: int) -> Change:
    def change(run: Path, rng: random.Random) -> None:
        data = bytearray((run / file).read_bytes())
        for _ in range(bits):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        _write(run / file, bytes(data))

    return change


def _in_tree(tree: Any, key: str, value: Any) -> None:
    """Set the value of a dotted key; ``...`` removes the key."""
    *parents, last = [int(word) if word.isdecimal() else word for word in key.split(".")]
    for word in parents:
        tree = tree[word]
    if value is ...:
        del tree[last]
    else:
        tree[last] = value


def _config(key: str, value: Any) -> Change:
    def change(run: Path, rng: random.Random) -> None:
        tree = yaml.safe_load((run / CONFIG).read_text())
        _in_tree(tree, key, value)
        _write(run / CONFIG, yaml.safe_dump(tree))

    return change


def _metrics(key: str, value: Any) -> Change:
    def change(run: Path, rng: random.Random) -> None:
        tree = json.loads((run / METRICS).read_text())
        _in_tree(tree, key, value)
        _write(run / METRICS, json.dumps(tree))

    return change


def _checkpoint(key: str, value: Any) -> Change:
    def change(run: Path, rng: random.Random) -> None:
        for file in (LAST, BEST):
            tree = torch.load(run / file, weights_only=True)
            _in_tree(tree, key, value)
            torch.save(tree, run / file)

    return change


def _weights(of: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    def change(run: Path, rng: random.Random) -> None:
        for file in (LAST, BEST):
            tree = torch.load(run / file, weights_only=True)
            tree["state_dict"] = {name: of(value) for name, value in tree["state_dict"].items()}
            torch.save(tree, run / file)

    return change


def _gone(file: str) -> Change:
    return lambda run, rng: shutil.rmtree(run / file) if (run / file).is_dir() else (run / file).unlink()


def _folder(file: str) -> Change:
    return lambda run, rng: ((run / file).unlink(), (run / file).mkdir())[0]


def _loop(file: str) -> Change:
    return lambda run, rng: ((run / file).unlink(), (run / file).symlink_to(Path(file).name))[0]


CONFIG, METRICS = ".hydra/config.yaml", "metrics.json"
LAST, BEST = "checkpoints/last.ckpt", "checkpoints/best.ckpt"
BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)
DEEP = 20_000
KEYS = (
    *("optimizer_states", "lr_schedulers", "loops", "pytorch-lightning_version", "state_dict", "callbacks", "epoch"),
    *("global_step",),
)
PARTS = ("data", "test", "best", "evaluation", "config", "names")  # of metrics.json
DOCUMENTS = ("[]", "3", '"x"', "null", "NaN", "{}", "[" * 99_999)
CHANGES: dict[str, Change] = {
    **{f"{file} empty": _text(file, "") for file in (CONFIG, METRICS, LAST, BEST)},
    **{f"{file} binary": _text(file, bytes(range(256)) * 4) for file in (CONFIG, METRICS, LAST, BEST)},
    **{f"{file} gone": _gone(file) for file in (CONFIG, METRICS, LAST, BEST, "checkpoints", ".hydra", "tensorboard")},
    **{f"{file} a folder": _folder(file) for file in (CONFIG, METRICS, LAST, BEST)},
    **{f"{file} a link to itself": _loop(file) for file in (CONFIG, METRICS, LAST, BEST)},
    **{f"{file} cut to {share:.0%}": _cut(file, share) for file in (CONFIG, METRICS) for share in (0.3, 0.8)},
    **{f"{file} cut to {share:.1%}": _cut(file, share) for file in (LAST, BEST) for share in (0.01, 0.5, 0.99, 0.999)},
    "config broken": _text(CONFIG, "model: {[\n"),
    "config a list": _text(CONFIG, "- 1\n- 2\n"),
    "config a word": _text(CONFIG, "hello\n"),
    "config with tabs": _text(CONFIG, "model:\n\tlatent_dim: 3\n"),
    "config with numbers for keys": _text(CONFIG, "1: {2: 3}\nmodel: {1: 2}\ndata: {null: true}\n"),
    "config with the same key twice": _text(CONFIG, "model: 1\nmodel: 2\n"),
    "config contains itself": _text(CONFIG, "model: &a {b: *a}\ndata: *a\n"),
    "config contains itself in a list": _text(CONFIG, "model: &a [*a]\ndata: *a\n"),
    "config very deep": _text(CONFIG, "model: " + "[" * DEEP + "]" * DEEP),
    "config very deep mappings": _text(CONFIG, "model: " + "{a: " * 900 + "1" + "}" * 900),
    "config a bomb of anchors": _text(CONFIG, BOMB),
    "config that calls": _text(CONFIG, "model: !!python/object/apply:os.system ['true']\n"),
    "config not UTF-8": _text(CONFIG, b"model: caf\xe9\n"),
    "config of dates": _text(CONFIG, "model: 2020-01-01\ndata: 12:30:45\n"),
    **{f"config without {key}": _config(key, ...) for key in ("model", "data", "seed", "model.likelihood", "trainer")},
    **{f"config with {key} null": _config(key, None) for key in ("model", "data", "trainer", "model.encoder", "seed")},
    **{f"config with {key} a list": _config(key, [1, 2]) for key in ("model", "data", "seed", "data.image_size")},
    **{
        f"config with {key}={value}": _config(key, value)
        for key, value in (
            ("model.latent_dim", "abc"),
            ("model.latent_dim", 10**12),
            ("model.latent_dim", "${model.latent_dim}"),
            ("model.latent_dim", "${oc.env:NOPE}"),
            ("model.kl_weight", float("nan")),
            ("model.encoder.widths", []),
            ("data.image_size", -3),
            ("data.image_size", 10**9),
            ("data.batch_size", 0),
            ("data.name", "../../x"),
            ("data.val_fraction", 7),
            ("seed", -1),
            ("seed", "x"),
            ("seed", 10**30),
            ("trainer.max_epochs", "x"),
        )
    },
    **{f"metrics.json is {text[:20]}": _text(METRICS, text) for text in DOCUMENTS},
    **{
        f"metrics.json with {key}={value!r}": _metrics(key, value)
        for key, value in (
            *((key, value) for key in PARTS for value in (3, [1], None)),
            ("data.fingerprint", 5),
            ("data.fingerprint", [1]),
            ("steps", "abc"),
            ("steps", None),
            ("steps", float("nan")),
            ("steps", 10**30),
            ("git_commit", 5),
            ("evaluation", {"test": 3}),
            ("evaluation", {"test": {"elbo": 5}}),
            ("evaluation", {"test": {"elbo": {"elbo": "x"}}}),
            ("evaluation", {"val": [1, 2]}),
        )
    },
    **{f"checkpoints without {key}": _checkpoint(key, ...) for key in KEYS},
    **{f"checkpoints with {key} {value!r}": _checkpoint(key, value) for key in KEYS for value in (None, {}, [], "x")},
    **{
        f"checkpoints with {key} {value!r}": _checkpoint(key, value)
        for key, value in (
            ("epoch", -5),
            ("epoch", 10**12),
            ("global_step", -5),
            ("loops", {"fit_loop": {}}),
            ("optimizer_states", [{}]),
            ("optimizer_states", [{"state": {}, "param_groups": []}]),
            ("lr_schedulers", [{}]),
            ("lr_schedulers", [{"last_epoch": "x"}]),
            ("callbacks", {"History": {}}),
            ("callbacks", {"History": {"epochs": 3}}),
            ("callbacks", {"History": {"epochs": [3, "x", {"epoch": "y", "val/elbo": "z"}]}}),
            ("callbacks", {"Throughput": {"images": "x", "seconds": None, "elapsed": []}}),
            ("pytorch-lightning_version", "99.0.0"),
            ("pytorch-lightning_version", "abc"),
            ("pytorch-lightning_version", "0.1.0"),
        )
    },
    "weights not finite": _weights(lambda weight: weight * float("nan")),
    "weights huge": _weights(lambda weight: torch.full_like(weight, 3e38) if weight.is_floating_point() else weight),
    "weights in float64": _weights(lambda weight: weight.double()),
    "weights transposed": _weights(lambda weight: weight.mT.contiguous() if weight.dim() == 2 else weight),
    "weights of no shape": _weights(lambda weight: torch.zeros(())),
    "weights of a list": _checkpoint("state_dict", [torch.zeros(3)]),
    "checkpoint a bare tensor": lambda run, rng: torch.save(torch.zeros(3), run / LAST),
    "checkpoint a pickle": _text(LAST, b"\x80\x04K\x03."),
}  # fmt: skip


def changes(settings: Settings) -> dict[str, Change]:
    """Map the names of the changes to try to the changes: ``CHANGES`` and flipped bits."""
    flips = {
        f"{file} with {bits} flipped bits, {number}": _flip(file, bits)
        for number in range(max(1, round(2 * settings.count)))
        for file in (CONFIG, METRICS, LAST, BEST)
        for bits in (1, 20, 500)
    }
    every = {**CHANGES, **flips}
    chosen = set(settings.some(list(every), len(every), "runs"))
    return {name: change for name, change in every.items() if name in chosen}


def cases(settings: Settings) -> Iterator[Case]:
    """Apply each change to copies of one run, and give a copy to each of four commands."""
    whole = settings.folder / "whole-run"
    done = run([*TRAINED, f"hydra.run.dir={whole}"])
    if done.status != 0:
        raise RuntimeError(done.output)
    run([f"run={whole}", "parts=[elbo]"], "src.evaluate")
    makers = changes(settings)

    def try_it(numbered: tuple[int, str]) -> list[Case]:
        number, name = numbered
        found = []
        for how, words, module in (
            ("evaluate", ["parts=[elbo,latents]", "samples.components=2"], "src.evaluate"),
            ("explore", ["figures=[losses,samples]"], "src.explore"),
            ("detect", ["normal=[0,1,2,3]", "samples=1"], "src.detect"),
            ("resume", [*TRAINED, "trainer.max_epochs=3", "ckpt_path=last"], "src.train"),
        ):
            folder = settings.folder / "runs" / f"{number}-{how}"
            shutil.copytree(whole, folder)
            makers[name](folder, settings.random("change", name))
            before = listing(folder)
            words = [*words, f"hydra.run.dir={folder}" if module == "src.train" else f"run={folder}"]  # noqa: PLW2901
            done = run(words, module, limit=60)
            faults = answered(done, folder if how == "resume" else None)
            faults += changed(before, folder) if done.status else []
            found.append(Case(f"inputs: run folders, {how}", name, typed(words, module), faults, done.output))
            if not faults:
                shutil.rmtree(folder)
        return found

    for found in at_once(settings.jobs, try_it, enumerate(makers)):
        yield from found
