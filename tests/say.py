"""Describe this process, or end in one of several ways: ``python -m tests.say``."""

import atexit
import hashlib
import json
import os
import random
import signal
import sys
import time


def fail() -> None:
    raise ValueError("no such thing")


def process() -> dict:
    facts = {
        "argv": sys.argv,
        "spec": sys.modules["__main__"].__spec__.name,
        "name": __name__,
        "env": dict(os.environ),
        "cwd": os.getcwd(),
        "pid": os.getpid(),
        "session": os.getsid(0),
        "stdin": sys.stdin.read(),
        "threads": len(os.listdir("/proc/self/task")),
        "warm": "colorsys" in sys.modules,
        "random": random.random(),
    }
    if (torch := sys.modules.get("torch")) is not None:
        from threadpoolctl import threadpool_info

        blas = {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}
        facts |= {
            "torch threads": torch.get_num_threads(),
            "blas threads": list(blas),
            "looked for a gpu": sys.modules["tests.cuda_calls"].LOOKED,
            "cuda started": torch.cuda.is_initialized(),
        }
    return facts


def train() -> str:
    """Return the number of threads and a digest of a small network's weights after some steps."""
    import torch

    torch.manual_seed(0)
    layers = (torch.nn.Conv2d(1, 16, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(10816, 9))
    network = torch.nn.Sequential(*layers)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    x = torch.randn(64, 1, 28, 28)
    for _ in range(3):
        optimizer.zero_grad()
        network(x).square().mean().backward()
        optimizer.step()
    digest = hashlib.sha256(b"".join(parameter.detach().numpy().tobytes() for parameter in network.parameters()))
    return f"{len(os.listdir('/proc/self/task'))} {digest.hexdigest()}"


def end(how: str) -> None:
    atexit.register(print, "at exit, the last word")
    kind, _, value = how.partition("=")
    if kind == "exit":
        sys.exit(int(value) if value.isdecimal() else None if value == "none" else value)
    if kind == "forget":
        fail.file = open(os.environ["FORGOTTEN"], "w")  # noqa: SIM115 (nobody closes it)
        fail.file.write("abc")
    if kind == "raise":
        fail()
    if kind == "interrupt":
        raise KeyboardInterrupt
    if kind == "signal":
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    if sys.argv[1] == "process":
        print(json.dumps(process()))
    elif sys.argv[1] == "train":
        print(train())
    elif sys.argv[1] == "sleep":
        print("asleep", flush=True)
        time.sleep(60)
    else:
        end(sys.argv[2])
