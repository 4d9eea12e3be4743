"""Test batches, how processes share them, and their pixels."""

import re
from types import SimpleNamespace

import pytest
import torch
from hydra.errors import InstantiationException

from src.data.batches import BatchIndices
from src.data.pixels import Pixels
from src.runs import build
from src.system.errors import UserError
from src.system.explain import explain
from tests.helpers import SMALL, composed, data, examples


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_processes_share_the_batches_of_one_process(world_size):
    def batches(rank, size):
        sampler = BatchIndices(50, 12, shuffle=True, seed=5, rank=rank, world_size=size)
        sampler.set_epoch(3)
        drawn = list(sampler)
        assert len(drawn) == len(sampler)
        return drawn

    whole = batches(0, 1)
    shares = [batches(rank, world_size) for rank in range(world_size)]
    assert len(whole) == 4  # the incomplete fifth is dropped
    for step, batch in enumerate(whole):
        assert sorted(torch.cat([share[step] for share in shares]).tolist()) == sorted(batch.tolist())


@pytest.mark.parametrize(("images", "world_size"), [(50, 1), (50, 4), (49, 4), (3, 2), (12, 3)])
def test_evaluation_sees_every_image_once(images, world_size):
    samplers = [BatchIndices(images, 12, shuffle=False, rank=r, world_size=world_size) for r in range(world_size)]
    seen = [list(sampler) for sampler in samplers]
    assert [len(s) for s in samplers] == [len(batches) for batches in seen]
    assert sorted(i for batches in seen for batch in batches for i in batch.tolist()) == list(range(images))


def test_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        sampler = BatchIndices(100, 10, shuffle=True, seed=seed)
        sampler.set_epoch(epoch)
        return torch.cat(list(sampler)).tolist()

    assert order(0, 1) == order(0, 1)
    assert len({tuple(order(*key)) for key in ((0, 0), (0, 1), (1, 0))}) == 3


def test_a_split_smaller_than_a_batch_is_one_batch():
    assert [len(batch) for batch in BatchIndices(5, 64, shuffle=True)] == [5]
    assert [len(batch) for batch in BatchIndices(5, 64, shuffle=True, rank=1, world_size=2)] == [2]


def test_a_batch_that_processes_cannot_share_is_refused():
    datamodule = data("data=digits", "data.batch_size=33")
    cpu = SimpleNamespace(root_device=torch.device("cpu"))
    datamodule.trainer = SimpleNamespace(global_rank=1, world_size=2, strategy=cpu)
    with pytest.raises(UserError, match="choose a multiple of 2"):
        datamodule.train_dataloader()


def test_loading_draws_no_noise():
    datamodule = data("data=digits", "data.image_size=8")
    datamodule.setup("fit")
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    for _ in datamodule.train_dataloader():
        pass
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("overrides", "pixels", "values"),
    [
        ([], Pixels.GREY, 17),
        (["data.binarize=threshold"], Pixels.BINARY, 2),
        (["data.binarize=dynamic"], Pixels.BINARY, 2),
        (["data.dequantize=true"], Pixels.DEQUANTIZED, None),
    ],
)
def test_pixels_have_the_values_of_their_kind(overrides, pixels, values):
    datamodule = data("data=digits", "data.image_size=8", *overrides)
    x = examples(datamodule, "train", 200)
    assert datamodule.pixels is pixels
    assert (x.dtype, x.shape) == (torch.float32, (200, 1, 8, 8))
    assert 0 <= x.min() <= x.max() <= 1
    if values is not None:
        assert len(x.unique()) == values
    else:
        levels = datamodule.pool.images[datamodule.splits.train[torch.arange(200) * 1294 // 200]]
        wrong = (x * 256).floor() != levels
        assert wrong.float().mean() < 1e-3  # float32 rounds a noise of 0.9999999 up to the next level


@pytest.mark.parametrize(
    ("likelihood", "of_data", "pixels"),
    [
        ("gaussian", [], Pixels.DEQUANTIZED),
        ("gaussian", ["data.binarize=threshold"], Pixels.BINARY),
        ("logistic_mixture", [], Pixels.GREY),
        ("gaussian_optimal", [], Pixels.GREY),  # no density of any pixels
        ("bernoulli", ["data.binarize=dynamic"], Pixels.BINARY),
    ],
)
def test_noise_is_added_where_a_likelihood_needs_it(likelihood, of_data, pixels):
    cfg = composed(*SMALL, f"likelihood@model.likelihood={likelihood}", "data.dequantize=auto", *of_data)
    assert build.build_datamodule(cfg).pixels is pixels
    assert cfg.data.dequantize is (pixels is Pixels.DEQUANTIZED)  # as the run records it


def test_dynamic_binarization_draws_with_the_grey_level_as_probability():
    datamodule = data("data=digits", "data.image_size=8", "data.binarize=dynamic")
    levels = torch.tensor([0, 51, 204, 255], dtype=torch.uint8).view(1, 1, 1, 4).expand(20_000, 1, 1, 4)
    torch.testing.assert_close(
        datamodule.scale(levels).mean(0).flatten(), torch.tensor([0, 0.2, 0.8, 1.0]), atol=0.02, rtol=0
    )


def test_fingerprint_changes_with_data_split_and_pixels():
    base = ("data=digits", "data.image_size=8")
    noisy = data(*base, "data.dequantize=true")
    assert noisy.stored_fingerprint == data(*base).fingerprint != noisy.fingerprint
    variants = [(), ("data.split_seed=1",), ("data.image_size=16",), ("data.binarize=threshold",)]
    prints = {data(*base, *variant).fingerprint for variant in variants}
    assert len(prints) == 4
    assert data(*base).fingerprint == data(*base, "seed=5", "data.batch_size=7").fingerprint


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.binarize=sometimes", "give one of none, threshold, dynamic"),
        ("data.channels=2", "data.channels=2: give one of 1, 3"),
        ("data.batch_size=0", "batch_size=0"),
        ("data.val_fraction=1.5", "val_fraction=1.5"),
        ("data.binarize=threshold data.dequantize=true", "these pixels are binary"),
    ],
)
def test_impossible_data_settings_are_refused(override, words):
    with pytest.raises(InstantiationException) as caught:
        data("data=digits", *override.split())
    assert re.search(words, explain(caught.value))
