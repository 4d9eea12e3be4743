"""What an example costs while it passes through a network: memory, floating-point operations, bytes moved."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

BYTES_AT_ONCE = 2**26  # into and out of the largest layer

_known: WeakKeyDictionary[nn.Module, dict[torch.Size, int]] = WeakKeyDictionary()


class Work(NamedTuple):
    """What a computation costs on any machine."""

    operations: int  # floating-point operations of convolutions and matrix products, a multiply-add counts as two
    moved: int  # bytes into and out of all layers


def fitting(network: nn.Module, example: Tensor) -> int:
    """Return how many examples may pass at once, at least one: the largest layer then takes at most 64 MiB.

    The layers are measured once for each network and shape of example.
    """
    known = _known.setdefault(network, {})
    if example.shape not in known:
        known[example.shape] = largest_layer(network, example)
    return max(1, BYTES_AT_ONCE // known[example.shape])


def largest_layer(network: nn.Module, example: Tensor) -> int:
    """Return the bytes that go into and come out of the largest layer: the peak memory of a pass without gradients.

    Args:
        network: in eval mode.
        example: a batch of one, which passes through it.
    """
    return max(layer_bytes(network, lambda: network(example)), default=1)


@torch.no_grad()
def layer_bytes(network: nn.Module, run: Callable[[], Any]) -> list[int]:
    """Return the bytes that go into and come out of each leaf layer of ``network`` that ``run`` calls, in its order."""
    sizes = []

    def measure(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        tensors = (leaf for leaf in tree_leaves((args, kwargs, output)) if isinstance(leaf, Tensor))
        sizes.append(sum(tensor.nbytes for tensor in tensors))  # the states of recurrent layers included

    layers = [layer for layer in network.modules() if next(layer.children(), None) is None]
    handles = [layer.register_forward_hook(measure, with_kwargs=True) for layer in layers]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return sizes


def work_of(network: nn.Module, run: Callable[[], Any]) -> Work:
    """Count what ``run`` computes, a number that depends on shapes alone.

    cuDNN and oneDNN are off meanwhile, as torch's counter sees nothing of their fused LSTMs and counts 0
    (as https://github.com/meta-pytorch/tnt/issues/624).

    Args:
        network: in eval mode; the layers whose inputs and outputs are counted.
        run: calls ``network`` or parts of it.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*TF32 acceleration on top of oneDNN.*")
        with torch.backends.cudnn.flags(enabled=False), torch.backends.mkldnn.flags(enabled=False):
            with FlopCounterMode(display=False) as counter:
                moved = sum(layer_bytes(network, run))
            return Work(counter.get_total_flops(), moved)
