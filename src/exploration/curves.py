"""Curves over training."""

from collections.abc import Mapping, Sequence

from matplotlib.ticker import MaxNLocator

from src.exploration.writing import Figure
from src.system.directions import loss_is_elbo

# Okabe & Ito's palette: people with any colour vision can tell them apart.
COLOURS = {"elbo": "#0072B2", "distortion": "#D55E00", "rate": "#009E73", "loss": "#CC79A7"}
MARKERS = {"train": "x", "val": "."}
LEGEND = {"train": "training", "val": "validation"}


def loss_curves(epochs: Sequence[Mapping[str, float]], names: Mapping[str, str]) -> Figure:
    """Draw negative elbo and distortion by epoch, and beside them the far smaller rate. Epochs are counted from 1.

    A loss that is not the negative elbo, by which the best epoch is chosen, is drawn too.

    Args:
        epochs: one mapping per epoch: ``epoch`` (from 0), and in nats per image ``train/elbo``, ``val/rate`` and so on;
            the kept epoch, which gets a dotted line, also has ``kept``.
        names: what to call ``elbo`` and ``distortion`` (a pseudo-likelihood is called one).
    """
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    drawn = {"Negative ELBO and distortion": ("elbo", "distortion"), "Rate": ("rate",)}
    if not any(tag.endswith("/elbo") for epoch in epochs for tag in epoch):  # a model without an elbo
        drawn = {"Distortion": ("distortion",)}
    elif not all(loss_is_elbo(epoch, stage) for epoch in epochs for stage in LEGEND):
        drawn = {"Loss, negative ELBO and distortion": ("loss", "elbo", "distortion"), "Rate": ("rate",)}
    panels = figure.subplots(1, len(drawn), squeeze=False)[0]
    for axes, (title, quantities) in zip(panels, drawn.items(), strict=True):
        for quantity in quantities:
            sign, name = (-1, f"−{names['elbo']}") if quantity == "elbo" else (1, names.get(quantity, quantity))
            for stage, style in (("train", "--"), ("val", "-")):
                tag = f"{stage}/{quantity}"
                points = [(epoch["epoch"] + 1, sign * epoch[tag]) for epoch in epochs if tag in epoch]
                if points:
                    label = f"{name}, {LEGEND[stage]}"
                    style_of_line = {"color": COLOURS[quantity], "marker": MARKERS[stage]}
                    axes.plot(*zip(*points, strict=True), style, label=label, **style_of_line)
        axes.set(xlabel="epoch", ylabel="nats per image", title=title)
        for epoch in (epoch for epoch in epochs if epoch.get("kept")):
            axes.axvline(epoch["epoch"] + 1, color="0.5", linestyle=":", zorder=0, label="epoch that was kept")
        if len(epochs) == 1:  # else there are ticks for epochs that were not trained
            axes.set_xlim(epochs[0]["epoch"] + 0.5, epochs[0]["epoch"] + 1.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        # Below the axes: inside, it would cover the dots of a short training.
        axes.legend(fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, frameon=False)
    return figure
