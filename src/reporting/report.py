"""Write the report of a sweep: ``report/index.html``, ``results.csv`` and figures, from the records of its points."""

import base64
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from src.reporting import plots, style
from src.reporting.contact_sheet import columns_of, contact_sheet, tiles
from src.reporting.levels import as_stored, mixed
from src.reporting.results import Results, short
from src.reporting.statistics import ALPHA, FEW_SEEDS, by_seed, configurations, p_value, pareto, verdict
from src.reporting.words import (
    COSTS,
    TESTED,
    best_in_words,
    commands,
    elbo_name,
    front_in_words,
    number,
    why_no_best,
    with_interval,
)
from src.system.directions import as_printed
from src.system.files import readable, refuse_links_out, remove_unfinished, whole_file

log = logging.getLogger(__name__)

TEMPLATE = Path(__file__).with_name("page.html")
PRINTED = ("printed_value", "test_minus_elbo")  # the elbo as papers print it: lower is better
AVERAGED = ("value", *TESTED, *PRINTED, "active_latents", "latent_dim", "bits_per_dim", *COSTS)
MOST_KEYS = 9  # panels of the figure with one panel a key
DPI = 130


@dataclass
class Section:
    """The part of the page about points whose numbers may be compared.

    Attributes:
        title: title of the section; empty where it is the only one.
        keys: the swept keys that differ between them.
        metric: name of the elbo.
        mixed: whether numbers of densities and of probabilities stand side by side, see :mod:`src.reporting.levels`.
        compared_by: name of the metric that the best point is chosen by, as it is printed.
        best_first: order in which the best of its numbers comes first.
        points: rows of the table of points.
        configurations: rows of the table over seeds; empty with one seed.
        doubt: why no best configuration is named; empty where one is.
        best: the best configuration in words and numbers.
        figures: name, caption and data of each figure, and its file beside the page.
    """

    title: str
    keys: list[str]
    metric: str
    mixed: bool
    compared_by: str
    best_first: str
    doubt: str
    best: dict[str, Any] | None
    points: list[dict[str, Any]]
    configurations: list[dict[str, Any]] = field(default_factory=list)
    figures: list[dict[str, str]] = field(default_factory=list)


def write_report(results: Results) -> Path:
    """Write ``report/`` and ``results.csv`` into the sweep's folder and return the path of the page.

    Raises:
        OSError: the folder cannot be written to.
        UserError: a link in ``report/`` leads out of the sweep's folder.
    """
    folder = results.folder / "report"
    refuse_links_out(results.folder, ("report",))
    folder.mkdir(exist_ok=True)
    remove_unfinished(folder)
    table = results.table
    # On GPUs the memory of the GPU is what runs out; it cannot be compared with a process's memory.
    on_gpus = not table.devices.dropna().astype(str).str.contains("cpu").any()
    table["memory_mib"] = (table.gpu_mib if on_gpus else table.process_mib).astype(float)
    with whole_file(results.folder / "results.csv") as file:
        file.write_text(readable(table.drop(columns=["maximize"]).to_csv(index=False)), encoding="utf-8")
    sections = list(_sections(results, folder))
    sheet = tiles(results)
    columns = columns_of(results)
    pictures = [(tile["what"], Path(tile["path"])) for tile in sheet if tile["picture"]]
    if pictures:
        with whole_file(folder / "contact_sheet.png") as file:
            contact_sheet(pictures, columns).save(file, "PNG")
    pages = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    pages.filters.update(number=number, shown=style.shown, sortable=lambda value: "" if pd.isna(value) else value)
    text = pages.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        name=str(results.folder),
        command=results.plan.command,
        swept=_swept(results),
        fixed={key: value for key, value in results.plan.fixed.items() if key not in results.swept},
        counts=table.status.value_counts().to_dict(),
        total=len(table),
        sections=sections,
        keys=results.keys,
        names=results.names,
        with_interval=with_interval,
        differences=results.differences() if len(sections) > 1 else [],
        notes=_notes(results),
        sheet=sheet,
        columns=columns,
        pictured=bool(pictures),
        unfinished=[_unfinished(results, row) for _, row in table[table.status != "finished"].iterrows()],
        commands=[{"point": row.point, "id": i, **commands(results, row)} for i, row in table.iterrows()],
        when=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    with whole_file(folder / "index.html") as file:
        file.write_text(readable(text), encoding="utf-8")
    return folder / "index.html"


def _swept(results: Results) -> list[dict[str, str]]:
    """Return each swept key with its values as typed, or as the points have them."""
    rows = []
    for key in results.keys:
        values = style.ordered(results.table[key])
        found = ", ".join(style.shown(v) for v in values)
        rows.append({"key": key, "typed": results.plan.swept.get(key) or found})
    return rows


def _notes(results: Results) -> list[str]:
    """Return warnings about what else differs between points, so that they may not compare."""
    notes = []
    for column, what in (
        ("git_commit", "versions of the code"),
        ("precision", "precisions"),
        ("devices", "devices"),
        ("epochs", "numbers of epochs (early stopping, or trainer.max_epochs)"),
    ):
        found = sorted({str(v).replace(".0", "") for v in results.finished[column].dropna()})
        swept = {"epochs": "trainer.max_epochs", "precision": "trainer.precision"}.get(column)
        if len(found) > 1 and swept not in results.swept:
            some = ", ".join(_commit(v) for v in found[:6]) + (" …" if len(found) > 6 else "")
            notes.append(f"Points come from {len(found)} {what}: {some}.")
    return notes


def _commit(text: str) -> str:
    """Cut a commit's hash to eight digits and keep what follows it; return any other text unchanged."""
    return re.sub(r"^([0-9a-f]{8})[0-9a-f]{32}", r"\1", text)


def _sections(results: Results, folder: Path) -> Iterator[Section]:
    families = [_as_printed(as_stored(family)) for family in results.families()]
    for place, points in enumerate(families, 1):
        first = points.iloc[0]
        metric = elbo_name(first)
        compared_by, sign = as_printed(str(first.compared_by), metric)
        keys = [key for key in results.swept if points[key].nunique(dropna=False) > 1]
        only = len(families) == 1
        likelihoods = ", ".join(sorted({str(name) for name in points.likelihood}))
        title = "" if only else f"Group {place}: {first.data_name}, {likelihoods}, images {short(first.fingerprint)}"
        means = configurations(points, results.swept, AVERAGED)
        doubt = why_no_best(points)
        chosen = None if doubt else verdict(points, results.swept, bool(first.maximize))
        section = Section(
            title=title,
            keys=keys,
            metric=metric,
            mixed=mixed(points),
            compared_by=compared_by,
            best_first="descending" if first.maximize and sign > 0 else "ascending",
            doubt=doubt,
            best=best_in_words(results, points, results.swept, means, chosen) if chosen else None,
            points=[{**_point(row), "id": i} for i, row in points.iterrows()],
            configurations=[row.to_dict() for _, row in means.iterrows()] if (means.seeds > 1).any() else [],
        )
        suffix = "" if only else f"_{place}"
        names = {key: results.names[key] for key in keys}
        for name, caption, figure in _figures(points, means, keys, names, metric):
            file = folder / f"{name}{suffix}.png"
            section.figures.append({"caption": caption, "data": _save(figure, file), "name": name, "file": file.name})
        yield section


def _as_printed(points: pd.DataFrame) -> pd.DataFrame:
    """Add the columns PRINTED, in which elbos have the sign that papers print."""
    _, sign = as_printed(str(points.compared_by.iloc[0]), "")
    return points.assign(
        printed_value=sign * points.value.astype(float), test_minus_elbo=-points.test_elbo.astype(float)
    )


def _figures(
    points: pd.DataFrame, means: pd.DataFrame, keys: Sequence[str], names: Mapping[str, str], metric: str
) -> Iterator[tuple[str, str, Figure]]:
    """Yield name, caption and figure of everything that these points have the numbers for."""
    tested = means.dropna(subset=list(TESTED))
    bars = " Dots: single points." if (means.seeds > 1).any() else ""
    bars += " Bars: 95 % intervals over seeds." if (means.seeds >= FEW_SEEDS).any() else ""
    if len(tested) > 1:
        caption = f"The trade between what a code costs and what it leaves to the decoder.{bars}"
        yield "rate_distortion", caption, plots.rate_distortion(tested, points, keys, names, metric)
        if keys:
            label, title = f"test −{metric} (nats per image)", f"Test −{metric} against each swept key; lower is better"
            figure = plots.by_key(tested, points, keys[:MOST_KEYS], names, "test_minus_elbo", label, title)
            yield "test_elbo", f"Weighted as in the elbo, whatever kl_weight trained with.{bars}", figure
    used = tested.dropna(subset=["active_latents", "latent_dim"])
    if len(used) > 1 and keys:
        caption = (
            "A latent is active where its posterior mean varies by more than 0.01 over the images (Burda et al. 2016)."
        )
        yield "latents", caption, plots.latents(used, points, keys, names)
    costs = means.dropna(subset=["test_elbo"]).reset_index(drop=True)
    # The whole time of a point helps to plan the next sweep; the training's time replaces it where some lack it.
    other = "wall_seconds" if costs.whole_seconds.notna().all() else "whole_seconds"
    fronts = {
        column: _front(costs, points, column, sign)
        for column, (_, sign) in COSTS.items()
        if column != other and costs[column].notna().sum() > 1
    }
    if len(costs) > 1 and fronts:
        figure = plots.cost(costs, "test_minus_elbo", f"test −{metric} (nats per image)", fronts, keys, names)
        yield "cost", front_in_words(costs, fronts, keys, names), figure


def _front(table: pd.DataFrame, points: pd.DataFrame, column: str, sign: int) -> list[int]:
    """Return the positions of the configurations on the front of one cost; ``sign`` is 1 where less of it is better."""
    elbos = [by_seed(points, row, "test_elbo") for _, row in table.iterrows()]
    tested = sum(len(values) > 1 for values in elbos)

    def better(i: int, j: int) -> bool:
        return not p_value(elbos[i], elbos[j], tested) >= ALPHA  # without an error estimate, any difference counts

    return pareto([sign * v for v in table[column].astype(float)], list(table.test_elbo.astype(float)), better)


def _point(row: pd.Series) -> dict[str, Any]:
    return {
        **row.to_dict(),
        "minutes": row.whole_seconds / 60,
        "training_minutes": None if pd.isna(row.wall_seconds) else row.wall_seconds / 60,
    }


def _unfinished(results: Results, row: pd.Series) -> dict[str, Any]:
    output = Path(row.path) / "output.log"
    return {
        "point": row.point,
        "status": row.status,
        "error": row.error if isinstance(row.error, str) else "it did not end: repeat the sweep's command",
        "output": str(output) if output.is_file() else "",
    }


def _save(figure: Figure, path: Path) -> str:
    """Write a figure as PNG and SVG, and return the SVG as a data URL."""
    with mpl.rc_context({"svg.hashsalt": path.stem}):
        for kind in ("png", "svg"):
            with whole_file(path.with_suffix(f".{kind}")) as file:
                figure.savefig(file, format=kind, dpi=DPI, metadata={"Date": None} if kind == "svg" else None)
    return "data:image/svg+xml;base64," + base64.b64encode(path.with_suffix(".svg").read_bytes()).decode()
