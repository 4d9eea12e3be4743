"""Commands on a file system that fills: a training, a decoding, a sweep, an evaluation.

In a user namespace of its own the campaign mounts a small tmpfs, which nobody else sees; where that is refused, files
may not grow past a limit (RLIMIT_FSIZE), which ends writes as a full disk does.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from tests.helpers import ROOT, WARM
from tests.torture.commands import LIMIT, QUIET, SMALL, Done, Settings, run
from tests.torture.looks import infinite, not_whole, refused
from tests.torture.table import Case, Table, typed

SIZES = 5  # of each command, from nothing to enough
KIB = 1024
TRAINING = (*SMALL, "trainer.max_epochs=2", "trainer.limit_train_batches=4", "trainer.log_every_n_steps=1")


class Job(NamedTuple):
    """What fills the disk.

    Attributes:
        name: of its row.
        words: given the folder on the small disk.
        module: the entry point.
        result: the folder of its figures, below the disk.
        ready: is called with the folder on the small disk before anything is tried.
    """

    name: str
    words: Callable[[Path], Sequence[str]]
    module: str = "src.train"
    result: str = "run"
    ready: Callable[[Path], None] = lambda disk: None


class Tmpfs:
    """A tmpfs whose size is changed while it is mounted."""

    way = "a tmpfs of that size in a user namespace"

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "torture", folder], check=True)

    def room(self, room: int | None) -> None:
        """So many bytes beside what is there; None for enough."""
        size = 256 * 2**20 if room is None else self.used() + room
        subprocess.run(["mount", "-o", f"remount,size={-(-size // 4096) * 4096}", self.folder], check=True)

    def used(self) -> int:
        """Bytes in use."""
        facts = shutil.disk_usage(self.folder)
        return facts.used

    def clear(self) -> None:
        """Empty it."""
        self.room(None)
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def needs(self, before: int) -> int:
        """Bytes that a command has taken, where ``before`` were in use before it."""
        return self.used() - before


class FileLimit(Tmpfs):
    """No file grows past so many bytes: what commands inherit from the process that they are forked from."""

    way = "RLIMIT_FSIZE: no file grows past that size"

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder

    def room(self, room: int | None) -> None:
        """So many bytes a file."""
        most = resource.RLIM_INFINITY if room is None else max(1, room)
        resource.prlimit(WARM.pid, resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))

    def used(self) -> int:
        """The largest file: what must fit."""
        return max((path.stat().st_size for path in self.folder.rglob("*") if path.is_file()), default=0)

    def needs(self, before: int) -> int:
        """The largest file."""
        return self.used()


def cases(settings: Settings, table: Table) -> Iterator[Case]:
    """In a namespace of its own where the system allows it, else here."""
    words = [str(settings.folder), str(settings.seed), str(settings.count)]
    inside = ["unshare", "-rm", sys.executable, "-m", "tests.torture.disk", *words]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    (settings.folder / "disk").mkdir()
    tried = (
        subprocess.run([*inside, "try"], capture_output=True, env=env, check=False) if shutil.which("unshare") else None
    )
    if tried is not None and tried.returncode == 0:
        way = Tmpfs.way
        with subprocess.Popen(inside, stdout=subprocess.PIPE, text=True, env=env) as process:
            yield from (Case(**json.loads(line)) for line in process.stdout if line.startswith("{"))
        if process.returncode:
            yield Case("disk", "the campaign itself", " ".join(inside), [f"exit status {process.returncode}"])
    elif hasattr(resource, "prlimit"):
        way = FileLimit.way
        yield from _cases(settings, FileLimit(settings.folder / "disk" / "small"))
    else:
        way = "not possible here"
    rows = {case.row for case in table.cases if case.row.startswith("disk")} or {"disk"}
    for row in rows:
        table.note(row, way)


def _cases(settings: Settings, disk: Tmpfs) -> Iterator[Case]:
    sizes = max(1, round(SIZES * settings.count))
    for job in _jobs(settings):
        disk.clear()
        job.ready(disk.folder)
        before = disk.used()
        done = run(job.words(disk.folder), job.module, 3 * LIMIT)
        if done.status != 0:
            yield Case(f"disk: {job.name}", "with room", typed(job.words(disk.folder)), ["it fails"], done.output)
            continue
        needs = max(4096, disk.needs(before))
        rng = settings.random("disk", job.name)
        for number in range(sizes):
            share = (number + rng.random()) / sizes
            yield _filled(job, disk, round(share * needs), needs)
    yield from _filled_later(disk)
    disk.clear()


def _filled(job: Job, disk: Tmpfs, room: int, needs: int) -> Case:
    """Run it with so much room, then again with enough."""
    disk.clear()
    job.ready(disk.folder)
    kept = {path: path.read_bytes() for path in disk.folder.rglob("*.ckpt")}
    disk.room(room)
    words = job.words(disk.folder)
    done = run(words, job.module, 3 * LIMIT)
    faults = _full(done, points="-m" in words)
    faults += not_whole(disk.folder)
    faults += [f"{path.name} was changed" for path, data in kept.items() if path.read_bytes() != data]
    disk.room(None)
    faults += _goes_on(job, disk, done)
    what = f"{room // KIB} KiB of the {needs // KIB} KiB that it takes"
    return Case(f"disk: {job.name}", what, typed(words, job.module), faults, done.output)


def _full(done: Done, points: bool) -> list[str]:
    """What is wrong with the answer to a full disk; of a sweep the points' outputs are elsewhere."""
    if done.status == 0:
        return []  # it got through: what is optional was left out, or the room sufficed
    faults = [
        fault for fault in refused(done) if not (points and "failed: repeat" in done.output and "error:" in fault)
    ]
    line = done.output.strip().splitlines()[-1] if done.output.strip() else ""
    if not points and not any(word in line for word in ("disk is full", "File too large", "No space")):
        faults.append(f"the last line does not say that the disk is full: {line[:150]}")
    if "Exception in thread" in done.output:
        faults.append("a thread's traceback")
    return faults


def _goes_on(job: Job, disk: Tmpfs, done: Done) -> list[str]:
    """Whether a repeat with room ends well: a resume where there is a checkpoint, else as the first time."""
    folder = disk.folder / job.result
    if job.module == "src.train" and (folder / "metrics.json").exists() and done.status == 0:
        return infinite(folder)
    extra = []
    if job.module == "src.train" and job.result == "run":
        if (folder / "checkpoints" / "last.ckpt").exists():
            extra = ["ckpt_path=last"]
        elif (folder / ".hydra").exists():
            shutil.rmtree(folder)
    again = run([*job.words(disk.folder), *extra], job.module, 3 * LIMIT)
    if again.status != 0:
        last = again.output.strip().splitlines()[-1:]
        return [f"a repeat with room ({' '.join(extra)}) ends with status {again.status}: {last}"]
    return infinite(folder) if job.result == "run" else []


def _filled_later(disk: Tmpfs) -> Iterator[Case]:
    """A run that has epochs goes on while the disk is full: its checkpoints stay as they are."""
    words = (*TRAINING, f"hydra.run.dir={disk.folder}/run")
    for room in (0, 8 * KIB, 100 * KIB):
        disk.clear()
        _trained(disk.folder)
        files = [disk.folder / "run" / "checkpoints" / name for name in ("last.ckpt", "best.ckpt")]
        before = [file.read_bytes() for file in files]
        disk.room(room)
        longer = [*words, "trainer.max_epochs=4", "ckpt_path=last"]
        done = run(longer)
        faults = _full(done, points=False) + not_whole(disk.folder)
        if done.status and room == 0 and [file.read_bytes() for file in files] != before:
            faults.append("a checkpoint is no longer what it was")
        disk.room(None)
        again = run(longer)
        if again.status != 0:
            faults.append(f"a repeat with room ends with status {again.status}: {again.output[-200:]}")
        yield Case("disk: resume", f"{room // KIB} KiB are left", typed(longer), faults, done.output)


def _jobs(settings: Settings) -> list[Job]:
    pictures = settings.folder / "disk" / "pictures"
    if not pictures.exists():
        pictures.mkdir()
        for number in range(64):
            pixels = np.random.default_rng(number).integers(0, 256, (40, 40), dtype=np.uint8)
            Image.fromarray(pixels).save(pictures / f"{number}.png")
    folder = (
        "model=conv_tiny",
        "data=image_folder",
        "data.channels=1",
        "trainer=debug",
        *QUIET,
        f"data.root={pictures}",
    )
    sweep = ("-m", *TRAINING, *QUIET, "model.latent_dim=2,3", "hydra.launcher.slots=2")
    return [
        Job("training", lambda disk: [*TRAINING, f"hydra.run.dir={disk}/run"]),
        Job("decoding", lambda disk: [*folder, f"data.cache_dir={disk}/cache", f"hydra.run.dir={disk}/run"]),
        Job("evaluation", lambda disk: [f"run={disk}/run", "parts=[elbo,latents]", "samples.components=2"],
            "src.evaluate", ready=_trained),
        Job("pictures", lambda disk: [f"run={disk}/run", "figures=[samples,losses]", "embed=npz"],
            "src.explore", ready=_trained),
        Job("sweep", lambda disk: [*sweep, f"hydra.sweep.dir={disk}/sweep"], result="sweep"),
    ]  # fmt: skip


def _trained(disk: Path) -> None:
    done = run([*TRAINING, f"hydra.run.dir={disk}/run"])
    if done.status != 0:
        raise RuntimeError(done.output)


def main() -> None:
    """Inside the namespace: cases as lines of JSON."""
    folder, seed, count, *words = sys.argv[1:]
    settings = Settings(Path(folder), int(seed), float(count))
    disk = Tmpfs(Path(folder) / "disk" / ("try" if words else "small"))
    if not words:
        for case in _cases(settings, disk):
            print(case.to_json(), flush=True)
        WARM.close()


if __name__ == "__main__":
    main()
