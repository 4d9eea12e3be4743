"""Test that a run folder is safe from other processes, other images, other models, damage and a full disk."""

import contextlib
import errno
import fcntl
import json
import os
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
import torch

from src.runs.checkpoints import WholeCheckpoints, check_resumable, first_readable, read_checkpoint
from src.runs.folder import RunFolder
from src.runs.metrics_file import locked, put_aside, write_json
from src.runs.trust import saved_value
from src.system import locks
from src.system.cli import Check
from src.system.errors import UserError
from src.system.files import remove_unfinished, whole_file
from src.system.locks import HELD, lock, lock_for_training
from tests.helpers import PLAIN, QUICK, WARM, assert_one_line_error, built, cli


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """Return a copy of a finished run of two epochs that a test may damage."""
    return Path(shutil.copytree(finished[0], tmp_path / "run"))


RESUMED = (*QUICK, "seed=0", "tags=[quick]", "ckpt_path=last")


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "train.log"}


def change(path: Path, spoil) -> None:
    checkpoint = torch.load(path, weights_only=True)
    spoil(checkpoint)
    torch.save(checkpoint, path)


# ---- other processes -----------------------------------------------------------------------------------------------


def test_one_training_at_a_time_works_in_a_run_folder(run, monkeypatch):
    first = lock_for_training(run)
    before = contents(run) | {run / "train.log": (run / "train.log").read_bytes()}
    done = cli(*RESUMED, "trainer.max_epochs=3", f"hydra.run.dir={run}")
    assert_one_line_error(done, "another process trains in", "choose another hydra.run.dir")
    assert contents(run) | {run / "train.log": (run / "train.log").read_bytes()} == before
    monkeypatch.setenv(HELD, str(run.resolve()))  # in a sweep the launcher holds the lock
    assert lock_for_training(run) is None
    monkeypatch.delenv(HELD)
    monkeypatch.setenv("LOCAL_RANK", "1")  # the second process of a training needs no lock
    assert lock_for_training(run) is None
    monkeypatch.delenv("LOCAL_RANK")
    with pytest.raises(UserError, match="another process trains in"):
        lock_for_training(run)
    first.close()
    lock_for_training(run).close()


def test_a_folder_that_is_named_after_a_choice_of_hydra_is_locked_too(tmp_path):
    """The default folder is one: if its name could not be resolved, two runs would share a folder."""
    (tmp_path / "conv_tiny").mkdir()
    held = lock_for_training(tmp_path / "conv_tiny")
    words = (*QUICK, "trainer=debug", f"hydra.run.dir='{tmp_path}/${{hydra:runtime.choices.model}}'")
    assert_one_line_error(cli(*words), f"another process trains in {tmp_path}/conv_tiny")
    held.close()
    done = cli(*words, *PLAIN)
    assert done.returncode == 0, done.stdout
    assert "Warning" not in done.stdout
    assert (tmp_path / "conv_tiny" / ".lock").exists()


def test_a_folder_name_that_cannot_be_resolved_is_one_line():
    assert_one_line_error(cli(*QUICK, "hydra.run.dir='${nothing:here}'"), "nothing")


@pytest.mark.parametrize("name", [".lock", "train.log", "metrics.json"])
def test_a_resume_writes_nothing_through_a_link_out(run, tmp_path, name):
    """Lock and log are written first, so they must be checked before."""
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(tmp_path / "elsewhere")
    done = cli(*RESUMED, "trainer.max_epochs=3", f"hydra.run.dir={run}")
    assert_one_line_error(done, name, "take it away")
    assert not (tmp_path / "elsewhere").exists()


def test_missing_locks_are_reported_once(tmp_path, monkeypatch, caplog):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    locks._warn_without_locks.cache_clear()
    assert lock_for_training(tmp_path) is None
    with locked(tmp_path):
        assert lock(tmp_path) is None
    assert len(caplog.records) == 1
    assert "no locks (No locks available)" in caplog.text


def test_of_two_trainings_that_start_at_once_one_finishes(tmp_path):
    words = (*QUICK, *PLAIN, "trainer.max_epochs=1", f"hydra.run.dir={tmp_path}/run")
    with tempfile.TemporaryFile("w+") as output:
        both = [WARM.start("src.train", words, dict(os.environ), output) for _ in range(2)]
        assert sorted(process.wait(120) for process in both) == [0, 1]
    assert {"metrics.json", "train.log", ".lock"} <= {path.name for path in (tmp_path / "run").iterdir()}


def test_a_lock_whose_file_is_gone_is_free(tmp_path):
    first = lock(tmp_path)
    (tmp_path / ".lock").unlink()
    second = lock(tmp_path)
    with pytest.raises(BlockingIOError):
        lock(tmp_path, patience=0)
    first.close()
    second.close()


def test_a_run_without_its_data_makes_no_folder(tmp_path):
    missing = ("data=image_folder", f"data.root={tmp_path}/nowhere", "model=conv_tiny")
    assert_one_line_error(cli(*missing, f"hydra.run.dir={tmp_path}/run"), "there is no folder")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_exit_status_names_the_signal(number, status, tmp_path):
    words = (*QUICK, *PLAIN, "trainer.max_epochs=1000", "~callbacks.early_stopping", f"hydra.run.dir={tmp_path}")
    with tempfile.TemporaryFile("w+") as output:
        process = WARM.start("src.train", words, dict(os.environ), output)
        while not (tmp_path / "checkpoints" / "last.ckpt").exists():
            assert process.poll() is None
            time.sleep(0.05)
        os.kill(process.pid, number)
        assert process.wait(60) == status
        output.seek(0)
        assert "ckpt_path=last" in output.read().splitlines()[-1]
    assert not (tmp_path / "metrics.json").exists()


# ---- other images --------------------------------------------------------------------------------------------------


def test_a_resume_is_of_the_same_images(picture_folder, tmp_path):
    root = picture_folder({f"{i:02}.png": (9, 9) for i in range(40)})
    data = ("data=image_folder", f"data.root={root}", f"data.cache_dir={tmp_path}/cache", "data.channels=1")
    words = (*data, "model=conv_tiny", "data.image_size=16", *PLAIN, f"hydra.run.dir={tmp_path}/run")
    assert cli(*words, "trainer.max_epochs=1").returncode == 0
    before = contents(tmp_path / "run")
    shutil.copy(root / "00.png", root / "40.png")
    refused = cli(*words, "trainer.max_epochs=2", "ckpt_path=last")
    assert_one_line_error(refused, "not those that", "was trained on", "bring those back", "another hydra.run.dir")
    assert contents(tmp_path / "run") == before
    (root / "40.png").unlink()
    assert cli(*words, "trainer.max_epochs=2", "ckpt_path=last").returncode == 0


# ---- where a run begins --------------------------------------------------------------------------------------------


def test_a_checkpoint_path_gives_only_the_weights(run, tmp_path):
    """With a learning rate of zero the weights stay; the other optimizer's state is not used."""
    start = run / "checkpoints" / "best.ckpt"
    still = ("optimizer=sgd", "optimizer.lr=0", "trainer.max_epochs=1", "trainer.limit_test_batches=1")
    done = cli(*QUICK, *PLAIN, *still, f"ckpt_path={start}", f"hydra.run.dir={tmp_path}/new")
    assert done.returncode == 0, done.stdout
    assert f"beginning with the weights of {start}" in done.stdout
    assert "Result on 128 of the 359 test images" in done.stdout
    _, model = built(*QUICK)
    trained = dict(model.named_parameters()).keys()
    old, new = (read_checkpoint(p)["state_dict"] for p in (start, tmp_path / "new" / "checkpoints" / "last.ckpt"))
    assert all(torch.equal(old[name], new[name]) for name in trained)
    still = (*still, "trainer.max_epochs=2", "ckpt_path=last")
    assert cli(*QUICK, *PLAIN, *still, f"hydra.run.dir={tmp_path}/new").returncode == 0
    record = json.loads((tmp_path / "new" / "metrics.json").read_text())
    assert (record["epochs"], record["config"]["ckpt_path"]) == (2, str(start))  # it still says where it began
    assert saved_value(tmp_path / "new" / ".hydra" / "config.yaml", "ckpt_path") == str(start)


def test_a_run_that_takes_no_step_has_no_result(run, tmp_path):
    done = cli(*QUICK, *PLAIN, "+trainer.max_time=00:00:00:00", f"hydra.run.dir={tmp_path}/new")
    assert_one_line_error(done, "not one step was taken")
    assert not (tmp_path / "new" / "metrics.json").exists()
    done = cli(*RESUMED, "trainer.max_epochs=2", f"hydra.run.dir={run}")
    assert done.returncode == 0, done.stdout
    assert "nothing was left to train after 2 epochs, 20 steps" in done.stdout


def test_a_resume_keeps_what_was_evaluated_of_the_same_weights(run):
    record = json.loads((run / "metrics.json").read_text())
    hashes = record["checkpoints"]
    record["evaluation"] = {"test": {"elbo": {"checkpoint": hashes["best.ckpt"]}, "bound": {"checkpoint": "another"}}}
    (run / "metrics.json").write_text(json.dumps(record))
    folder = RunFolder(run)
    put_aside(run)
    write_json(folder.metrics, {"evaluation": {"test": {"latents": {"checkpoint": hashes["last.ckpt"]}}}})  # meanwhile
    put_aside(run)  # killed, and resumed again
    assert json.loads(folder.before.read_text())["steps"] == record["steps"]
    folder.write_record({"steps": 1})
    assert json.loads(folder.metrics.read_text()) == {
        "steps": 1,
        "checkpoints": hashes,
        "evaluation": {
            "test": {"elbo": {"checkpoint": hashes["best.ckpt"]}, "latents": {"checkpoint": hashes["last.ckpt"]}}
        },
    }


# ---- damage --------------------------------------------------------------------------------------------------------


def test_a_broken_checkpoint_is_named_and_the_other_one_resumed(run):
    last = run / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:5_000])
    done = cli(*RESUMED, *PLAIN, "trainer.max_epochs=3", f"hydra.run.dir={run}")
    assert done.returncode == 0, done.stdout
    assert "last.ckpt (" in done.stdout
    assert "best.ckpt" in done.stdout.split("going on from")[1]
    assert read_checkpoint(last)["epoch"] == 2
    last.write_bytes(b"")
    (run / "checkpoints" / "best.ckpt").write_bytes(b"")
    with pytest.raises(UserError, match="cannot read the checkpoint .*last.ckpt"):
        first_readable([last, run / "checkpoints" / "best.ckpt"])


def test_a_flipped_bit_is_detected(run):
    last = run / "checkpoints" / "last.ckpt"
    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 1
    last.write_bytes(data)
    with pytest.raises(UserError, match="the checksum of .* in it is another"):
        read_checkpoint(last)


@pytest.mark.parametrize("part", ["optimizer_states", "lr_schedulers", "loops", "pytorch-lightning_version"])
def test_a_checkpoint_that_lacks_something_is_not_resumed(run, part):
    change(run / "checkpoints" / "last.ckpt", lambda checkpoint: checkpoint.pop(part))
    path, checkpoint, _ = first_readable([run / "checkpoints" / "last.ckpt"])
    with pytest.raises(UserError, match=f"has no {part}: nothing can be resumed from it"):
        check_resumable(path, checkpoint, built(*QUICK)[1])


@pytest.mark.parametrize("states", [3, [3], [{}], [{"state": 3}]])
def test_an_invalid_optimizer_state_is_not_resumed(run, states):
    path = run / "checkpoints" / "last.ckpt"
    checkpoint = read_checkpoint(path) | {"optimizer_states": states}
    with pytest.raises(UserError, match="the optimizer's state in .* is none"):
        check_resumable(path, checkpoint, built(*QUICK)[1])


def test_an_optimizer_state_of_an_earlier_version_is_not_resumed(run):
    """Its optimizer had one group of parameters."""
    path = run / "checkpoints" / "last.ckpt"
    _, model = built(*QUICK, "model=conv_shallow")
    optimizer = torch.optim.Adam(model.parameters())
    checkpoint = read_checkpoint(path) | {
        "state_dict": model.state_dict(),
        "optimizer_states": [optimizer.state_dict()],
    }
    with pytest.raises(
        UserError, match=rf"another version of the code \(weights in groups of \[{len(list(model.parameters()))}\]"
    ):
        check_resumable(path, checkpoint, model)


def test_the_factored_state_of_adafactor_is_resumed(tmp_path):
    words = (*QUICK, *PLAIN, "optimizer._target_=torch.optim.Adafactor", "~optimizer.betas", "~optimizer.fused")
    place = f"hydra.run.dir={tmp_path}"
    assert cli(*words, place, "trainer.max_epochs=1").returncode == 0
    done = cli(*words, place, "trainer.max_epochs=2", "ckpt_path=last")
    assert done.returncode == 0, done.stdout


def test_a_run_of_an_earlier_version_is_resumed_only_on_the_same_images(run):
    """Its checkpoints have no fingerprint, but its record has one."""
    for name in ("best", "last"):
        change(run / "checkpoints" / f"{name}.ckpt", lambda checkpoint: checkpoint.pop("DigitsDataModule"))
    go_on = (*RESUMED, *PLAIN, f"hydra.run.dir={run}")
    assert cli(*go_on, "trainer.max_epochs=3").returncode == 0
    change(run / "checkpoints" / "last.ckpt", lambda checkpoint: checkpoint.pop("DigitsDataModule"))
    record = json.loads((run / "metrics.json").read_text())
    record["data"]["fingerprint"] = "0" * 32
    (run / "metrics.json").write_text(json.dumps(record))
    assert_one_line_error(cli(*go_on, "trainer.max_epochs=4"), "then 00000000", "may know its test images")
    for name in ("metrics", "metrics.before"):
        (run / f"{name}.json").unlink()
    assert_one_line_error(cli(*go_on, "trainer.max_epochs=4"), "not recorded by the version that trained it")


def test_an_optimizer_state_of_other_shapes_is_not_resumed(run):
    def spoil(checkpoint):
        state = checkpoint["optimizer_states"][0]["state"]
        state[0]["exp_avg"] = torch.zeros(3, 3)

    path = run / "checkpoints" / "last.ckpt"
    model = built(*QUICK)[1]
    check_resumable(path, read_checkpoint(path), model)
    change(path, spoil)
    name = next(iter(dict(model.named_parameters())))
    with pytest.raises(UserError, match=rf"exp_avg of {name} is \[3, 3\] there"):
        check_resumable(path, read_checkpoint(path), model)


def test_a_state_that_lightning_cannot_restore_is_one_line(run):
    change(run / "checkpoints" / "last.ckpt", lambda checkpoint: checkpoint.update(loops={"fit_loop": 3}))
    done = cli(*RESUMED, *PLAIN, "trainer.max_epochs=3", f"hydra.run.dir={run}")
    assert_one_line_error(done, "cannot take up the state in", "last.ckpt")
    assert (run / "metrics.json").exists()  # its weights are still the same


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path):
    """A limit on file size acts like a full disk."""
    path = tmp_path / "last.ckpt"
    WholeCheckpoints().save_checkpoint({"state_dict": {"weight": torch.ones(3)}}, path)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
        with pytest.raises(OSError, match="File too large") as caught:
            WholeCheckpoints().save_checkpoint({"state_dict": {"weight": torch.ones(100_000)}}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.filename == str(path)
    assert read_checkpoint(path)["state_dict"]["weight"].tolist() == [1, 1, 1]
    assert list(tmp_path.iterdir()) == [path]


def test_only_unfinished_files_are_removed(tmp_path):
    with contextlib.suppress(KeyboardInterrupt), whole_file(tmp_path / "last.ckpt") as temporary:
        left = tmp_path / temporary.name
        shutil.copy(temporary, tmp_path / f"{temporary.name}.copy")
        raise KeyboardInterrupt
    (tmp_path / f"{left.name}.copy").rename(left)  # as if it had been killed
    for name in ("deeper/.x.part", "mine.part", "last.ckpt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    remove_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".x.part", "deeper", "last.ckpt", "mine.part"]


def test_a_full_disk_is_named_with_what_to_do(tmp_path):
    """Use a disk of 300 KiB if this user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("no file system can be mounted here")
    try:
        done = cli(*QUICK, "model=conv_shallow", "trainer.max_epochs=1", f"hydra.run.dir={disk}/run")
        assert_one_line_error(done, "the disk is full", "best.ckpt", "no epoch was complete: delete")
        assert not list((disk / "run" / "checkpoints").iterdir())
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_record_is_read_as_it_was_written(tmp_path):
    """Lists of numbers are written on one line; strings that look like lists are not changed."""
    record = {
        "rates": [0.1, 1e-7, -3],
        "root": "/scans/[a  b] x",
        "pattern": "[ab  c]+",
        "many": ["a", [1, 2]],
        "none": [],
    }
    write_json(tmp_path / "metrics.json", record)
    assert json.loads((tmp_path / "metrics.json").read_text()) == record
    assert '"rates": [ 0.1, 1e-07, -3 ]' in (tmp_path / "metrics.json").read_text()


def test_a_folder_that_was_removed_during_its_run_is_no_error(tmp_path):
    check = Check("train")
    check._claim_folder(tmp_path / "run")
    (tmp_path / "run" / ".lock").unlink()
    (tmp_path / "run").rmdir()
    check._remove_empty(tmp_path / "run")
