"""Draw pictures of a trained run: reconstructions, samples, latents, traversals, your own images.

``python -m src.explore run=outputs/...`` needs the run folder and its data. It writes ``figures/*.png`` and the same
pictures into TensorBoard, with ``images=`` your own pictures and what each costs (into ``figures/pictures/``), and with
``embed=npz|csv`` the latents.
"""

if not __package__:  # started as a file, it does not find the project
    raise SystemExit(f"error: type python -m src.explore in {__file__.rpartition('src')[0]}")

import logging
from pathlib import Path

from omegaconf import DictConfig

from src.system.cli import announce, command
from src.system.errors import UserError

log = logging.getLogger(__name__)


@command("explore")
def main(cfg: DictConfig) -> None:
    """Draw the pictures of one run."""
    if not (cfg.figures or cfg.images or cfg.noise or cfg.embed):
        raise UserError("nothing to do: name figures=, images=, noise= or embed=")
    announce(f"exploring {cfg.run}")
    from torch.utils.tensorboard import SummaryWriter

    from src.exploration import denoising, export, gallery, own_images, scores
    from src.runs.reader import open_run
    from src.system.files import whole_file

    chosen = gallery.choose(cfg.figures)
    run, predictor = open_run(cfg)
    form = export.form_of(cfg.embed, predictor.model)
    own = own_images.read(cfg.images, predictor.datamodule, cfg.invert) if cfg.images else None
    denoising.check_noise(cfg.noise, predictor.datamodule)

    drawn = [*gallery.draw(predictor, chosen, cfg.figures != "all")]
    pages, folder = [], Path()
    if own is not None:
        folder = Path("pictures", own.folder)
        if hint := scores.look_like_negatives(predictor, own):
            log.warning(hint)
    if cfg.noise:
        pages = [*denoising.draw(predictor, own, cfg.noise)]
        if own is not None:
            log.info("images= with noise= get no scores: leave noise= out for what each picture costs")
    elif own is not None:
        found = scores.scores(predictor, own.x)
        pages = [*scores.draw(predictor, own, found)]
        table = scores.table(predictor, own, found)
        with whole_file(run.folder.figures / folder / "pictures.csv") as file:
            table.to_csv(file, index=False)
        log.info("\n%s\n\n%s", scores.words(predictor, table), run.folder.figures / folder / "pictures.csv")
    with SummaryWriter(run.folder.tensorboard) as writer:
        step = run.record.get("steps", 0)
        for name, figure in (*drawn, *((folder / name, figure) for name, figure in pages)):
            path = run.folder.figures / f"{name}.png"
            gallery.write(figure, path)
            writer.add_figure(f"explore/{name}", figure, step)
            log.info("%s", path)
        if own is not None:
            gallery.remove_other_pages(run.folder.figures / folder, [name for name, _ in pages])
        if form:
            for path in export.export(predictor, own, run.folder.path / "embedding", form):
                log.info("%s", path)
            export.project(predictor, writer, run.folder.tensorboard)


if __name__ == "__main__":
    main()
