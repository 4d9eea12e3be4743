"""Trainings, decodings and sweeps that are killed at random moments, and repeated until they end.

Half of the moments are random times, half are file operations of an undisturbed run (see
:mod:`tests.torture.trapped`), where a kill can do harm.
"""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from tests.torture.commands import LIMIT, SMALL, Done, Running, Settings, at_once
from tests.torture.looks import litter, not_whole
from tests.torture.table import Case, Table, typed

STATUS = {"SIGKILL": (-9,), "SIGTERM": (143, -15), "SIGINT": (130, -2)}  # or 0: it may have ended already
TRAINING = (
    *("model=conv_dropout", "data=digits", "data.batch_size=128", "data.binarize=dynamic", "schedule=cosine"),
    *(
        "model.kl_warmup_steps=20",
        "trainer.max_epochs=3",
        "trainer.limit_train_batches=4",
        "trainer.log_every_n_steps=2",
    ),
)
SWEEP = (
    *("-m", *SMALL, "trainer.max_epochs=2", "trainer.limit_train_batches=4", "model.latent_dim=2,3,4"),
    *("hydra.launcher.slots=2", "~callbacks.dashboard"),
)


class Job(NamedTuple):
    """A command to kill: its overrides, its duration and its number of file operations."""

    name: str
    words: Sequence[str]
    seconds: float = 0.0
    operations: int = 0

    def at(self, folder: Path) -> list[str]:
        """Return the overrides with the run, or sweep, and its cache below ``folder``."""
        where = "hydra.sweep.dir" if self.name == "sweep" else "hydra.run.dir"
        cache = [f"data.cache_dir={folder}/cache"] if self.name == "decoding" else []
        return [*self.words, *cache, f"{where}={folder}/run"]

    def start(self, folder: Path, extra: Sequence[str] = (), trap: Sequence[str] = ("0", "SIGKILL")) -> Running:
        """Start the command. Its temporary files lie on another file system where there is one, as on many machines."""
        words = [*trap, str(folder), "src.train", *self.at(folder), *extra]
        return Running(words, "tests.torture.trapped", TMPDIR=_elsewhere(folder), COUNT_INTO=f"{folder}/operations")


class Kill(NamedTuple):
    """A signal, sent after some seconds or at a file operation."""

    signal: str
    seconds: float | None
    moment: str = "0"

    def __str__(self) -> str:
        when = f"after {self.seconds:.2f} s" if self.seconds is not None else f"at file operation {self.moment}"
        return f"{self.signal} {when}"


def cases(settings: Settings, table: Table) -> Iterator[Case]:
    """Kill each job once or twice, and repeat it until it ends: one case each."""
    pictures = _pictures(settings)
    decoding = ("model=conv_tiny", "data=image_folder", f"data.root={pictures}", "data.channels=1", "trainer=debug")
    jobs = [Job("training", TRAINING), Job("decoding", decoding), Job("sweep", SWEEP)]
    shares = (0.5, 0.25, 0.25)
    for job, share in zip(jobs, shares, strict=True):
        whole, row = settings.folder / f"whole-{job.name}", f"kills: {job.name}"
        job, fault = _undisturbed(job, whole)  # noqa: PLW2901 (with its duration)
        if fault:
            yield fault
            continue
        plans = _planned(settings, job, max(1, round(share * settings.kills)))
        table.note(row, f"{sum(map(len, plans))} kills")

        def try_it(numbered: tuple[int, list[Kill]], job: Job = job, whole: Path = whole) -> Case:
            number, kills = numbered
            return _killed(job, kills, settings.folder / f"{job.name}-{number}", whole)

        yield from at_once(settings.jobs, try_it, enumerate(plans))


def _undisturbed(job: Job, whole: Path) -> tuple[Job, Case | None]:
    """Run the job without a kill; return it with its duration and number of file operations, or a fault."""
    _fresh(whole)
    done = job.start(whole).done(LIMIT * 2)
    operations = whole / "operations"
    if done.status != 0 or not operations.exists():
        return job, Case(
            f"kills: {job.name}", "undisturbed", typed(job.at(whole)), [f"exit status {done.status}"], done.output
        )
    return job._replace(seconds=done.seconds, operations=int(operations.read_text())), None


def _planned(settings: Settings, job: Job, kills: int) -> list[list[Kill]]:
    """Draw ``kills`` kills, one or two for each time that the job is tried."""
    rng, plans = settings.random("kills", job.name), []
    while kills > 0:
        count = min(kills, rng.choice((1, 1, 2)))
        plans.append([_drawn(rng, job) for _ in range(count)])
        kills -= count
    return plans


def _drawn(rng: random.Random, job: Job) -> Kill:
    name = rng.choices(("SIGKILL", "SIGTERM", "SIGINT"), (3, 1, 1))[0]
    if rng.random() < 0.5:
        return Kill(name, rng.uniform(0.05, 0.95) * job.seconds)
    return Kill(name, None, f"{rng.randint(1, job.operations)}{rng.choice(('', 'w'))}")


def _killed(job: Job, kills: Sequence[Kill], folder: Path, whole: Path) -> Case:
    """Kill a job as planned, repeat it until it ends, and compare its files with those of the undisturbed run."""
    _fresh(folder)
    faults, outputs = [], []
    for kill in kills:
        extra, trap = _again(job, folder), (kill.moment, kill.signal)
        running = job.start(folder, extra, trap)
        if kill.seconds is not None:
            time.sleep(kill.seconds)
            running.signal(signal.Signals[kill.signal], group=False)
        done = running.done()
        outputs.append(f"[{kill}, {' '.join(extra)}: status {done.status}]\n{done.output}")
        if done.status not in (0, *STATUS[kill.signal]):
            faults.append(f"{kill}: exit status {done.status}, expected {STATUS[kill.signal][0]}")
        if "Traceback" in done.output:
            faults.append(f"{kill}: a traceback")
        _wait_for_children()
        faults += [f"{kill}: {fault}" for fault in not_whole(folder)]
    done = _finish(job, folder, outputs)
    if done.status != 0:
        faults.append(f"repeated, it fails: status {done.status}")
    else:
        faults += [*_different(job, folder / "run", whole / "run"), *litter(folder), *litter(Path(_elsewhere(folder)))]
        if job.name == "decoding":
            faults += _other_cache(folder / "cache", whole / "cache")
    shutil.rmtree(_elsewhere(folder), ignore_errors=True)
    if not faults:
        shutil.rmtree(folder)
    trap = [kills[0].moment, kills[0].signal, str(folder), "src.train"]
    shown = typed([*trap, *job.at(folder)], "tests.torture.trapped", TMPDIR=_elsewhere(folder))
    what = ", then ".join(map(str, kills)) + f" (of {job.seconds:.1f} s, {job.operations} operations)"
    return Case(f"kills: {job.name}", what, shown, faults, "\n".join(outputs))


def _finish(job: Job, folder: Path, outputs: list[str]) -> Done:
    """Repeat the job until it succeeds, twice at most."""
    for _ in range(2):
        extra = _again(job, folder)
        done = job.start(folder, extra).done(LIMIT * 2)
        outputs.append(f"[repeated, {' '.join(extra)}: status {done.status}]\n{done.output}")
        if done.status == 0:
            break
    return done


def _again(job: Job, folder: Path) -> list[str]:
    """Return the overrides of a repeat: a resume if there is a checkpoint. Else delete the run's folder first."""
    if job.name == "sweep":
        return []
    if (folder / "run" / "checkpoints" / "last.ckpt").exists():
        return ["ckpt_path=last"]
    if (folder / "run" / ".hydra" / "config.yaml").exists():  # no epoch was complete
        shutil.rmtree(folder / "run")
    return []


def _different(job: Job, run: Path, whole: Path) -> list[str]:
    """Compare with the undisturbed run: weights bit for bit, and metrics."""
    runs = sorted(path.parent.relative_to(whole) for path in whole.rglob("metrics.json"))
    faults = []
    for name in runs:
        for file in ("last.ckpt", "best.ckpt"):
            ours, theirs = (_weights(root / name / "checkpoints" / file) for root in (run, whole))
            if ours.keys() != theirs.keys() or not all(torch.equal(ours[key], theirs[key]) for key in theirs):
                faults.append(f"{name / file}: other weights than in the undisturbed run")
        ours, theirs = (json.loads((root / name / "metrics.json").read_text()) for root in (run, whole))
        faults += [
            f"{name}: {key} {ours[key]} != {theirs[key]}" for key in ("test", "best") if ours[key] != theirs[key]
        ]
        if job.name == "sweep" and json.loads((run / name / "point.json").read_text())["status"] != "finished":
            faults.append(f"{name}: point.json says it is not finished")
    if job.name == "sweep":
        faults += [f"no {name}" for name in ("results.csv", "report/index.html") if not (run / name).exists()]
    return faults


def _weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True, map_location="cpu")["state_dict"]


def _other_cache(cache: Path, whole: Path) -> list[str]:
    (ours,), (theirs,) = (list(root.glob("*px*/images.npy")) for root in (cache, whole))
    equal = np.array_equal(np.load(ours), np.load(theirs)) and (
        ours.with_name("index.json").read_text() == theirs.with_name("index.json").read_text()
    )
    return [] if equal else ["the cache differs from that of the undisturbed run"]


def _elsewhere(folder: Path) -> str:
    """Name a folder for temporary files, on another file system than the run where there is one."""
    parent = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else folder.parent
    return str(parent / f"{folder.parent.name}-{folder.name}-tmp")


def _fresh(folder: Path) -> None:
    folder.mkdir(parents=True)
    Path(_elsewhere(folder)).mkdir(parents=True)


def _wait_for_children(seconds: float = 0.5) -> None:
    """Wait for the children of a killed process, which end a moment later."""
    time.sleep(seconds)


def _pictures(settings: Settings) -> Path:
    """Write 200 pictures, so that decoding them takes a while."""
    folder, rng = settings.folder / "pictures", np.random.default_rng(settings.seed)
    folder.mkdir()
    for number in range(200):
        Image.fromarray(rng.integers(0, 256, (160, 160), dtype=np.uint8)).save(folder / f"{number:03}.png")
    return folder
