"""The optimizer of a model: weights of layers with many inputs take shorter steps where steps have a fixed length."""

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

FACTORS = "factors"  # of a parameter group: what its settings are multiplied by during a step
STEPS = 10  # until what an optimizer remembers has settled


def optimizer_of(model: nn.Module, make: Callable[..., Optimizer]) -> Optimizer:
    """An optimizer of all parameters of a model, which moves the output of a wide layer as far as a narrow one's.

    A step of Adam and its like moves every weight by about the learning rate, whatever the gradient: the weight of a
    :class:`WideLinear` gets a parameter group whose learning rate is multiplied by ``step_factor``; it decays as others
    do. Steps that are proportional to the gradient, such as SGD's, are left alone.
    Groups differ during a step only, so schedules and what shows the learning rate see one.

    Args:
        model: that.
        make: called with the parameters, or with groups of them.

    Raises:
        UserError: it makes no optimizer that can train on batches, or is given settings that it does not have.
    """
    _refuse_settings(make)
    wide = {m.weight: m.step_factor for m in model.modules() if isinstance(m, WideLinear) and m.step_factor < 1}
    if not wide or follows_gradient(make):
        return make(model.parameters())
    groups: list[dict[str, Any]] = [{"params": [p for p in model.parameters() if p not in wide]}]
    decoupled = decays_apart(make)
    for factor in sorted(set(wide.values())):
        factors = {"lr": factor, **({"weight_decay": 1 / factor} if decoupled else {})}
        groups.append({"params": [p for p, of in wide.items() if of == factor], FACTORS: factors})
    optimizer = make(groups)
    optimizer.register_step_pre_hook(_multiply)
    optimizer.register_step_post_hook(_put_back)
    return optimizer


def _refuse_settings(make: Callable[..., Optimizer]) -> None:
    kind, given = (make.func, make.keywords) if isinstance(make, functools.partial) else (make, {})
    name = getattr(kind, "__qualname__", kind)
    if isinstance(kind, type) and not issubclass(kind, Optimizer):
        raise UserError(f"optimizer._target_: {name} is no optimizer")
    parameters = inspect.signature(kind).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()) and (lost := given.keys() - parameters.keys()):
        raise UserError(
            f"{name} takes no {', '.join(sorted(lost))}: leave out what it does not have, with "
            + " ".join(f"'~optimizer.{key}'" for key in sorted(lost))
        )
    step = inspect.signature(kind.step).parameters if isinstance(kind, type) else {}
    if [p for key, p in step.items() if key != "self" and p.default is p.empty]:
        raise UserError(
            f"{name} evaluates the loss several times a step, which differs from batch to batch: choose an optimizer "
            "that takes its step from one gradient"
        )


def follows_gradient(make: Callable[..., Optimizer]) -> bool:
    """Whether steps grow with the gradient, as SGD's do; those of Adam have about the same length for any gradient.

    Found out by steps of a single weight. Those that take none on a CPU, such as quantized ones, are taken for kinds of
    Adam.
    """
    return _moved(make, weight=0.0, gradient=8.0) > 2 * _moved(make, weight=0.0, gradient=1.0)


def decays_apart(make: Callable[..., Optimizer]) -> bool:
    """Whether weights decay in proportion to themselves, as AdamW's do; Adam adds the decay to the gradient."""
    return _moved(make, weight=200.0, gradient=0.0) > 1.5 * _moved(make, weight=100.0, gradient=0.0)


def _moved(make: Callable[..., Optimizer], weight: float, gradient: float) -> float:
    """How far a step moves a weight: the last of some, as RAdam's first ones are of another kind.

    On the CPU, so not as part of a CUDA graph. 0 where no step can be taken there.
    """
    parameter = nn.Parameter(torch.full((1, 1), weight, dtype=torch.float64))
    optimizer = make([{"params": [parameter], "lr": 1e-3, "capturable": False}])
    before = weight
    with contextlib.suppress(Exception):  # whatever an optimizer of others raises; the training will, if it must
        for _ in range(STEPS):
            before = parameter.item()
            parameter.grad = torch.full_like(parameter, gradient)
            optimizer.step()
    return abs(before - parameter.item())


def _multiply(optimizer: Optimizer, *_: Any) -> None:
    ordinary = optimizer.param_groups[0]  # not the group's own: a step that an exception has left has put none back
    for group in optimizer.param_groups[1:]:
        group |= {key: ordinary[key] * factor for key, factor in group.get(FACTORS, {}).items()}


def _put_back(optimizer: Optimizer, *_: Any) -> None:
    ordinary = optimizer.param_groups[0]
    for group in optimizer.param_groups[1:]:
        group |= {key: ordinary[key] for key in group.get(FACTORS, {})}


def lay_out_state(optimizer: Optimizer) -> None:
    """Lay the state of each weight out as the weight is: fused kernels walk both as they lie in memory.

    The layout depends on precision and device (:func:`~src.training.acceleration.lay_out`): that in a checkpoint may
    be another.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)
