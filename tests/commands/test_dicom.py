"""A folder of DICOM files is trained on, audited and explored as any other, and no patient's name is written."""

import json

import numpy as np
import pytest

from tests.dicoms import NAME, NUMBER, film, save
from tests.helpers import PLAIN, cli

BORN = "19700131"
TRAINING = ("model=conv_tiny", "data=image_folder", "data.channels=1", "data.image_size=16", "data.fit=pad", *PLAIN)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Train on 48 films of 12 patients: half of them negatives as they are stored, some without an ending."""
    home = tmp_path_factory.mktemp("dicom")
    rng = np.random.default_rng(0)
    for number in range(48):
        kind = "MONOCHROME1" if number % 2 else "MONOCHROME2"
        name = f"{'ill' if number % 3 else 'well'}/IM{number:04d}{'.dcm' if number % 4 else ''}"
        save(film(rng, f"{NUMBER}-{number % 12}", photometric=kind), home / "films" / name)
    places = (f"data.root={home}/films", f"data.cache_dir={home}/cache", f"hydra.run.dir={home}/run")
    done = cli(*TRAINING, *places, "trainer.max_epochs=1", "hydra.verbose=true")
    assert done.returncode == 0, done.stdout
    return home, done


def test_a_folder_of_dicom_files_is_trained_on(trained):
    home, done = trained
    assert "12 patients by the PatientID of 48 of 48 files" in done.stdout
    record = json.loads((home / "run" / "metrics.json").read_text())
    assert sum(record["data"]["images"].values()) == 48
    assert np.isfinite(record["test"]["elbo"])


def test_other_commands_read_dicom_and_nothing_says_who_the_patient_is(trained):
    home, done = trained
    own = save(film(np.random.default_rng(1), WindowCenter=2000, WindowWidth=3000), home / "own.dcm")
    outputs = [done.stdout]
    for module, *overrides in (
        ("src.explore", f"run={home}/run", f"images={own}", "figures=[reconstructions]", "embed=csv"),
        ("src.audit", "data=image_folder", f"data.root={home}/films", "data.channels=1", f"folder={home}/audit"),
    ):
        places = [f"{'data.' * (module == 'src.audit')}cache_dir={home}/cache"]
        done = cli(*overrides, *places, module=module)
        assert done.returncode == 0, done.stdout
        outputs.append(done.stdout)
    kinds = json.loads((home / "audit" / "audit.json").read_text())["kinds"]
    assert kinds == {"DICOM, 12-bit grey": 48}
    written = {path: path.read_bytes() for path in home.rglob("*") if path.is_file() and "films" not in path.parts}
    written.pop(own)
    assert len(written) > 15
    texts = [*written.values(), *(text.encode() for text in outputs)]
    for secret in (NAME, NAME.partition("^")[0], NUMBER, BORN):
        assert not any(secret.encode() in text for text in texts), secret
