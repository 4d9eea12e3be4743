"""Test how far a step moves a wide layer, for every optimizer of torch that takes ordinary parameters."""

import copy
import functools

import pytest
import torch
from torch import nn

from src.models.objectives import elbo_terms
from src.networks.blocks import WideLinear
from src.system.errors import UserError
from src.training.optimizers import FACTORS, decays_apart, follows_gradient, optimizer_of
from src.training.recipe import Recipe
from tests.helpers import built

INPUTS = 4_096  # 16 times the width at which step_factor falls below 1
FIXED = ("Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "RMSprop", "Rprop", "Adafactor")
PROPORTIONAL = ("SGD", "ASGD")


def pair(seed: int = 0) -> tuple[WideLinear, nn.Linear]:
    """Return a wide layer and a plain one that compute the same function."""
    torch.manual_seed(seed)
    wide, plain = WideLinear(INPUTS, 3), nn.Linear(INPUTS, 3)
    plain.load_state_dict(wide.state_dict())
    return wide, plain


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """Take a step and return the change of the function at ``x``."""

    def loss():
        optimizer.zero_grad()
        value = scale * (model(x) - 1).square().sum()
        value.backward()
        return value

    before = model(x).detach()
    optimizer.step(loss)
    return model(x).detach() - before


def test_a_wide_layer_starts_as_a_linear_one():
    wide, plain = pair()
    assert (wide.step_factor, WideLinear(256, 1).step_factor, WideLinear(64, 1).step_factor) == (1 / 16, 1, 1)
    x = torch.rand(8, INPUTS)
    assert torch.equal(wide(x), plain(x))
    assert wide.weight.abs().max() <= INPUTS**-0.5  # as nn.Linear draws it


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}], ids=["", "weight_decay"])
def test_a_step_of_fixed_length_moves_it_as_far_as_a_narrow_layer(name, options):
    wide, plain = pair()
    for layer in (wide, plain):
        layer.bias.requires_grad_(False)  # only the weight is wide
    x = torch.rand(64, INPUTS)

    def make(parameters):
        return getattr(torch.optim, name)(parameters, lr=1e-4, **options)

    if options and (name == "Rprop" or decays_apart(make)):
        return  # decoupled decay is tested below
    ours, theirs = optimizer_of(wide, make), make(plain.parameters())
    for _ in range(3):  # later steps use the moments
        moved, plainly = step(wide, ours, x), step(plain, theirs, x)
        torch.testing.assert_close(moved, plainly / 16, rtol=2e-2, atol=2e-5)
        plain.load_state_dict(wide.state_dict())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SGD", {"lr": 1e-6}),
        ("SGD", {"lr": 1e-6, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
        ("ASGD", {"lr": 1e-6, "weight_decay": 0.1}),
    ],
)
def test_a_step_along_the_gradient_moves_it_as_it_moves_a_plain_layer(name, options):
    """SGD almost froze a head that was stored 16 times larger: it moved 256 times less than a plain layer."""
    wide, plain = pair()
    x = torch.rand(64, INPUTS)

    def make(parameters):
        return getattr(torch.optim, name)(parameters, **options)

    ours, theirs = optimizer_of(wide, make), make(plain.parameters())
    for _ in range(3):
        moved, plainly = step(wide, ours, x), step(plain, theirs, x)
        assert plainly.abs().max() > 1e-4
        torch.testing.assert_close(moved, plainly)


def test_weights_decay_alike_whatever_their_inputs():
    """AdamW's decay is a share of the weight; the shorter steps of wide layers would make that share smaller."""
    wide, _ = pair()
    before = wide.weight.detach().clone()

    def make(parameters):
        return torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.5)

    optimizer = optimizer_of(wide, make)
    wide.weight.grad, wide.bias.grad = torch.zeros_like(wide.weight), torch.zeros_like(wide.bias)
    optimizer.step()
    torch.testing.assert_close(wide.weight.detach(), before * (1 - 1e-2 * 0.5))


@pytest.mark.parametrize("name", [*FIXED, *PROPORTIONAL])
def test_kinds_of_optimizers_are_recognized(name):
    def make(parameters):
        return getattr(torch.optim, name)(parameters, lr=1e-3)

    assert follows_gradient(make) == (name in PROPORTIONAL)
    if "weight_decay" in make([nn.Parameter(torch.zeros(1, 1))]).defaults:
        decaying = lambda parameters: getattr(torch.optim, name)(parameters, weight_decay=0.01)  # noqa: E731
        if name in FIXED:
            assert decays_apart(decaying) == (name in ("AdamW", "Adafactor"))


@pytest.mark.parametrize("schedule", ["OneCycleLR", "CosineAnnealingLR", "ReduceLROnPlateau"])
def test_schedules_see_one_learning_rate(schedule):
    """OneCycleLR sets the learning rate of all groups: factors kept in the rate itself would be lost."""
    wide, _ = pair()
    optimizer = optimizer_of(wide, lambda parameters: torch.optim.Adam(parameters, lr=1e-3))
    options = {
        "OneCycleLR": {"max_lr": 1e-2, "total_steps": 5},
        "CosineAnnealingLR": {"T_max": 5},
        "ReduceLROnPlateau": {"patience": 0},
    }
    scheduler = getattr(torch.optim.lr_scheduler, schedule)(optimizer, **options[schedule])
    x = torch.rand(8, INPUTS)
    for _ in range(4):
        before, rate = wide.weight.detach().clone(), optimizer.param_groups[0]["lr"]
        step(wide, optimizer, x)
        scheduler.step(*[1.0] * (schedule == "ReduceLROnPlateau"))
        assert optimizer.param_groups[0]["lr"] == optimizer.param_groups[1]["lr"]
        assert (wide.weight - before).abs().max() <= 1.01 * rate / 16
    assert optimizer.param_groups[0]["lr"] != rate or schedule == "OneCycleLR"


def test_an_optimizer_resumes_from_its_state():
    wide, _ = pair()
    x = torch.rand(8, INPUTS)

    def make(parameters):
        return torch.optim.AdamW(parameters, lr=1e-3)

    one = optimizer_of(wide, make)
    step(wide, one, x)
    other, saved = copy.deepcopy(wide), copy.deepcopy(one.state_dict())
    assert FACTORS in saved["param_groups"][1]
    again = optimizer_of(other, make)
    again.load_state_dict(saved)
    assert torch.equal(step(wide, one, x), step(other, again, x))


def test_weights_of_earlier_versions_are_read():
    """Version 1 kept a wide weight divided by its factor, and multiplied the product."""
    wide, plain = pair()
    state = wide.state_dict()
    state["weight"] = state["weight"] / wide.step_factor
    state._metadata[""]["version"] = 1
    read = WideLinear(INPUTS, 3)
    read.load_state_dict(state)
    assert torch.equal(read.weight, plain.weight)
    read.load_state_dict(dict(wide.state_dict()))  # without a version: ours
    assert torch.equal(read.weight, plain.weight)


def test_sgd_trains_the_posterior_head():
    """It has 18,432 inputs. A frozen head looks like posterior collapse: on digits a rate of 0.14 nats, not 9.5."""
    datamodule, model = built(
        "model=conv_shallow", "data=digits", "data.image_size=28", "optimizer=sgd", "optimizer.lr=1e-4"
    )
    datamodule.prepare_data()
    optimizer, head = model.recipe.optimizer(model), model.posterior_head.weight
    before = head.detach().clone()
    x = datamodule.scale(datamodule.pool.images[datamodule.splits.train[:64]])
    for _ in range(10):
        optimizer.zero_grad()
        terms = elbo_terms(x, model.infer(x))
        (terms.distortion + terms.rate).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1_000)
        optimizer.step()
    assert (head - before).norm() > 0.01 * before.norm()  # it was 1.3e-4 after 200 steps


def test_a_step_that_raises_does_not_shorten_later_ones():
    """After an out-of-memory error the factors must not be applied twice."""
    wide, _ = pair()
    optimizer = optimizer_of(wide, Raising)
    for _ in range(3):
        with pytest.raises(MemoryError):
            optimizer.step()
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 1e-3 / 16]


class Raising(torch.optim.Adam):
    """Raise at the step of wide layers."""

    def __init__(self, parameters):
        super().__init__(parameters, lr=1e-3)

    @torch.no_grad()
    def step(self, closure=None):
        if any(FACTORS in group for group in self.param_groups):
            raise MemoryError
        super().step(closure)


def test_optimizers_that_cannot_step_on_a_cpu_count_as_adam():
    class OnGPU(torch.optim.AdamW):
        def step(self, closure=None):
            raise RuntimeError("expected a CUDA tensor")

    for make in (OnGPU, lambda parameters: torch.optim.AdamW(parameters, capturable=True)):
        assert not follows_gradient(make)
        wide, _ = pair()
        assert optimizer_of(wide, make).param_groups[1][FACTORS]["lr"] == 1 / 16
    assert decays_apart(lambda parameters: torch.optim.AdamW(parameters, capturable=True, weight_decay=0.01))


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        (
            torch.optim.SGD,
            {"lr": 1e-3, "fused": True, "betas": [0.9, 0.999]},
            "SGD takes no betas: .*'~optimizer.betas'",
        ),
        (torch.optim.LBFGS, {"lr": 1.0}, "LBFGS evaluates the loss several times a step"),
        (nn.Linear, {"lr": 1.0}, "Linear is no optimizer"),
        (torch.optim.Adam, {"lr": -1.0}, "the optimizer cannot be made: Invalid learning rate: -1.0"),
    ],
)
def test_an_unusable_optimizer_says_what_to_change(kind, settings, words):
    _, model = built("model=conv_tiny", "data=digits")
    recipe = Recipe(functools.partial(kind, **settings))
    with pytest.raises(UserError, match=words):
        recipe.optimizer(model)
