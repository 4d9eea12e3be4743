"""One line for every error that the user can fix, whichever library raised it."""

import re

from hydra.errors import InstantiationException
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from src.system.errors import UserError, disk_full, memory_full, one_line

# How each command can be made to need less memory.
LESS_MEMORY = {
    "train": "lower data.batch_size or the size of the model; in a sweep hydra.launcher.per_gpu or slots",
    "evaluate": "lower samples.images and representation.train_images, or name fewer parts=",
    "explore": "name fewer figures= at a time, or fewer pictures of your own in images=",
    "detect": "give fewer samples, or fewer pictures of your own in images=",
    "benchmark": "name smaller experiments, or lower data.batch_size in overrides",
    "growth": "give smaller sides, or another network",
    "audit": "lower data.image_size",
    "report": "report a part of the sweep's folder at a time",
}


def explain(error: BaseException, command: str = "train") -> str | None:
    """Return one line for an error that the user can fix, None for a fault of this project.

    Args:
        error: what was raised; its causes are read too, because libraries wrap what a constructor raises.
        command: the command that failed; it decides which settings save memory.
    """
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    for cause in chain:
        if isinstance(cause, UserError):
            return one_line(cause)
    if (full := disk_full(error)) is not None:
        return f"{full}: free some, and try again"
    if (full := memory_full(error)) is not None:
        device = ", or device=cpu" if "GPU" in full and command not in ("train", "audit", "report") else ""
        return f"{full}: {LESS_MEMORY[command]}{device}"
    for cause in chain:
        if isinstance(cause, OSError) and cause.filename and cause.strerror:
            return f"{cause.strerror}: {cause.filename}"
    return _library_error(error, chain[-1])


def _library_error(error: BaseException, root: BaseException) -> str | None:
    """Return one line for what Hydra, OmegaConf and Lightning refuse, None for any other error."""
    text = one_line(root)
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} has no value: set it on the command line"
    if "gpu backend" in text:
        return "no GPU found on this machine: choose trainer=cpu"
    if isinstance(error, InstantiationException):
        full_key = re.search(r"full_key: (\S+)", str(error))
        key = full_key[1] if full_key else "the config"
        if "is blocklisted" in text:
            return f"{key}: {text.partition(' is blocklisted')[0]} may not be called"
        if absent := re.search(r"Error locating target '([^']+)'", str(error)):
            return f"{full_key[1] if full_key else ''}._target_={absent[1]}: there is no such class"
        return f"{key}: {text} (HYDRA_FULL_ERROR=1 shows where)"
    # Lightning refuses an impossible config with these, for instance a monitor that no metric matches.
    refused = type(root).__name__ == "MisconfigurationException" or text.startswith("Early stopping conditioned on")
    return text if refused or isinstance(error, OmegaConfBaseException) else None
