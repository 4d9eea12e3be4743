"""Check everything that needs a GPU: ``make gpu-check``, or ``python -m tests.gpu_check [--on cpu] [--slow 5]``.

Each check prints a line: PASS or FAIL. All of them take some 6 minutes on an H100. ``--on cpu`` tries them without a
GPU. If DATA_DIR holds MNIST and the X-rays, these are trained on too. The exit status is 1 if a check has failed.
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
ROUNDING = 0.03  # relative, by which rounding may change a test loss after 4 epochs
TOLERANCE = 0.01  # nats per image by which the elbo of a test and of an evaluation may differ


class Failed(Exception):
    """A check has failed; the message says why, in one line."""


class Checks:
    """The checks, one method each. Runs and logs have the name of the check.

    Args:
        folder: holds runs and logs.
        on: ``gpu`` or ``cpu``, a choice of ``trainer=``.
        slow: factor of all time limits.
        python: the interpreter that runs the commands.
    """

    def __init__(self, folder: Path, on: str, slow: float, python: str = sys.executable) -> None:
        self.folder, self.on, self.slow, self.python = folder, on, slow, python
        self.device = "cuda" if on == "gpu" else "cpu"
        self.failed: list[str] = []

    def check(self, name: str, call: Callable[[], str | None]) -> None:
        """Run one check and print its result."""
        began = time.monotonic()
        try:
            verdict, remark = "PASS", call()
        except Exception as error:  # of any kind: a check that ends early has failed
            verdict, remark = "FAIL", f"{type(error).__name__}: {error}"
            self.failed.append(name)
        print(f"{verdict} {name} ({time.monotonic() - began:.0f} s) {remark or ''}".rstrip(), flush=True)

    def run(self, name: str, seconds: float, *words: str, module: str = "src.train") -> None:
        """Run a command, with its output in ``NAME.log``.

        Raises:
            Failed: if its exit status is not 0, or it takes more than ``seconds``.
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
            raise Failed(f"exit status {code}, {lines[-1][:300] if lines else 'no output'}, see {log}")

    def train(self, name: str, seconds: float, run: str, *words: str) -> None:
        """Train on the embedded digits into the folder ``run``."""
        self.run(name, seconds, f"trainer={self.on}", "data=digits", f"hydra.run.dir={self.folder / run}", *words)

    # ---- one method a check ----------------------------------------------------------------------------------------

    def trained(self) -> None:
        """Train for 4 epochs with the spy: devices, layouts, and no step that waits for the GPU."""
        self.train("train", 150, "A", "model=conv_tiny", SAME, "trainer.max_epochs=4", SPY)

    def resumed(self) -> None:
        """Train the same run in two halves."""
        half = ("model=conv_tiny", SAME, SPY)
        self.train("resume", 120, "B", *half, "trainer.max_epochs=2")
        self.train("resume", 120, "B", *half, "trainer.max_epochs=4", "ckpt_path=last")

    def free(self) -> None:
        """Train the same run without ``trainer.deterministic``."""
        self.train("free", 150, "C", "model=conv_tiny", "trainer.max_epochs=4")

    def equal(self) -> str:
        """Compare the weights of the resumed run with those of the uninterrupted one."""
        difference = self._difference("A", "B")
        assert difference == 0, f"a weight differs by {difference:.3g}"
        return f"bit for bit; without trainer.deterministic a weight differs by {self._difference('A', 'C'):.3g}"

    def lstm(self) -> str:
        """Check that the LSTM computes in float32 under bfloat16 autocast, which would run cuDNN's LSTM in float16."""
        encoder = LSTMEncoder((1, 28, 28), 1).to(self.device)
        seen = []
        encoder.lstm.register_forward_hook(lambda module, inputs, output: seen.append(output[0].dtype))
        with torch.autocast(self.device, torch.bfloat16):
            encoder(torch.rand(4, 1, 28, 28, device=self.device))
        assert seen == [torch.float32], f"it computes in {seen}"
        return "float32"

    def evaluated(self) -> str:
        """Check that an evaluation agrees with the elbo of the test, and that its bound lies above the elbo."""
        few = ("bound.images=8", "bound.samples=200", "samples.images=200", "samples.bootstrap=2")
        place = (f"run={self.folder / 'C'}", f"device={self.device}", f"cache_dir={self.folder / 'cache'}")
        self.run("evaluate", 200, *place, *few, module="src.evaluate")
        record = json.loads((self.folder / "C" / "metrics.json").read_text())
        found, trained = record["evaluation"]["test"], record["test"]["elbo"]
        assert abs(trained - found["elbo"]["elbo"]) < TOLERANCE, f"test {trained}, evaluation {found['elbo']['elbo']}"
        assert found["bound"]["log_likelihood"] >= found["bound"]["elbo_of_these_images"], "the bound is below the elbo"
        return f"{record['devices']}, {record['precision']}: elbo {trained:.4f} and {found['elbo']['elbo']:.4f}"

    def explored(self) -> None:
        """Draw pictures, export embeddings and denoise."""
        place = (f"run={self.folder / 'C'}", f"device={self.device}", f"cache_dir={self.folder / 'cache'}")
        self.run("explore", 150, *place, "embed=npz", "noise=0.2", module="src.explore")

    def detected(self) -> str:
        """Judge test images, four digits being normal."""
        place = (f"run={self.folder / 'C'}", f"device={self.device}", f"cache_dir={self.folder / 'cache'}")
        self.run("detect", 150, *place, "normal=[0,1,2,3]", "samples=2", module="src.detect")
        verdict = json.loads((self.folder / "C" / "detection.json").read_text())["labels"]["scores"][0]
        assert verdict["auroc"]["value"] > 0.5, verdict
        return f"AUROC {verdict['auroc']['value']:.3f}"

    def compiled(self) -> str:
        """Train with ``compile=true``, in one go and in two halves, beside the eager run: one CUDA graph a pass."""
        words = ("model=conv_tiny", "compile=true", SAME, SPY)
        self.train("compile", 200, "D", *words, "trainer.max_epochs=4")
        self.train("compile", 200, "E", *words, "trainer.max_epochs=2")
        self.train("compile", 200, "E", *words, "trainer.max_epochs=4", "ckpt_path=last")
        difference = self._difference("D", "E")
        assert difference == 0, f"a weight of the resumed run differs by {difference:.3g}"
        eager, compiled = (json.loads((self.folder / run / "metrics.json").read_text()) for run in ("A", "D"))
        losses = [record["test"]["loss"] for record in (eager, compiled)]
        assert abs(losses[0] / losses[1] - 1) < ROUNDING, f"the test loss is {losses[0]} eager and {losses[1]} compiled"
        speeds = " and ".join(f"{record['train_images_per_second']:,.0f}" for record in (eager, compiled))
        return f"resumed bit for bit; test loss {losses[0]:.2f} eager, {losses[1]:.2f} compiled; {speeds} images/s"

    def compiled_others(self) -> None:
        """Train what the compiler treats otherwise: an LSTM, dropout, a KL warm-up, accumulated gradients."""
        lots = ("model.kl_warmup_steps=15", "trainer.accumulate_grad_batches=2")
        for name, words in {"lstm": (), "conv_dropout": ("data.image_size=32",), "conv_tiny": lots}.items():
            self.train(
                "compile", 300, f"compiled_{name}", f"model={name}", "compile=true", *words, "trainer.max_epochs=2"
            )

    def large(self) -> None:
        """Train the largest model and the recurrent one."""
        self.train("large", 200, "deep", "model=conv_deep", "trainer.max_epochs=1")
        self.train("large", 200, "lstm", "model=lstm", "trainer.max_epochs=1", SPY)

    def half(self) -> None:
        """Train in float16 with its gradient scaler, the guard and clipping."""
        words = ("model=conv_tiny", "trainer.precision=16-mixed", "trainer.gradient_clip_val=100")
        self.train("float16", 150, "half", *words, "trainer.max_epochs=2")

    def swept(self) -> str:
        """Run two points of a sweep side by side, on one GPU if there is one."""
        sweep = self.folder / "sweep"
        share = "hydra.launcher.per_gpu=2" if self.on == "gpu" else "hydra.launcher.slots=2"
        words = ("-m", f"trainer={self.on}", "data=digits", "model=conv_tiny", "trainer.max_epochs=2", "seed=0,1")
        self.run("sweep", 240, *words, share, f"hydra.sweep.dir={sweep}")
        points = [json.loads(path.read_text()) for path in sweep.glob("*/point.json")]
        (_, first_end), (second_begin, _) = sorted((p["began"], p["began"] + p["seconds"]) for p in points)
        assert first_end > second_begin, "the second point began after the first had ended"
        return f"side by side for {first_end - second_begin:.0f} s"

    def experiment(self, name: str, limit: float, *words: str) -> None:
        """Train an epoch of a document's experiment on its own data."""
        place = (f"hydra.run.dir={self.folder / name}", f"trainer={self.on}", "trainer.max_epochs=1")
        self.run(name, limit, f"experiment={name}", *place, *words)

    def processes(self) -> None:
        """Train on two GPUs."""
        words = ("model=conv_tiny", "trainer=ddp", "trainer.sync_batchnorm=true", "trainer.max_epochs=1")
        self.run("ddp", 200, "data=digits", *words, f"hydra.run.dir={self.folder / 'ddp'}")

    def steps(self) -> str:
        """Run the benchmark on the smallest experiment, and return its table."""
        out = self.folder / "benchmark"
        few = ("experiments=[mnist_conv_tiny]", "rounds=2", "seconds=0.5")
        self.run("benchmark", 400, *few, f"device={self.device}", f"folder={out}", module="src.benchmark")
        return "\n" + (out / "steps.md").read_text()

    def _difference(self, one: str, other: str) -> float:
        paths = [self.folder / run / "checkpoints" / "last.ckpt" for run in (one, other)]
        first, second = (torch.load(p, map_location="cpu", weights_only=True)["state_dict"] for p in paths)
        return max((first[name].double() - second[name].double()).abs().max().item() for name in first)


def rounds(checks: Checks) -> list[dict[str, Callable[[], Any]]]:
    """Return the checks in rounds; those of a round run side by side and do not depend on each other."""
    data = Path(os.environ.get("DATA_DIR", "data"))
    cache = f"data.cache_dir={checks.folder / 'cache'}"
    last: dict[str, Callable[[], Any]] = {"explore": checks.explored, "detect": checks.detected, "sweep": checks.swept}
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
        },
        {"compile": checks.compiled, "compile others": checks.compiled_others},
        {"large and recurrent": checks.large, **on_gpu},
        last,
        {"benchmark": checks.steps},
    ]


def main() -> int:
    """Run all checks. Return the exit status: 1 if one has failed."""
    parser = argparse.ArgumentParser("python -m tests.gpu_check", description=__doc__)
    parser.add_argument("--on", choices=("gpu", "cpu"), default="gpu", help="cpu tries the checks without a GPU (gpu)")
    parser.add_argument("--slow", type=float, default=1.0, help="factor of all time limits (1)")
    parser.add_argument("--folder", type=Path, help="for runs and logs (default: a temporary one)")
    args = parser.parse_args()
    if args.on == "gpu" and not torch.cuda.is_available():
        print("error: no GPU found; --on cpu tries the checks without one", file=sys.stderr)
        return 1
    folder = (args.folder or Path(tempfile.mkdtemp(prefix="gpu-check-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    gpu = f", {torch.cuda.get_device_name()}" if args.on == "gpu" else ""
    print(f"INFO torch {torch.__version__}{gpu}; logs are in {folder}", flush=True)
    checks = Checks(folder, args.on, args.slow)
    for together in rounds(checks):
        with ThreadPoolExecutor(4 if args.on == "gpu" else 2) as pool:
            for _ in pool.map(checks.check, together.keys(), together.values()):
                pass  # re-raises KeyboardInterrupt and the like
    print(f"{len(checks.failed)} checks failed{': ' + ', '.join(checks.failed) if checks.failed else ''}")
    return 1 if checks.failed else 0


if __name__ == "__main__":
    sys.exit(main())
