"""Commands on a disk that becomes full: training, decoding, evaluation, pictures and a sweep.

The campaign mounts a small tmpfs in a user namespace of its own, invisible to other processes. Where the system
forbids that, RLIMIT_FSIZE limits the size of every file, so that writes fail as on a full disk.
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

SIZES = 5  # disk sizes to try for each command, from nothing to enough
KIB = 1024
TRAINING = (*SMALL, "trainer.max_epochs=2", "trainer.limit_train_batches=4", "trainer.log_every_n_steps=1")


class Job(NamedTuple):
    """A command that fills the disk.

    Attributes:
        name: its row in the table.
        words: returns the overrides, given the folder on the small disk.
        module: the entry point.
        result: the folder of its results, relative to the disk.
        prepare: is called with the folder on the small disk before the command.
    """

    name: str
    words: Callable[[Path], Sequence[str]]
    module: str = "src.train"
    result: str = "run"
    prepare: Callable[[Path], None] = lambda disk: None


class Tmpfs:
    """A tmpfs whose size can be changed while it is mounted."""

    way = "a tmpfs of that size in a user namespace"

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "torture", folder], check=True)

    def room(self, room: int | None) -> None:
        """Leave ``room`` bytes free; None leaves enough for everything."""
        size = 256 * 2**20 if room is None else self.used() + room
        subprocess.run(["mount", "-o", f"remount,size={-(-size // 4096) * 4096}", self.folder], check=True)

    def used(self) -> int:
        """Return the bytes in use."""
        return shutil.disk_usage(self.folder).used

    def clear(self) -> None:
        """Remove all files."""
        self.room(None)
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def needs(self, before: int) -> int:
        """Return the bytes that a command has used, where ``before`` were in use before it."""
        return self.used() - before


class FileLimit(Tmpfs):
    """A limit on the size of each file, set on the warm process; the commands that it forks inherit it."""

    way = "RLIMIT_FSIZE: no file grows past that size"

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder

    def room(self, room: int | None) -> None:
        """Limit each file to ``room`` bytes; None sets no limit."""
        limit = resource.RLIM_INFINITY if room is None else max(1, room)
        resource.prlimit(WARM.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    def used(self) -> int:
        """Return the size of the largest file."""
        return max((path.stat().st_size for path in self.folder.rglob("*") if path.is_file()), default=0)

    def needs(self, before: int) -> int:
        """Return the size of the largest file, which must fit."""
        return self.used()


def cases(settings: Settings, table: Table) -> Iterator[Case]:
    """Run the cases in a user namespace where the system allows it, else under a file size limit."""
    words = [str(settings.folder), str(settings.seed), str(settings.count)]
    inside = ["unshare", "-rm", sys.executable, "-m", "tests.torture.disk", *words]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    (settings.folder / "disk").mkdir()
    attempt = (
        subprocess.run([*inside, "try"], capture_output=True, env=env, check=False) if shutil.which("unshare") else None
    )
    if attempt is not None and attempt.returncode == 0:
        way = Tmpfs.way
        with subprocess.Popen(inside, stdout=subprocess.PIPE, text=True, env=env) as process:
            yield from (Case(**json.loads(line)) for line in process.stdout if line.startswith("{"))
        if process.returncode:
            yield Case("disk", "the campaign itself", " ".join(inside), [f"exit status {process.returncode}"])
    elif hasattr(resource, "prlimit"):
        way = FileLimit.way
        yield from _cases(settings, FileLimit(settings.folder / "disk" / "small"))
    else:
        way = "not possible on this system"
    rows = {case.row for case in table.cases if case.row.startswith("disk")} or {"disk"}
    for row in rows:
        table.note(row, way)


def _cases(settings: Settings, disk: Tmpfs) -> Iterator[Case]:
    sizes = max(1, round(SIZES * settings.count))
    for job in _jobs(settings):
        disk.clear()
        job.prepare(disk.folder)
        before = disk.used()
        done = run(job.words(disk.folder), job.module, 3 * LIMIT)
        if done.status != 0:
            yield Case(f"disk: {job.name}", "enough room", typed(job.words(disk.folder)), ["it fails"], done.output)
            continue
        needs = max(4096, disk.needs(before))
        rng = settings.random("disk", job.name)
        for number in range(sizes):
            share = (number + rng.random()) / sizes
            yield _filled(job, disk, round(share * needs), needs)
    yield from _resumed(disk)
    disk.clear()


def _filled(job: Job, disk: Tmpfs, room: int, needs: int) -> Case:
    """Run a command with ``room`` bytes free, then again with enough."""
    disk.clear()
    job.prepare(disk.folder)
    kept = {path: path.read_bytes() for path in disk.folder.rglob("*.ckpt")}
    disk.room(room)
    words = job.words(disk.folder)
    done = run(words, job.module, 3 * LIMIT)
    faults = _full(done, points="-m" in words)
    faults += not_whole(disk.folder)
    faults += [f"{path.name} was changed" for path, data in kept.items() if path.read_bytes() != data]
    disk.room(None)
    faults += _repeated(job, disk, done)
    what = f"{room // KIB} KiB free of the {needs // KIB} KiB that it needs"
    return Case(f"disk: {job.name}", what, typed(words, job.module), faults, done.output)


def _full(done: Done, points: bool) -> list[str]:
    """Check the answer to a full disk. The points of a sweep write their errors to files of their own."""
    if done.status == 0:
        return []  # the room sufficed, or only optional files were left out
    faults = [
        fault for fault in refused(done) if not (points and "failed: repeat" in done.output and "error:" in fault)
    ]
    line = done.output.strip().splitlines()[-1] if done.output.strip() else ""
    if not points and not any(word in line for word in ("disk is full", "File too large", "No space")):
        faults.append(f"the last line does not say that the disk is full: {line[:150]}")
    if "Exception in thread" in done.output:
        faults.append("a traceback of a thread")
    return faults


def _repeated(job: Job, disk: Tmpfs, done: Done) -> list[str]:
    """Check that the command succeeds once there is room: as a resume if there is a checkpoint, else anew."""
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
        return [f"with enough room ({' '.join(extra)}) it ends with status {again.status}: {last}"]
    return infinite(folder) if job.result == "run" else []


def _resumed(disk: Tmpfs) -> Iterator[Case]:
    """Resume a run on a disk with little room: its checkpoints must stay intact."""
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
            faults.append("a checkpoint was changed")
        disk.room(None)
        again = run(longer)
        if again.status != 0:
            faults.append(f"with enough room it ends with status {again.status}: {again.output[-200:]}")
        yield Case("disk: resume", f"{room // KIB} KiB free", typed(longer), faults, done.output)


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
            "src.evaluate", prepare=_trained),
        Job("pictures", lambda disk: [f"run={disk}/run", "figures=[samples,losses]", "embed=npz"],
            "src.explore", prepare=_trained),
        Job("detection", lambda disk: [f"run={disk}/run", "normal=[0,1,2,3]", "samples=1"],
            "src.detect", prepare=_trained),
        Job("sweep", lambda disk: [*sweep, f"hydra.sweep.dir={disk}/sweep"], result="sweep"),
    ]  # fmt: skip


def _trained(disk: Path) -> None:
    done = run([*TRAINING, f"hydra.run.dir={disk}/run"])
    if done.status != 0:
        raise RuntimeError(done.output)


def main() -> None:
    """Run the cases inside the namespace, and print each as a line of JSON."""
    folder, seed, count, *words = sys.argv[1:]
    settings = Settings(Path(folder), int(seed), float(count))
    disk = Tmpfs(Path(folder) / "disk" / ("try" if words else "small"))
    if not words:
        for case in _cases(settings, disk):
            print(case.to_json(), flush=True)
        WARM.close()


if __name__ == "__main__":
    main()
