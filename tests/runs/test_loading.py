"""Read a run folder back, from itself alone and without trusting it."""

import json
import pickle
import shutil
import time
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import get_class
from omegaconf import OmegaConf
from PIL import Image

from src.runs.folder import RunFolder
from src.runs.load import load_run, predictor_of
from src.runs.trust import read_saved_config, saved_value
from src.system.errors import UserError
from tests.helpers import EXPERIMENTS, LIKELIHOODS, built, composed


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """Return a copy of a finished run that a test may damage."""
    return Path(shutil.copytree(finished[0], tmp_path / "run"))


def change(run: Path, key: str, value) -> None:
    cfg = OmegaConf.load(run / ".hydra" / "config.yaml")
    OmegaConf.update(cfg, key, value, force_add=True)
    OmegaConf.save(cfg, run / ".hydra" / "config.yaml")


def test_a_run_is_read_from_its_folder_alone(run):
    loaded = load_run(run)
    weights = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    ours = loaded.model.state_dict()
    assert weights.keys() == ours.keys()
    assert all(torch.equal(weights[name], ours[name]) for name in weights)
    assert not loaded.model.training
    assert loaded.datamodule.fingerprint == loaded.record["data"]["fingerprint"]
    assert [epoch["epoch"] for epoch in loaded.epochs] == [0, 1]
    assert load_run(run, "last").checkpoint.name == "last.ckpt"


def test_what_is_missing_is_named(run, tmp_path):
    with pytest.raises(UserError, match="nowhere: give the folder that a training left; there is no folder .*nowhere"):
        load_run(tmp_path / "nowhere")
    with pytest.raises(UserError, match="run=: give the folder that a training left$"):
        load_run("")
    with pytest.raises(UserError, match=r"metrics.json: give .*; .*metrics.json is a file"):
        load_run(run / "metrics.json")
    with pytest.raises(UserError, match=r"has no \.hydra/config\.yaml; it holds runs, such as run=.*/run"):
        load_run(tmp_path)
    with pytest.raises(UserError, match="checkpoint=first: give one of best, last"):
        load_run(run, "first")
    (run / "checkpoints" / "best.ckpt").unlink()
    with pytest.raises(UserError, match="is incomplete: it has no checkpoints/best.ckpt; checkpoint=last is there"):
        load_run(run)
    (run / "metrics.json").unlink()  # an interrupted training
    assert load_run(run, "last").record == {}
    (run / ".hydra" / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"has no \.hydra/config\.yaml"):
        load_run(run)


def test_what_is_damaged_is_named(run):
    (run / "metrics.json").write_text('{"test": {')
    with pytest.raises(UserError, match=r"metrics\.json is damaged"):
        load_run(run)
    best = run / "checkpoints" / "best.ckpt"
    best.write_bytes(best.read_bytes()[:3_000])
    (run / "metrics.json").unlink()
    with pytest.raises(UserError, match="cannot read the checkpoint .*best.ckpt"):
        load_run(run)
    torch.save({"state_dict": {"weights": [1]}}, best)
    with pytest.raises(UserError, match="named arrays"):
        load_run(run)
    (run / "metrics.json").write_text('{"data": []}')
    with pytest.raises(UserError, match="not the record of a run"):
        load_run(run)
    (run / "metrics.json").unlink()
    for text in ("model: [", "just words", "seed: 0", "model: {latent_dim: 2}", "a: ${nobody.knows}"):
        (run / ".hydra" / "config.yaml").write_text(text)
        with pytest.raises(UserError, match=r"config\.yaml"):
            load_run(run)


def nested(levels: int) -> str:
    return "".join(f"{'  ' * level}a:\n" for level in range(levels))


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(9 * [f'*{a}'])}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
CONFIGS = {
    "anchors that expand to a billion values": BOMB,
    "an anchor that contains itself": "model: &m {_target_: src.models.vae.VAE, me: *m}\n",
    "thousands of levels": "data: " + 50_000 * "[" + 50_000 * "]",
    "a hundred levels": nested(100),
    "values that refer to others without end": "a0: 'xxxxxxxxxx'\n"
    + "".join(f"a{i + 1}: '${{a{i}}}${{a{i}}}'\n" for i in range(20)),
    "values that copy others without end": "a0: [x, x, x, x]\n"
    + "".join(f"a{i + 1}: {['${a' + str(i) + '}'] * 9}\n" for i in range(9)),
    "a megabyte": "a: 1\n" * 200_000,
    "bytes": "\x00\x01\x02",
    "a list": "- 1\n- 2\n",
    "nothing": "",
}


@pytest.mark.parametrize("what", CONFIGS)
def test_a_hostile_config_is_refused_in_bounded_time(run, what):
    (run / ".hydra" / "config.yaml").write_text(CONFIGS[what])
    start = time.monotonic()
    with pytest.raises(UserError, match=r"cannot read .*config\.yaml") as refused:
        load_run(run)
    assert "\n" not in str(refused.value)
    assert time.monotonic() - start < 30
    with pytest.raises(UserError, match=r"cannot read .*config\.yaml"):
        RunFolder(run).start(OmegaConf.create({"ckpt_path": "last"}))


@pytest.mark.parametrize(
    "record",
    [
        *(
            "3",
            "[1]",
            '{"data": 3}',
            '{"checkpoints": []}',
            '{"steps": "many"}',
            '{"steps": 1e30}',
            f'{{"steps": {10**30}}}',
            9_999 * "[",
        ),
        *('{"evaluation": 3}', '{"evaluation": {"test": 3}}', '{"evaluation": {"test": {"elbo": 3}}}'),
    ],
)
def test_what_is_not_the_record_of_a_run_is_refused(run, record):
    (run / "metrics.json").write_text(record)
    with pytest.raises(UserError, match=r"metrics\.json is (damaged|not the record of a run)"):
        load_run(run)


def test_a_link_to_itself_and_an_empty_list_of_widths_are_refused(run):
    change(run, "model.encoder.widths", [])
    with pytest.raises(UserError, match=r"config.yaml says model.encoder.widths=\[\]: give a list of at least 1"):
        load_run(run)
    (run / "metrics.json").unlink()
    (run / "metrics.json").symlink_to("metrics.json")
    with pytest.raises(UserError, match="metrics.json cannot be followed"):
        load_run(run)


def test_another_runs_weights_are_refused(run):
    """They fit the model and the file is intact."""
    best = run / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(best, weights_only=True)
    checkpoint["state_dict"]["posterior_head.bias"] += 1
    torch.save(checkpoint, best)
    with pytest.raises(UserError, match="best.ckpt is not the file that its training ended with"):
        load_run(run)
    assert load_run(run, "last").checkpoint.name == "last.ckpt"


def test_a_broken_last_checkpoint_does_not_keep_the_best_from_being_read(run):
    (run / "checkpoints" / "last.ckpt").write_bytes(b"broken")
    assert [epoch["epoch"] for epoch in load_run(run).epochs] == [0, 1]


def test_the_images_of_an_unfinished_run_are_checked_too(run):
    (run / "metrics.json").unlink()
    load_run(run)
    change(run, "data.split_seed", 1)
    with pytest.raises(UserError, match="not those that .* was trained on"):
        load_run(run)


def test_a_checkpoint_that_does_not_fit_the_config_is_refused(run):
    change(run, "model.latent_dim", 3)
    with pytest.raises(UserError, match=r"does not fit this model: .*\[256, 2\] .*in the file and \[256, 3\] .*here"):
        load_run(run)


def test_weights_that_are_not_finite_are_refused(run):
    best = run / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(best, weights_only=True)
    checkpoint["state_dict"]["posterior_head.bias"][0] = float("nan")
    torch.save(checkpoint, best)
    with pytest.raises(UserError, match=r"posterior_head.bias in .*best.ckpt are not finite"):
        load_run(run)


@pytest.mark.parametrize(
    ("key", "value"),
    [("model.new_feature", 7), ("model._target_", "src.models.future.FutureVAE"), ("data.colour_space", "lab")],
)
def test_a_run_of_another_version_names_its_commit(run, key, value):
    change(run, key, value)
    with pytest.raises(UserError) as refused:
        load_run(run)
    message = str(refused.value)
    assert "\n" not in message
    assert str(value) in message or key.split(".")[1] in message
    if "_target_" in key:
        return
    assert "was changed since" in message  # this commit wrote it
    record = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps({**record, "git_commit": "abc123"}))
    with pytest.raises(UserError, match="another version of the code: commit abc123"):
        load_run(run)


ATTACKS = {
    "optimizer.lr": {"_target_": "torch.load", "f": "{marker}", "weights_only": False},
    "optimizer._args_": [{"_target_": "os.system", "command": "touch {marker}"}],
    "data.seed": '\\${oc.create:"{_target_: builtins.open, file: {marker}, mode: w}"}',
    "model.kl_weight": "\\${trap}",
    "trap": {"_target_": "builtins.open", "file": "{marker}", "mode": "w"},
    "model.extra": {"_target_": "torchvision.datasets.MNIST", "root": "{marker}", "download": True},
    "model.gate": {"_target_": "lightning.Trainer", "default_root_dir": "{marker}"},
    "data.sampler": {"_target_": "torch.utils.data.DataLoader", "dataset": []},
    "model._target_": "os.system",
    "model.encoder": {"_target_": "os.system", "command": "touch {marker}"},
    "model.likelihood": {"_target_": "torch.os.system", "command": "touch {marker}"},
    "model.decoder": {"_target_": "src.runs.folder.subprocess", "args": "touch {marker}", "shell": True},
    "model.act": {"_target_": "src.runs.folder.BaseVAE.__init__.__globals__"},
    "data.name": {"_target_": "torch.hub.load", "repo_or_dir": "evil/repo", "model": "m"},
    "data.where_to_get": {"deeper": [{"_target_": "builtins.exec", "_args_": ["open('{marker}', 'w')"]}]},
    "data._target_": "torch.utils.cpp_extension.load_inline",
    "data.splitter": {"_target_": "hydra.utils.get_method", "path": "os.system"},
    "data.dataset": {"_target_": "hydra.utils.get_class", "path": "subprocess.Popen"},
    "model.schedule": {"_target_": "${oc.env:HOME}"},
    "model.optimizer": {"_target_": "torch.load", "f": "{marker}"},
    "callbacks.evil": {"_target_": "shutil.rmtree", "path": "{marker}"},
    "trainer._target_": "webbrowser.open",
}


@pytest.mark.parametrize("key", ATTACKS)
def test_a_config_cannot_run_code(run, tmp_path, key):
    marker = tmp_path / "marker"
    change(run, key, json.loads(json.dumps(ATTACKS[key]).replace("{marker}", str(marker))))
    if key in HARMLESS:
        load_run(run)
    else:
        with pytest.raises(UserError) as refused:
            load_run(run)
        assert ("Nothing of it was run" in str(refused.value)) == (key not in STRINGS), str(refused.value)
    assert not marker.exists()


# Parts of the config that are never built. A run may have been trained with callbacks of the user's own.
HARMLESS = ("optimizer.lr", "optimizer._args_", "trap", "callbacks.evil", "trainer._target_")
# A name that does not exist, and escaped interpolations, which stay text.
STRINGS = ("model.act", "model.kl_weight", "data.seed")


def test_a_run_cannot_write_outside_of_itself(run, tmp_path):
    change(run, "data.name", "../../digits")
    with pytest.raises(UserError, match="data.name"):
        load_run(run)
    change(run, "data.name", "digits")
    shutil.rmtree(run / "tensorboard")
    (run / "tensorboard").symlink_to(tmp_path)
    with pytest.raises(UserError, match="tensorboard leads out of"):
        load_run(run)


@pytest.mark.parametrize("place", ["tensorboard/00000/latents", "embedding/test.npz", ".metrics.lock", "figures/a/b/c"])
def test_links_out_are_refused_at_any_depth(run, tmp_path, place):
    """An export to the projector would delete the target of a link and write to it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine").touch()
    (run / place).parent.mkdir(parents=True, exist_ok=True)
    (run / place).unlink(missing_ok=True)
    (run / place).symlink_to(outside)
    with pytest.raises(UserError, match=f"{place} leads out of"):
        load_run(run)
    (run / place).unlink()
    (run / place).symlink_to(run / "checkpoints")  # links within the folder are allowed
    load_run(run)
    assert [*outside.iterdir()] == [outside / "mine"]


@pytest.mark.parametrize("options", [{"download": True}, {}])
def test_reading_a_run_downloads_nothing(run, tmp_path, options):
    """The config of a foreign run could name any folder to download into."""
    mnist = {
        "_target_": "src.data.arrays.TorchvisionDataModule",
        "dataset": {"_target_": "hydra.utils.get_class", "path": "torchvision.datasets.MNIST"},
        "root": str(tmp_path / "root"),
        **options,
    }
    for key, value in mnist.items():
        change(run, f"data.{key}", value)
    with pytest.raises(UserError, match="data.download is false"):
        load_run(run).datamodule.prepare_data()
    assert not (tmp_path / "root").exists()


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_a_checkpoint_cannot_run_code(run, tmp_path):
    marker = tmp_path / "marker"
    torch.save({"state_dict": {}, "extra": Evil(marker)}, run / "checkpoints" / "best.ckpt")
    with pytest.raises(UserError, match="cannot read the checkpoint"):
        load_run(run)
    (run / "checkpoints" / "best.ckpt").write_bytes(pickle.dumps(Evil(marker)))
    with pytest.raises(UserError, match="cannot read the checkpoint"):
        load_run(run)
    assert not marker.exists()
    with pytest.raises(RuntimeError):
        torch.load(run / "checkpoints" / "best.ckpt", weights_only=False)  # the attack is real
    assert marker.exists()


def test_every_project_config_may_be_read_back(tmp_path):
    """Every target in conf/ is allowed in a run."""
    from src.runs.load import _read_config  # load_run would need every data set

    likelihoods = [f"likelihood@model.likelihood={name}" for name in LIKELIHOODS]
    pairs = zip_longest([f"experiment={name}" for name in EXPERIMENTS], likelihoods)
    others = ["data=binarized_mnist", "model=conv_tiny", "trainer=ddp", "schedule=cosine", "optimizer=sgd"]
    for overrides in (*([*filter(None, pair)] for pair in pairs), others):
        folder = tmp_path / "-".join(overrides).replace("/", "_")
        (folder / ".hydra").mkdir(parents=True)
        OmegaConf.save(composed(*overrides), folder / ".hydra" / "config.yaml")
        assert _read_config(RunFolder(folder))["data"]["batch_size"] > 0


def test_classes_that_have_moved_are_found_under_their_new_names(tmp_path):
    """The list is complete for the parts of a config that are built or compared on a resume."""
    moved = ["src.models.base.Schedule"]
    moved += [f"src.likelihoods.{name}Likelihood" for name in ("Bernoulli", "ContinuousBernoulli", "Gaussian")]
    (tmp_path / "config.yaml").write_text("\n".join(f"part{i}: {{_target_: {name}}}" for i, name in enumerate(moved)))
    for part in read_saved_config(tmp_path / "config.yaml").values():
        assert part._target_ not in moved
        assert isinstance(get_class(part._target_), type)


def test_a_config_without_posterior_prior_and_samples_has_those_of_its_time(tmp_path):
    """They are what a model of today has by default, so an earlier run can be resumed by its own overrides."""
    today = OmegaConf.to_container(composed("model=lstm").model)
    added = ("posterior", "prior", "num_samples")
    cfg = OmegaConf.create({"model": {key: value for key, value in today.items() if key not in added}})
    OmegaConf.save(cfg, tmp_path / "config.yaml")
    assert OmegaConf.to_container(read_saved_config(tmp_path / "config.yaml").model) == today
    cfg.model.num_samples = 7  # what a config says counts
    OmegaConf.save(cfg, tmp_path / "config.yaml")
    assert saved_value(tmp_path / "config.yaml", "model.num_samples") == 7


def test_other_images_are_refused_unless_asked_for(run, picture_folder, tmp_path):
    root = picture_folder({f"{i:02}.png": (9, 9) for i in range(40)})
    shutil.rmtree(run / "tensorboard")
    datamodule, model = built(
        "model=conv_tiny", "data=image_folder", f"data.root={root}", "data.image_size=16", "data.channels=1",
        f"data.cache_dir={tmp_path}/cache",
    )  # fmt: skip
    record = json.loads((run / "metrics.json").read_text())
    record["data"]["fingerprint"] = datamodule.fingerprint
    del record["checkpoints"]
    (run / "metrics.json").write_text(json.dumps(record))
    cfg = OmegaConf.load(run / ".hydra" / "config.yaml")
    cfg.data = composed(
        "data=image_folder", f"data.root={root}", "data.image_size=16", "data.channels=1",
        f"data.cache_dir={tmp_path}/cache",
    ).data  # fmt: skip
    OmegaConf.save(cfg, run / ".hydra" / "config.yaml")
    torch.save({"state_dict": model.state_dict()}, run / "checkpoints" / "best.ckpt")
    cache = str(tmp_path / "cache")
    assert load_run(run, cache_dir=cache).datamodule.fingerprint == datamodule.fingerprint

    moved = Path(shutil.copytree(root, tmp_path / "moved"))
    assert load_run(run, data_root=str(moved), cache_dir=cache).datamodule.fingerprint == datamodule.fingerprint
    (moved / "00.png").unlink()
    with pytest.raises(UserError, match="not those that .* was trained on"):
        load_run(run, data_root=str(moved), cache_dir=cache)
    other = load_run(run, data_root=str(moved), cache_dir=cache, other_data=True)
    assert other.datamodule.fingerprint != datamodule.fingerprint
    assert other.datamodule.treatment.depth is None

    record["data"]["treatment"] = {"depth": 12}  # other data are read with the range that the model knows
    (run / "metrics.json").write_text(json.dumps(record))
    Image.fromarray(np.full((20, 20), 4095, np.uint16)).save(moved / "deep.png")
    other = load_run(run, data_root=str(moved), cache_dir=cache, other_data=True).datamodule
    assert other.pool.treatment == {"depth": 12}
    Image.fromarray(np.full((20, 20), 4096, np.uint16)).save(moved / "deep.png")
    with pytest.raises(UserError, match="deep.png: its values go from 4,096 to 4,096, not from 0 to 4,095"):
        load_run(run, data_root=str(moved), cache_dir=cache, other_data=True)
    for treatment in ({"depth": 10**9}, {"range": [0, "1"]}, {"range": 3}, {"range": [0, float("nan")]}, ["depth"]):
        record["data"]["treatment"] = treatment
        (run / "metrics.json").write_text(json.dumps(record))
        with pytest.raises(UserError, match="metrics.json is damaged: its data.treatment is that of no run"):
            load_run(run, data_root=str(moved), cache_dir=cache, other_data=True)


def test_split_and_device_are_checked(run):
    loaded = load_run(run)
    with pytest.raises(UserError, match="split=train: give one of val, test"):
        predictor_of(loaded, "train", None, "cpu", "cache")
    with pytest.raises(UserError, match="device=tpu"):
        predictor_of(loaded, "test", None, "tpu", "cache")
    with pytest.raises(UserError, match="seed=-1"):
        predictor_of(loaded, "test", -1, "cpu", "cache")
    assert predictor_of(loaded, "test", None, "cpu", "cache").seed == 0
    assert predictor_of(loaded, "test", 5, "cpu", "cache").seed == 5
