"""A short-lived stand-in for a training, to try how points are started, stopped and recorded in seconds.

``python tests/worker.py value=3 seconds=0.1 [fail=word] [exit=3] [raise=words] [ckpt_path=last] hydra.run.dir='...'``
"""

import json
import os
import sys
import time
from pathlib import Path

options = dict(word.partition("=")[::2] for word in sys.argv[1:])
folder = Path(options["hydra.run.dir"].strip("'"))
(folder / "checkpoints").mkdir(exist_ok=True)
(folder / "seen.json").write_text(json.dumps({"argv": sys.argv[1:], "env": dict(os.environ)}))
if "checkpoint" in options:
    (folder / "checkpoints" / "last.ckpt").touch()
if "children" in options and os.fork() == 0:
    time.sleep(600)
time.sleep(float(options.get("seconds", options.get("trainer.max_steps", 0))))
if options.get("trainer.max_epochs") == "13":
    options["fail"] = "unlucky"
if "raise" in options:
    raise RuntimeError(f"{options['raise']}\nCompile with TORCH_USE_CUDA_DSA to enable device-side assertions.\n")
if "fail" in options:
    print(f"Traceback (most recent call last)\nerror: {options['fail']}")
    sys.exit(int(options.get("exit", 1)))
(folder / "metrics.json").write_text(json.dumps({"best": {"val/elbo": float(options["value"])}}))
