"""How long an evaluation will take, said before it begins, and how its dear parts are made to fit into a time."""

import logging
import math
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import torch

from src.evaluation import feature_networks
from src.evaluation.importance import importance_bound
from src.evaluation.likelihood import bytes_a_code, samples_at_once
from src.models.predictor import Predictor
from src.system.console import duration
from src.system.seeds import stream

log = logging.getLogger(__name__)

AUTO = "auto"
ON_A_CPU = 5  # minutes, where nobody says how many
# What `auto` stands for: the first of these that fits. Fewer samples first, as the bound loses little by them.
BOUNDS = ((5_000, 100), (2_000, 100), (1_000, 100), (500, 100), (500, 50), (200, 50), (100, 50), (100, 20))
SETS = (10_000, 5_000, 2_000, 1_000, 500)
DECODED_SETS = 3  # of those that samples are compared with; one of them is encoded too
TRIED = 64  # images and codes that the times are measured on
MOST_FOR_SETS = 0.5  # of the time that the other parts leave


class Cost(NamedTuple):
    """Seconds that a model takes on this machine."""

    encoding: float  # of an image
    decoding: float  # of a code
    weighing: float  # of a posterior sample for the bound: drawn, decoded and compared with its image
    features: float  # of an image
    network: float  # to make the feature network; 0 where it is there

    def of_codes(self, parts: Collection[str], train: int, judged: int) -> float:
        """Of encoding whole splits, once for all parts but two, and of decoding the one that is judged for those."""
        both = self.encoding + self.decoding
        shared = train + judged if {"latents", "samples", "representation"} & {*parts} else 0
        return shared * self.encoding + judged * both * len({"elbo", "reconstruction"} & {*parts})

    def of_bound(self, samples: int, images: int) -> float:
        """Of the importance bound."""
        return samples * images * self.weighing

    def of_sets(self, images: int) -> float:
        """Of sets of samples in the features of our own network, which is there."""
        return images * (self.encoding + DECODED_SETS * self.decoding + (DECODED_SETS + 2) * self.features)


def settle(
    predictor: Predictor, options: dict[str, dict[str, Any]], minutes: float | str | None
) -> dict[str, dict[str, Any]]:
    """The same options with numbers in place of ``auto``: what fits, or all where there is no limit.

    Says how long the parts will take, as far as that follows from their size, and what was chosen. A feature network
    that must be made first takes no time from the others: the same command would choose more the next time.

    Args:
        predictor: what is judged; some of its images are tried.
        options: of each part that is wanted.
        minutes: for all parts together; ``auto`` for 5 on a CPU and no limit on a GPU, None for no limit.
    """
    if not options.keys() & {"bound", "samples"}:
        return options
    if minutes == AUTO:
        minutes = None if predictor.device.type == "cuda" else ON_A_CPU
    splits = predictor.datamodule.splits
    train, judged = len(splits.train), len(getattr(splits, predictor.split))
    cost = measured(predictor, "samples" in options)
    taken = cost.of_codes(options, train, judged)
    left = math.inf if minutes is None else 60 * minutes - taken
    settled, dear = chosen(cost, options, left, min(train, judged), judged)
    once = f", {duration(cost.network)} of it for a feature network that is made once" if cost.network else ""
    log.info("at least %s%s; fitting mixtures and probes is not counted", duration(taken + dear + cost.network), once)
    most, _ = chosen(cost, options, math.inf, min(train, judged), judged)
    if fewer := [f"{part}.{key}={v}" for part in settled for key, v in settled[part].items() if v != most[part][key]]:
        log.info("chosen to fit into budget=%g (minutes): %s; budget=null takes all", minutes, " ".join(fewer))
    return settled


def chosen(
    cost: Cost, options: dict[str, dict[str, Any]], left: float, available: int, judged: int
) -> tuple[dict[str, dict[str, Any]], float]:
    """What fits into the seconds that are ``left``, and the seconds that it takes.

    Args:
        cost: of the model.
        options: see :func:`settle`.
        left: for the bound and for samples.
        available: images that a set can have.
        judged: images of the split.
    """
    settled, taken = {part: dict(values) for part, values in options.items()}, 0.0
    if (sets := settled.get("samples")) is not None:
        sizes = [min(size, available) for size in (SETS if sets["images"] == AUTO else (sets["images"],))]
        sets["images"] = _first(sizes, cost.of_sets, left * MOST_FOR_SETS if "bound" in options else left)
        taken += cost.of_sets(sets["images"])
    if (of := settled.get("bound")) is not None:
        K, n = of["samples"], of["images"] or judged
        pairs = [(k if K == AUTO else K, min(m if n == AUTO else n, judged)) for k, m in BOUNDS]
        of["samples"], of["images"] = _first(pairs, lambda pair: cost.of_bound(*pair), left - taken)
        taken += cost.of_bound(of["samples"], of["images"])
    return settled, taken


def _first(choices: list[Any], seconds: Callable[[Any], float], left: float) -> Any:
    """The first choice that fits; the last where none does."""
    return next((choice for choice in choices if seconds(choice) <= left), choices[-1])


def as_before(
    options: dict[str, dict[str, Any]], then: Mapping[str, Any], checkpoint: str
) -> dict[str, dict[str, Any]]:
    """The same options with the sizes of an earlier evaluation in place of ``auto``, so that it is repeated as it was.

    Args:
        options: see :func:`settle`.
        then: the parts that were evaluated, as recorded.
        checkpoint: hash of the weights; sizes of others are not taken.
    """
    options = {part: dict(values) for part, values in options.items()}
    for part in ("samples", "bound"):
        known = then.get(part)
        if isinstance(known, dict) and known.get("checkpoint") == checkpoint:
            for key, value in options.get(part, {}).items():
                if value == AUTO and isinstance(known.get(key), int):
                    options[part][key] = known[key]
                    log.info("%s.%s=%d as in the evaluation before", part, key, known[key])
    return options


@torch.no_grad()
def measured(predictor: Predictor, with_features: bool) -> Cost:
    """What the parts of an evaluation cost, measured on some images; features only where they are wanted."""
    batch, _ = next(predictor.batches(predictor.split, TRIED))
    x = batch.x
    z, _ = predictor.posterior(x)
    at_once = min(TRIED, samples_at_once(bytes_a_code(predictor.model), BOUNDS[0][0])[1])
    with stream(predictor.seed, "trial"):
        return Cost(
            _seconds(lambda: predictor.posterior(x)) / len(x),
            _seconds(lambda: [*predictor.decode(z)]) / len(x),
            _seconds(lambda: importance_bound(predictor.model, x[:1], at_once, at_once)) / at_once,
            *(
                feature_networks.cost(predictor.datamodule, predictor.cache_dir, predictor.device)
                if with_features
                else (0.0, 0.0)
            ),
        )


def _seconds(work: Callable[[], Any]) -> float:
    """Of a second call: the first one warms up."""
    work()
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
