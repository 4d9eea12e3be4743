"""Check all that a GPU is needed for: ``make gpu-check``, or ``python -m tests.gpu_check [--on cpu] [--slow 5]``.

A line a check: PASS, FAIL or INFO; on an H100 some 6 minutes. ``--on cpu`` rehearses it without a GPU. With DATA_DIR
MNIST and the X-rays are trained on too. The exit status is 1 where a check has failed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from src.networks.lstm import LSTMEncoder

SPY = "+callbacks.spy._target_=tests.gpu_check.spy.Spy"
SAME = "trainer.deterministic=true"
ENOUGH = 0.01  # nats by which the elbo of a test and of an evaluation may differ


class Failed(Exception):
    """Why a check has failed, in a line."""


class Checks:
    """The checks, each with a folder or a log named for it.

    Args:
        folder: for runs and logs.
        on: ``gpu`` or ``cpu``, a choice of ``trainer=``.
        slow: factor of all time limits.
        python: the interpreter that runs the commands.
    """

    def __init__(self, folder: Path, on: str, slow: float, python: str = sys.executable) -> None:
        self.folder, self.on, self.slow, self.python = folder, on, slow, python
        self.device = "cuda" if on == "gpu" else "cpu"
        self.failed: list[str] = []

    def check(self, name: str, call: Callable[[], str | None]) -> None:
        """Print how one went."""
        began = time.monotonic()
        try:
            verdict, told = "PASS", call()
        except Exception as error:  # whatever it is: a check that ends early has failed
            verdict, told = "FAIL", f"{type(error).__name__}: {error}"
            self.failed.append(name)
        print(f"{verdict} {name} ({time.monotonic() - began:.0f} s) {told or ''}".rstrip(), flush=True)

    def run(self, name: str, seconds: float, *words: str, module: str = "src.train") -> None:
        """Run one command, its output in ``NAME.log``.

        Raises:
            Failed: it did not end well, or not in time.
        """
        log = self.folder / f"{name}.log"
        with log.open("a") as output:
            try:
                code = subprocess.run(
                    [self.python, "-m", module, *words],
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    timeout=seconds * self.slow,
                    check=False,
                ).returncode
            except subprocess.TimeoutExpired as error:
                raise Failed(f"it took more than {seconds * self.slow:.0f} s, see {log}") from error
        if code != 0:
            lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
            raise Failed(f"exit status {code}, {lines[-1][:300] if lines else 'without a word'}, see {log}")

    def train(self, name: str, seconds: float, run: str, *words: str) -> None:
        """Train on the embedded digits into the folder ``run``."""
        self.run(name, seconds, f"trainer={self.on}", "data=digits", f"hydra.run.dir={self.folder / run}", *words)

    # ---- one method a check ----------------------------------------------------------------------------------------

    def trained(self) -> None:
        """Devices, layouts and no waiting, over 4 epochs."""
        self.train("train", 150, "A", "model=conv_tiny", SAME, "trainer.max_epochs=4", SPY)

    def resumed(self) -> None:
        """The same in two halves."""
        half = ("model=conv_tiny", SAME, SPY)
        self.train("resume", 120, "B", *half, "trainer.max_epochs=2")
        self.train("resume", 120, "B", *half, "trainer.max_epochs=4", "ckpt_path=last")

    def free(self) -> None:
        """The same without ``trainer.deterministic``."""
        self.train("free", 150, "C", "model=conv_tiny", "trainer.max_epochs=4")

    def equal(self) -> str:
        """The resumed run has the weights of the whole one."""
        difference = self._difference("A", "B")
        assert difference == 0, f"a weight differs by {difference:.3g}"
        return f"bit for bit; without trainer.deterministic a weight differs by {self._difference('A', 'C'):.3g}"

    def lstm(self) -> str:
        """Under bfloat16 the LSTM computes in float32, in which cuDNN would take float16."""
        encoder = LSTMEncoder((1, 28, 28), 1).to(self.device)
        seen = []
        encoder.lstm.register_forward_hook(lambda module, inputs, output: seen.append(output[0].dtype))
        with torch.autocast(self.device, torch.bfloat16):
            encoder(torch.rand(4, 1, 28, 28, device=self.device))
        assert seen == [torch.float32], f"it computes in {seen}"
        return "float32"

    def evaluated(self) -> str:
        """An evaluation finds the elbo that the training's test has found, and a bound above it."""
        few = ("bound.images=8", "bound.samples=200", "samples.images=200", "samples.bootstrap=2")
        place = (f"run={self.folder / 'C'}", f"device={self.device}", f"cache_dir={self.folder / 'cache'}")
        self.run("evaluate", 200, *place, *few, module="src.evaluate")
        record = json.loads((self.folder / "C" / "metrics.json").read_text())
        found, trained = record["evaluation"]["test"], record["test"]["elbo"]
        assert abs(trained - found["elbo"]["elbo"]) < ENOUGH, f"test {trained}, evaluation {found['elbo']['elbo']}"
        assert found["bound"]["log_likelihood"] >= found["bound"]["elbo_of_these_images"], "the bound is below the elbo"
        return f"{record['devices']}, {record['precision']}: elbo {trained:.4f} and {found['elbo']['elbo']:.4f}"

    def explored(self) -> None:
        """Pictures, export and denoising."""
        place = (f"run={self.folder / 'C'}", f"device={self.device}", f"cache_dir={self.folder / 'cache'}")
        self.run("explore", 150, *place, "embed=npz", "noise=0.2", module="src.explore")

    def compiled(self) -> None:
        """``compile=true``."""
        self.train("compile", 200, "compiled", "model=conv_tiny", "compile=true", "trainer.max_epochs=2", SPY)

    def large(self) -> None:
        """The largest model, and the recurrent one."""
        self.train("large", 200, "deep", "model=conv_deep", "trainer.max_epochs=1")
        self.train("large", 200, "lstm", "model=lstm", "trainer.max_epochs=1", SPY)

    def half(self) -> None:
        """float16 with its scaler, the guard and clipping."""
        words = ("model=conv_tiny", "trainer.precision=16-mixed", "trainer.gradient_clip_val=100")
        self.train("float16", 150, "half", *words, "trainer.max_epochs=2")

    def swept(self) -> str:
        """Two points side by side, on one GPU where there is one."""
        sweep = self.folder / "sweep"
        share = "hydra.launcher.per_gpu=2" if self.on == "gpu" else "hydra.launcher.slots=2"
        words = ("-m", f"trainer={self.on}", "data=digits", "model=conv_tiny", "trainer.max_epochs=2", "seed=0,1")
        self.run("sweep", 240, *words, share, f"hydra.sweep.dir={sweep}")
        points = [json.loads(path.read_text()) for path in sweep.glob("*/point.json")]
        (_, end), (begin, _) = sorted((p["began"], p["began"] + p["seconds"]) for p in points)
        assert end > begin, "one began when the other had ended"
        return f"side by side for {end - begin:.0f} s"

    def experiment(self, name: str, limit: float, *words: str) -> None:
        """An epoch of a document's recipe on its own data."""
        place = (f"hydra.run.dir={self.folder / name}", f"trainer={self.on}", "trainer.max_epochs=1")
        self.run(name, limit, f"experiment={name}", *place, *words)

    def processes(self) -> None:
        """Two GPUs."""
        words = ("model=conv_tiny", "trainer=ddp", "trainer.sync_batchnorm=true", "trainer.max_epochs=1")
        self.run("ddp", 200, "data=digits", *words, f"hydra.run.dir={self.folder / 'ddp'}")

    def steps(self) -> str:
        """The benchmark's table of steps."""
        out = self.folder / "benchmark"
        few = ("experiments=[mnist_conv_tiny]", "rounds=2", "seconds=0.5")
        self.run("benchmark", 400, *few, f"device={self.device}", f"folder={out}", module="src.benchmark")
        return "\n" + (out / "steps.md").read_text()

    def _difference(self, one: str, other: str) -> float:
        paths = [self.folder / run / "checkpoints" / "last.ckpt" for run in (one, other)]
        first, second = (torch.load(p, map_location="cpu", weights_only=True)["state_dict"] for p in paths)
        return max((first[name].double() - second[name].double()).abs().max().item() for name in first)


def rounds(checks: Checks) -> list[dict[str, Callable[[], Any]]]:
    """The checks; those of a round run side by side, as they need nothing of each other."""
    data = Path(os.environ.get("DATA_DIR", "data"))
    cache = f"data.cache_dir={checks.folder / 'cache'}"
    last: dict[str, Callable[[], Any]] = {"explore": checks.explored, "sweep": checks.swept}
    if (data / "MNIST").is_dir():
        last["mnist"] = lambda: checks.experiment("mnist_lstm", 240, SPY)
    if (data / "chest_xray").is_dir():
        last["x-rays"] = lambda: checks.experiment("chest_xray_conv_deep", 300, cache)
    on_gpu = {"float16": checks.half} if checks.on == "gpu" else {}
    if checks.on == "gpu" and torch.cuda.device_count() > 1:
        on_gpu["two GPUs"] = checks.processes
    return [
        {"train": checks.trained, "resume": checks.resumed, "not deterministic": checks.free},
        {
            "resumed is equal": checks.equal,
            "lstm": checks.lstm,
            "evaluate": checks.evaluated,
            "compile": checks.compiled,
        },
        {"large and recurrent": checks.large, **on_gpu},
        last,
        {"benchmark": checks.steps},
    ]


def main() -> int:
    """Run all checks; 1 where one has failed."""
    parser = argparse.ArgumentParser("python -m tests.gpu_check", description=__doc__)
    parser.add_argument("--on", choices=("gpu", "cpu"), default="gpu", help="cpu rehearses (gpu)")
    parser.add_argument("--slow", type=float, default=1.0, help="factor of all time limits (1)")
    parser.add_argument("--folder", type=Path, help="for runs and logs (default: a temporary one)")
    asked = parser.parse_args()
    if asked.on == "gpu" and not torch.cuda.is_available():
        print("error: there is no GPU here; --on cpu rehearses the checks without one", file=sys.stderr)
        return 1
    folder = (asked.folder or Path(tempfile.mkdtemp(prefix="gpu-check-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    gpu = f", {torch.cuda.get_device_name()}" if asked.on == "gpu" else ""
    print(f"INFO torch {torch.__version__}{gpu}; logs are in {folder}", flush=True)
    checks = Checks(folder, asked.on, asked.slow)
    for together in rounds(checks):
        with ThreadPoolExecutor(4 if asked.on == "gpu" else 2) as pool:
            for _ in pool.map(checks.check, together.keys(), together.values()):
                pass  # what is no Exception is raised here
    print(f"{len(checks.failed)} checks failed{': ' + ', '.join(checks.failed) if checks.failed else ''}")
    return 1 if checks.failed else 0


if __name__ == "__main__":
    sys.exit(main())
