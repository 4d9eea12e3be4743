"""How many samples an evaluation takes, and the forecast of how long that will be.

The sizes follow from the model's own cost, counted in floating-point operations and bytes at the speed of a nominal
processor: the same budget gives the same sizes on every machine, whatever else runs there. Only the forecast that is
printed is measured.
"""

import logging
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from src.evaluation import feature_training
from src.evaluation.importance import importance_bound
from src.evaluation.likelihood import bytes_a_code, likelihood_bytes, samples_at_once
from src.models.footprint import Work, work_of
from src.models.predictor import Predictor
from src.system.console import duration
from src.system.seeds import stream

log = logging.getLogger(__name__)

AUTO = "auto"
ON_A_CPU = 5  # minutes, where no budget is typed
# The nominal processor. One core of a 2025 server (AMD EPYC, torch 2.11, other cores busy) does 28-35 e9 operations/s
# in conv_wide, and moves 1.0-1.5 e9 bytes/s in conv_tiny. The two terms together are within a factor of 2 of the
# seconds that conv_tiny, conv_shallow, lstm, conv_wide and conv_deep (128 pixels) took there for a code or an image.
OPERATIONS_PER_SECOND = 30e9
BYTES_PER_SECOND = 1e9
# What `auto` stands for: the first of these that fits. Fewer samples come first, as the bound loses little by them.
BOUNDS = ((5_000, 100), (2_000, 100), (1_000, 100), (500, 100), (500, 50), (200, 50), (100, 50), (100, 20))
SETS = (10_000, 5_000, 2_000, 1_000, 500)
DECODED_SETS = 3  # of those that samples are compared with; one of them is encoded too
TRIED = 64  # images and codes that the forecast is measured on; for the bound a whole chunk of samples
SHARE_OF_SETS = 0.5  # of the time that the other parts leave to sets and bound

Options = dict[str, dict[str, Any]]  # the arguments of each part


class Cost(NamedTuple):
    """Seconds that a model takes."""

    encoding: float  # an image
    decoding: float  # a code
    weighing: float  # a posterior sample for the bound: it is drawn, decoded and compared with its image
    features: float  # an image in the features of our own network

    def of_codes(self, options: Options, train: int, judged: int) -> float:
        """Return the seconds for encoding whole splits, once for all parts, and decoding the judged one.

        Args:
            options: the parts.
            train: images of the training split.
            judged: images of the split that is judged.
        """
        shared = train + judged if {"latents", "samples", "representation"} & {*options} else 0
        whole = len({"elbo", "reconstruction"} & {*options})
        return shared * self.encoding + whole * judged * (self.encoding + self.decoding)

    def of_bound(self, samples: int, images: int) -> float:
        """Return the seconds for the importance bound."""
        return samples * images * self.weighing

    def of_sets(self, images: int) -> float:
        """Return the seconds for comparing sets of ``images`` samples, without making the feature network."""
        return images * (self.encoding + DECODED_SETS * self.decoding + (DECODED_SETS + 2) * self.features)

    def of(self, options: Options, train: int, judged: int) -> float:
        """Return the seconds for all parts; their sizes are numbers. See :meth:`of_codes`."""
        seconds = self.of_codes(options, train, judged)
        if "samples" in options:
            seconds += self.of_sets(options["samples"]["images"])
        if "bound" in options:
            seconds += self.of_bound(options["bound"]["samples"], options["bound"]["images"])
        return seconds


class Settled(NamedTuple):
    """The arguments of all parts, with numbers for ``auto``, and for each part that was made smaller what to type."""

    options: Options
    reduced: dict[str, str]


def settle(predictor: Predictor, options: Options, minutes: float | str | None) -> Settled:
    """Put numbers in place of ``auto``: the sizes that fit, or the full ones where there is no limit.

    Log how long the parts will take here at least. A feature network that must be made first takes no time from the
    others: the same command would choose more the next time.

    Args:
        predictor: the model and images that are judged.
        options: the arguments of each part that is wanted.
        minutes: for all parts together, on the nominal processor; ``auto`` for 5 on a CPU and no limit on a GPU, None
            for no limit.
    """
    if not options.keys() & {"bound", "samples"}:
        return Settled(options, {})
    if minutes == AUTO:
        minutes = None if predictor.device.type == "cuda" else ON_A_CPU
    splits = predictor.datamodule.splits
    train, judged = len(splits.train), len(getattr(splits, predictor.split))
    cost = nominal(predictor)
    full = chosen(cost, options, math.inf, train, judged)
    settled = full if minutes is None else chosen(cost, options, 60 * minutes, train, judged)
    reduced = {
        part: _way_to_full(part, settled[part], full[part], cost.of({part: full[part]}, train, judged))
        for part in settled
        if settled[part] != full[part]
    }
    here = measured(predictor, settled)
    making = feature_training.making(predictor.datamodule, predictor.cache_dir, predictor.device)
    making = making if "samples" in options else 0.0
    once = f", {duration(making)} of it for a feature network that is made once" if making else ""
    seconds = here.of(settled, train, judged) + making
    log.info("at least %s%s; fitting mixtures and probes is not counted", duration(seconds), once)
    for part, text in reduced.items():
        log.info("%s: %s", part, text)
    return Settled(settled, reduced)


def _way_to_full(part: str, taken: dict[str, Any], full: dict[str, Any], seconds: float) -> str:
    """Say what was made smaller than ``full`` to fit, and what to type for all of it."""
    sizes = " and ".join(f"{key} {taken[key]:,} of {full[key]:,}" for key in full if taken[key] != full[key])
    minutes = math.ceil(seconds / 60)
    return f"reduced to fit into the budget: {sizes}; for all type parts=[{part}] budget={minutes} or budget=null"


def chosen(cost: Cost, options: Options, seconds: float, train: int, judged: int) -> Options:
    """Return the same options with the largest sizes in place of ``auto`` that fit into ``seconds``.

    Sets of samples take at most half of what the other parts leave where a bound is wanted too; where nothing fits,
    the smallest sizes are taken.

    Args:
        cost: of the model.
        options: see :func:`settle`.
        seconds: for all parts.
        train: images of the training split.
        judged: images of the split that is judged.
    """
    settled = {part: dict(values) for part, values in options.items()}
    left = seconds - cost.of_codes(options, train, judged)
    if (sets := settled.get("samples")) is not None:
        sizes = [min(size, train, judged) for size in (SETS if sets["images"] == AUTO else (sets["images"],))]
        sets["images"] = _first(sizes, cost.of_sets, left * SHARE_OF_SETS if "bound" in options else left)
        left -= cost.of_sets(sets["images"])
    if (bound := settled.get("bound")) is not None:
        samples, images = bound["samples"], bound["images"] or judged
        pairs = [(k if samples == AUTO else samples, min(n if images == AUTO else images, judged)) for k, n in BOUNDS]
        bound["samples"], bound["images"] = _first(pairs, lambda pair: cost.of_bound(*pair), left)
    return settled


def _first(choices: list[Any], seconds: Callable[[Any], float], left: float) -> Any:
    """Return the first choice that fits into the seconds that are left, or the last one."""
    return next((choice for choice in choices if seconds(choice) <= left), choices[-1])


@torch.no_grad()
def nominal(predictor: Predictor) -> Cost:
    """Return what the model costs on the nominal processor: a function of its layers and the size of its images."""
    model = predictor.model
    x = torch.zeros(1, *model.image_shape, device=model.device)
    z = torch.zeros(1, *model.latent_shape, device=model.device)
    features = feature_training.kept(predictor.datamodule, predictor.cache_dir, predictor.device).network.eval()
    prior = model.prior()  # it is computed once for an evaluation, which is not counted
    decoding = nominal_seconds(work_of(model, lambda: model.decode(z)))
    draw = model.sampler(x)
    drawing = nominal_seconds(work_of(model, lambda: draw(1)))  # a flow passes networks
    return Cost(
        nominal_seconds(work_of(model, lambda: model.sampler(x))),
        decoding,
        drawing
        + decoding
        + likelihood_bytes(model) / BYTES_PER_SECOND
        + nominal_seconds(work_of(model, lambda: prior.log_prob(z))),
        nominal_seconds(work_of(features, lambda: features(x.cpu()))),
    )


def nominal_seconds(work: Work) -> float:
    """Return the seconds that the nominal processor takes, which computes and moves one after the other."""
    return work.operations / OPERATIONS_PER_SECOND + work.moved / BYTES_PER_SECOND


@torch.no_grad()
def measured(predictor: Predictor, options: Options) -> Cost:
    """Measure what the model costs here and now, on some of its images; bound and features only where wanted.

    The bound's samples are measured in a chunk as large as its own: of fewer, each would bear more of a call's cost.
    """
    batch, _ = next(predictor.batches(predictor.split, TRIED))
    x = batch.x
    z, with_features = torch.zeros(len(x), *predictor.model.latent_shape), "samples" in options
    samples = options["bound"]["samples"] if "bound" in options and predictor.model.has_elbo else 0
    at_once = min(samples, samples_at_once(bytes_a_code(predictor.model), samples)[1]) if samples else 0
    features = feature_training.kept(predictor.datamodule, predictor.cache_dir, predictor.device).network
    features = features.to(predictor.device).eval()
    with stream(predictor.seed, "trial"):
        return Cost(
            _seconds(lambda: [*map(predictor.model.sampler, predictor.to_encode(x))]) / len(x),
            _seconds(lambda: [*predictor.decode(z)]) / len(x),
            _seconds(lambda: importance_bound(predictor.model, x[:1], at_once, at_once)) / at_once if samples else 0.0,
            _seconds(lambda: features(x)[0].sum().item()) / len(x) if with_features else 0.0,
        )


def _seconds(run: Callable[[], Any]) -> float:
    """Return the seconds of the faster of two calls after one that warms up."""
    run()
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return min(seconds)
