"""The growth of training time: the command as a user types it, its answers to mistakes, and its fit."""

import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from src.benchmark.growth import BATCHES, FIXED, IMAGES, exponent, operations, sizes_of
from src.system import keys
from src.system.errors import UserError
from tests.helpers import ROOT, assert_one_line_error, cli

DEFAULTS = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "growth.yaml"), resolve=True)


def test_a_square_grows_with_exponent_2():
    assert exponent({n: 3 * n**2 for n in (2, 7, 40)}) == pytest.approx(2)


def test_the_expected_exponent_counts_the_operations_of_the_model():
    """Four times the pixels are four times the work of convolutions; the head's does not depend on the depth."""
    words = ("model=conv_tiny", *FIXED)
    sides = {side: operations([*words, f"data.image_size={side}"]) for side in (32, 64, 128)}
    assert exponent(sides) == pytest.approx(2, abs=0.01)
    depths = {depth: operations([*words, f"model.depth={depth}"]) for depth in (1, 2, 3)}
    assert depths[3] - depths[2] == depths[2] - depths[1] > 0


def test_a_misspelt_key_is_one_line(tmp_path):
    done = cli("netwrk=conv_tiny", f"folder={tmp_path}/out", module="src.benchmark.growth")
    assert_one_line_error(done, "netwrk is no key: did you mean network=conv_tiny?")
    assert not (tmp_path / "out").exists()


def test_a_network_that_cannot_be_made_is_refused_before_anything_is_measured(tmp_path):
    words = ("network=conv_shallow", "images=[]", "sides=[4,32]", f"folder={tmp_path}/out")
    assert_one_line_error(cli(*words, module="src.benchmark.growth"), "cannot process 4x4 pixel images")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"network": "conv_dep"}, "network=conv_dep: choose from conv_deep, conv_dropout"),
        ({"sides": [32, 32]}, r"sides=\[32\]: give two different sizes or more, or \[\] to leave sides out"),
        ({key: [] for key in ("images", "sides", "latents", "depths")}, "nothing grows: give sizes for one of images"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, words):
    with pytest.raises(UserError, match=words):
        sizes_of(DEFAULTS | changes)


def test_every_key_has_a_kind_that_takes_its_default():
    config = OmegaConf.create({key: value for key, value in DEFAULTS.items() if key not in ("defaults", "hydra")})
    assert set(config) == set(keys.KEYS["growth"])
    for key, value in OmegaConf.to_container(config).items():
        assert keys.kind_of(key, keys.KEYS["growth"]).takes(value), key


def test_all_rounds_lie_within_an_epoch():
    epoch = IMAGES * 9 // 10 // 32
    assert epoch >= BATCHES + 2  # the first step and the one that is timed to choose their number
    assert BATCHES // (keys.KEYS["growth"]["rounds"].at_most + 1) >= 1


@pytest.mark.slow
def test_torch_is_imported_after_the_settings_are_checked_and_a_file_says_what_to_type():
    code = "import sys, src.benchmark.growth; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
    file = ROOT / "src" / "benchmark" / "growth.py"
    done = subprocess.run([sys.executable, str(file)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, f"error: type python -m src.benchmark.growth in {ROOT}/\n")
