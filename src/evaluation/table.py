"""The table of an evaluation for the terminal."""

from typing import Any

SETS = {
    "training": "training images (the floor)",
    "reconstructions": "reconstructions",
    "prior": "samples, z from the prior",
    "mixture": "samples, z from the mixture",
}


def evaluation_table(parts: dict[str, dict[str, Any]], names: dict[str, str]) -> str:
    """Return all parts as text, one block each.

    Args:
        parts: what :func:`src.evaluation.suite.evaluate` returns.
        names: under which ``elbo`` and ``distortion`` are shown.
    """
    writers = {
        "elbo": _elbo,
        "bound": _bound,
        "latents": _latents,
        "reconstruction": _reconstruction,
        "samples": _samples,
        "representation": _representation,
    }
    blocks = []
    for name, figures in parts.items():
        images = f" ({figures['images']:,} images)" if "images" in figures else ""
        lines = [f"not computed: {figures['skipped']}"] if "skipped" in figures else writers[name](figures, names)
        lines += [figures["reduced"]] if "reduced" in figures else []
        blocks.append("\n".join([f"{name}{images}", *(f"  {line}" for line in lines)]))
    return "\n\n".join(blocks)


def _elbo(figures: dict[str, Any], names: dict[str, str]) -> list[str]:
    rows = [(names.get(key, key), figures[key]) for key in ("elbo", "distortion", "rate") if key in figures]
    width = max(18, *(len(name) for name, _ in rows))
    lines = [f"{name:<{width}} {value:12.4f} nats per image" for name, value in rows]
    return lines + _bits(figures)


def _bits(figures: dict[str, Any]) -> list[str]:
    bits, error = figures.get("bits_per_dim"), figures.get("bits_per_dim_standard_error")
    return [] if bits is None else [f"{'bits per dimension':<18} {_plus_minus(bits, error, 4):>12}"]


def _bound(figures: dict[str, Any], names: dict[str, str]) -> list[str]:
    return [
        f"log p(x) at least  {_plus_minus(figures['log_likelihood'], figures['standard_error'], 2)} nats "
        f"({names['elbo'].replace('elbo', 'likelihood')}, K = {figures['samples']:,})",
        f"above the elbo by  {_plus_minus(figures['gap'], figures['gap_standard_error'], 2)} nats on the same images",
        f"effective samples  {figures['median_effective_samples']:.1f} of {figures['samples']:,} (median)",
        *_bits(figures),
    ]


def _latents(figures: dict[str, Any], names: dict[str, str]) -> list[str]:
    information, gap = figures["mutual_information"], figures["aggregate_gap"]
    return [
        f"active             {figures['active']} of {figures['latent_dim']}; "
        f"99 % of the rate in {figures['carry_99_percent']}",
        f"rate               {figures['rate']:.2f} nats = mutual information + gap of aggregate posterior and prior",
        f"mutual information {information[0]:.2f} to {information[1]:.2f} nats (the lower bound cannot pass "
        f"log of the images, {figures['information_ceiling']:.2f})",
        f"gap                {gap[0]:.2f} to {gap[1]:.2f} nats; these bounds ± {figures['bounds_standard_error']:.2f}",
        figures["verdict"],
    ]


def _reconstruction(figures: dict[str, Any], names: dict[str, str]) -> list[str]:
    rows = {"PSNR": ("psnr", ".2f", " dB"), "SSIM": ("ssim", ".4f", ""), "MS-SSIM": ("ms_ssim", ".4f", "")}
    return [
        f"{title:<18} "
        + ("not defined for images this small" if figures[key] is None else f"{figures[key]:{form}}{unit}")
        for title, (key, form, unit) in rows.items()
    ] + ["of codes drawn from q(z|x), which has no known mean"] * (figures.get("codes") == "draws")


def _samples(figures: dict[str, Any], names: dict[str, str]) -> list[str]:
    lines = []
    for network in ("classifier", "random network", "inception-v3"):
        if network in figures:
            lines += [*_sets(network, figures[network]), ""]
    copy = figures["memorisation"]
    return [
        *lines,
        "± of the floor is too large, by simulation about 1.5 times (Fréchet) and 1.8 times (kernel)",
        f"nearer to one of {copy['references']:,} training images than to any of as many unseen ones: "
        f"{_percent(copy['nearer_to_training'])} ± {_percent(copy['standard_error'])} of {copy['samples']:,} samples "
        "(about 50 %: no copies)",
        *([f"warning: {figures['warning']}"] if "warning" in figures else []),
    ]


def _sets(network: str, figures: dict[str, Any]) -> list[str]:
    facts = figures["network"]
    right = _percent(facts.get("validation_accuracy") or 0)
    about = {
        "classifier": f"of {facts['trained_on']}, right on {right} of validation",
        "random network": "untrained: there are no classes to tell apart",
        "inception-v3": "trained on ImageNet",
    }[network]
    true = network == "inception-v3"
    frechet, kernel = ("fid", "kid") if true else ("frechet_distance", "kernel_distance")
    first, second = ("FID", "KID") if true else ("Fréchet", "kernel")
    head = f"{'':<28} {first:>17} {second:>17} {'score':>7}{'precision':>10}{'recall':>8}{'density':>9}{'coverage':>9}"
    rows = []
    for key, title in SETS.items():
        of = figures["sets"][key]
        if "skipped" in of:
            rows.append(f"{title:<28} not computed: {of['skipped']}")
            continue
        score = "-" if of["score"] is None else f"{of['score']['value']:.2f}"
        rows.append(
            f"{title:<28} {_pm(of[frechet], 3):>17} {_pm(of[kernel], 4):>17} {score:>7} "
            f"{of['precision']:9.3f}{of['recall']:8.3f}{of['density']:9.3f}{of['coverage']:9.3f}"
        )
    own = figures["score_of_the_split"]
    of_split = [] if own is None else [f"score of the real images themselves: {own['value']:.2f}"]
    which = f"; made on a {facts['made_on']}" if "made_on" in facts else ""
    which += f", {facts['hash'][:8]}" if "hash" in facts else ""
    return [f"in {network} features ({about}{which})", head, *rows, *of_split]


def _representation(figures: dict[str, Any], names: dict[str, str]) -> list[str]:
    lines = [f"{'':<34} {'accuracy':>9} {'balanced':>9} {'AUROC':>7}"]
    rows = {
        "linear_probe": f"linear probe (C = {figures['linear_probe']['C']:g})",
        "nearest_neighbours": f"nearest neighbours (k = {figures['nearest_neighbours']['k']})",
        "linear_probe_on_principal_components": "linear probe on as many PCs",
    }
    for key, title in rows.items():
        if (of := figures[key]) is None:
            continue
        area = "-" if of["auroc"] is None else f"{of['auroc']:.4f}"
        lines.append(f"{title:<34} {of['accuracy']:9.4f} {of['balanced_accuracy']:9.4f} {area:>7}")
    lines.append(f"{'always the commonest class':<34} {figures['commonest_class']:9.4f}")
    if figures["optimistic"]:
        lines.append("optimistic: C and k were chosen on these images")
    return lines


def _pm(estimate: dict[str, Any], digits: int) -> str:
    return _plus_minus(estimate["value"], estimate["standard_error"], digits)


def _plus_minus(value: float, error: float | None, digits: int) -> str:
    return f"{value:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def _percent(part: float) -> str:
    return f"{100 * part:.1f} %"
