"""How many examples may pass through a network at once."""

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

BYTES_AT_ONCE = 2**26  # of what goes into the largest layer and comes out of it

_known: WeakKeyDictionary[nn.Module, dict[torch.Size, int]] = WeakKeyDictionary()


def fitting(network: nn.Module, example: Tensor) -> int:
    """How many examples pass at once, at least one: those whose largest layer takes at most 64 MiB.

    Measured once for a network and a shape of example.
    """
    known = _known.setdefault(network, {})
    if example.shape not in known:
        known[example.shape] = largest_layer(network, example)
    return max(1, BYTES_AT_ONCE // known[example.shape])


@torch.no_grad()
def largest_layer(network: nn.Module, example: Tensor) -> int:
    """Bytes that an example takes for a moment: what goes into the largest layer and comes out of it.

    Layers keep nothing without gradients.

    Args:
        network: in eval mode.
        example: a batch of one, which passes through it.
    """
    sizes = [1]

    def measure(layer: nn.Module, given: tuple[Any, ...], named: dict[str, Any], made: Any) -> None:
        tensors = (leaf for leaf in tree_leaves((given, named, made)) if isinstance(leaf, Tensor))
        sizes.append(sum(tensor.nbytes for tensor in tensors))  # of recurrent layers, states too

    layers = [layer for layer in network.modules() if next(layer.children(), None) is None]
    handles = [layer.register_forward_hook(measure, with_kwargs=True) for layer in layers]
    try:
        network(example)
    finally:
        for handle in handles:
            handle.remove()
    return max(sizes)
