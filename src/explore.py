"""Pictures of a trained run: reconstructions, samples, latents, traversals, your own images.

``python -m src.explore run=outputs/...`` needs the run folder alone. It writes ``figures/*.png``, the same into
TensorBoard, and with ``embed=npz|csv`` the latents.
"""

import logging

import hydra
from omegaconf import DictConfig

from src.errors import UserError, reports_user_errors

log = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path="../conf", config_name="explore")
@reports_user_errors
def main(cfg: DictConfig) -> None:
    """Draw the pictures of one run."""
    from torch.utils.tensorboard import SummaryWriter

    from src import embedding, exploration, pictures, record
    from src.console import hush_libraries
    from src.loading import load_run, subject_of
    from src.machine import keep_pages

    hush_libraries()
    keep_pages()
    chosen, form = exploration.choose(cfg.figures), embedding.form_of(cfg.embed)
    if not (chosen or cfg.images or cfg.noise or form):
        raise UserError("nothing to do: name figures=, images=, noise= or embed=")
    run = load_run(cfg.run, cfg.checkpoint, cfg.data.root, cfg.cache_dir, cfg.other_data)
    subject = subject_of(run, cfg.split, cfg.seed, cfg.device, cfg.cache_dir)
    log.info("%s, %s weights %s, %s", run.folder.path, cfg.checkpoint, run.checkpoint_hash, record.on_what(subject))
    own = pictures.read(cfg.images, subject.datamodule) if cfg.images else None
    pictures.check_noise(cfg.noise, subject.datamodule)

    drawn = [*exploration.draw(subject, chosen, cfg.figures != "all"), *pictures.draw(subject, own, cfg.noise)]
    if own is not None:
        for old in run.folder.figures.glob("pictures*.png"):  # of other pictures, maybe more of them
            old.unlink()
    with SummaryWriter(run.folder.tensorboard) as writer:
        step = run.record.get("steps", 0)
        for name, figure in drawn:
            path = run.folder.figures / f"{name}.png"
            exploration.write(figure, path)
            writer.add_figure(f"explore/{name}", figure, step)
            log.info("%s", path)
        if form:
            for path in embedding.export(subject, own, run.folder.path / "embedding", form):
                log.info("%s", path)
            embedding.project(subject, writer, run.folder.tensorboard)


if __name__ == "__main__":
    main()
