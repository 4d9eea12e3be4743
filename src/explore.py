"""Pictures of a trained run: reconstructions, samples, latents, traversals, your own images.

``python -m src.explore run=outputs/...`` needs the run folder alone. It writes ``figures/*.png``, the same into
TensorBoard, with ``images=`` what pictures of your own cost (``figures/pictures.csv``), and with ``embed=npz|csv``
the latents.
"""

if not __package__:  # started as a file, it does not find the project
    raise SystemExit(f"error: type python -m src.explore in {__file__.rpartition('src')[0]}")

import logging

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

    from src.exploration import export, gallery, own_images, scores
    from src.runs.reader import open_run
    from src.system.files import whole_file

    chosen, form = gallery.choose(cfg.figures), export.form_of(cfg.embed)
    run, predictor = open_run(cfg)
    own = own_images.read(cfg.images, predictor.datamodule, cfg.invert) if cfg.images else None
    own_images.check_noise(cfg.noise, predictor.datamodule)

    known = None
    if own is not None:
        if not cfg.invert and (hint := scores.look_like_negatives(predictor, own.x)):
            log.warning(hint)
        known = scores.scores(predictor, own.x)
    drawn = [*gallery.draw(predictor, chosen, cfg.figures != "all"), *own_images.draw(predictor, own, cfg.noise, known)]
    if own is not None:
        for old in run.folder.figures.glob("pictures*.png"):  # of other pictures, maybe more of them
            old.unlink()
        table = scores.table(predictor, own.names, known)
        with whole_file(run.folder.figures / "pictures.csv") as file:
            table.to_csv(file, index=False)
        log.info("\n%s\n\n%s", scores.words(predictor, table), run.folder.figures / "pictures.csv")
    with SummaryWriter(run.folder.tensorboard) as writer:
        step = run.record.get("steps", 0)
        for name, figure in drawn:
            path = run.folder.figures / f"{name}.png"
            gallery.write(figure, path)
            writer.add_figure(f"explore/{name}", figure, step)
            log.info("%s", path)
        if form:
            for path in export.export(predictor, own, run.folder.path / "embedding", form):
                log.info("%s", path)
            export.project(predictor, writer, run.folder.tensorboard)


if __name__ == "__main__":
    main()
