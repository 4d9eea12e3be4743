"""Full memory: every command reports it in one line that says what to do."""

import re
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from src.system.explain import explain
from tests.helpers import QUICK, assert_one_line_error, cli

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux enforces memory limits of a process")


def limited(command: str, *overrides: str, mib: int):
    """Run a command that may use so many MiB more than its imports take."""
    env = {"MORE_MIB": str(mib), "OMP_NUM_THREADS": "1"}
    return cli(f"src.{command}", *overrides, module="tests.limited", **env)


@on_linux
def test_a_training_that_runs_out_of_memory_says_what_to_lower(tmp_path):
    large = (*QUICK, "data.image_size=512", "data.batch_size=1024", f"hydra.run.dir={tmp_path}")
    assert_one_line_error(limited("train", *large, mib=1000), "the memory is full (1 GiB more", "lower data.batch_size")


@on_linux
def test_commands_that_read_a_run_say_it_too_and_leave_the_record_alone(finished, tmp_path):
    run = shutil.copytree(finished[0], tmp_path / "run")
    before = (run / "metrics.json").read_bytes()
    Image.new("L", (9000, 9000)).save(tmp_path / "large.png")
    done = limited("explore", f"run={run}", "figures=[]", f"images={tmp_path}/large.png", mib=100)
    assert_one_line_error(done, "the memory is full", "fewer pictures of your own")
    done = limited("evaluate", f"run={run}", "parts=bound", f"cache_dir={tmp_path}", mib=60)
    assert_one_line_error(done, "the memory is full", "name fewer parts=")
    assert (run / "metrics.json").read_bytes() == before


def test_a_model_that_is_too_large_is_not_called_damaged_or_of_another_version():
    done = cli(*QUICK, "model.latent_dim=1000000000000")
    assert_one_line_error(done, "the memory is full (145.5 TiB more", "the size of the model")


def allocate(what: str) -> BaseException:
    with pytest.raises((RuntimeError, MemoryError)) as failed:
        torch.empty(10**17) if what == "torch" else np.zeros(10**17)
    return failed.value


def test_full_memory_is_recognised_in_the_messages_of_every_library():
    for library in ("torch", "numpy"):
        assert re.match(r"the memory is full \(\S+ PiB more were asked for\): lower", explain(allocate(library)))
    assert "(1.049e+06 EiB more" in explain(RuntimeError(f"can't allocate memory: you tried to allocate {2**80} bytes"))
    for error in (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 8 GiB"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ):
        assert explain(error).startswith("the GPU's memory is full")
        assert explain(error, "evaluate").endswith("or device=cpu")
    assert explain(RuntimeError("could not create a primitive")).startswith("the memory is full")
    assert explain(RuntimeError("could not create a primitive descriptor for the LSTM forward propagation")) is None
    assert explain(RuntimeError("CUDA error: an illegal memory access was encountered")) is None
