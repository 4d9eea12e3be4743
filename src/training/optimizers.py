"""Make the optimizer of a model, with shorter steps for layers with many inputs if steps have a fixed length."""

import contextlib
import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from src.networks.blocks import WideLinear
from src.system.errors import UserError

FACTORS = "factors"  # key of a parameter group: factors of its settings during a step
STEPS = 10  # until the moments of an optimizer have settled


def optimizer_of(model: nn.Module, make: Callable[..., Optimizer]) -> Optimizer:
    """Return an optimizer of all parameters that moves the output of a wide layer as far as that of a narrow one.

    Adam moves every weight by about the learning rate, whatever the gradient. The weight of a :class:`WideLinear`
    therefore gets a parameter group whose learning rate is multiplied by ``step_factor``; its decay stays the same.
    Optimizers whose steps are proportional to the gradient, such as SGD, need no factor. The groups differ only during
    a step, so schedules and loggers see one learning rate.

    Args:
        model: the model.
        make: called with the parameters, or with groups of them.

    Raises:
        UserError: the optimizer cannot train on batches, or lacks a setting that it is given.
    """
    _refuse_settings(make)
    wide = {m.weight: m.step_factor for m in model.modules() if isinstance(m, WideLinear) and m.step_factor < 1}
    if not wide or follows_gradient(make):
        return make(model.parameters())
    groups: list[dict[str, Any]] = [{"params": [p for p in model.parameters() if p not in wide]}]
    decoupled = decays_apart(make)
    for factor in sorted(set(wide.values())):
        factors = {"lr": factor, **({"weight_decay": 1 / factor} if decoupled else {})}
        groups.append({"params": [p for p, own in wide.items() if own == factor], FACTORS: factors})
    optimizer = make(groups)
    optimizer.register_step_pre_hook(_apply_factors)
    optimizer.register_step_post_hook(_remove_factors)
    return optimizer


def _refuse_settings(make: Callable[..., Optimizer]) -> None:
    kind, given = (make.func, make.keywords) if isinstance(make, functools.partial) else (make, {})
    name = getattr(kind, "__qualname__", kind)
    if isinstance(kind, type) and not issubclass(kind, Optimizer):
        raise UserError(f"optimizer._target_: {name} is no optimizer")
    parameters = inspect.signature(kind).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()) and (unknown := given.keys() - parameters.keys()):
        raise UserError(
            f"{name} takes no {', '.join(sorted(unknown))}: leave out what it does not have, with "
            + " ".join(f"'~optimizer.{key}'" for key in sorted(unknown))
        )
    step = inspect.signature(kind.step).parameters if isinstance(kind, type) else {}
    if [p for key, p in step.items() if key != "self" and p.default is p.empty]:
        raise UserError(
            f"{name} evaluates the loss several times a step, which differs from batch to batch: choose an optimizer "
            "that takes its step from one gradient"
        )


def follows_gradient(make: Callable[..., Optimizer]) -> bool:
    """Return whether steps grow with the gradient, as SGD's do; Adam's have about the same length for any gradient.

    It is measured on a single weight. Optimizers that cannot step on a CPU, such as quantized ones, count as Adam.
    """
    return _step_length(make, weight=0.0, gradient=8.0) > 2 * _step_length(make, weight=0.0, gradient=1.0)


def decays_apart(make: Callable[..., Optimizer]) -> bool:
    """Return whether the decay is proportional to the weight, as AdamW's is; Adam adds the decay to the gradient."""
    return _step_length(make, weight=200.0, gradient=0.0) > 1.5 * _step_length(make, weight=100.0, gradient=0.0)


def _step_length(make: Callable[..., Optimizer], weight: float, gradient: float) -> float:
    """Return how far the last of ``STEPS`` steps moves a weight on the CPU; 0 if the optimizer cannot step there.

    The first steps do not count: RAdam's follow another rule.
    """
    parameter = nn.Parameter(torch.full((1, 1), weight, dtype=torch.float64))
    optimizer = make([{"params": [parameter], "lr": 1e-3, "capturable": False}])  # a CPU has no CUDA graphs
    before = weight
    with contextlib.suppress(Exception):  # a third-party optimizer may raise anything; training raises it again
        for _ in range(STEPS):
            before = parameter.item()
            parameter.grad = torch.full_like(parameter, gradient)
            optimizer.step()
    return abs(before - parameter.item())


def _apply_factors(optimizer: Optimizer, *_: Any) -> None:
    ordinary = optimizer.param_groups[0]  # after a step that raised, a group's own settings still have its factors
    for group in optimizer.param_groups[1:]:
        group |= {key: ordinary[key] * factor for key, factor in group.get(FACTORS, {}).items()}


def _remove_factors(optimizer: Optimizer, *_: Any) -> None:
    ordinary = optimizer.param_groups[0]
    for group in optimizer.param_groups[1:]:
        group |= {key: ordinary[key] for key in group.get(FACTORS, {})}


def lay_out_state(optimizer: Optimizer) -> None:
    """Give the state of each weight the memory layout of the weight: fused kernels read both in memory order.

    The layout depends on precision and device (:func:`~src.training.acceleration.lay_out`), so a checkpoint's may
    differ.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)
