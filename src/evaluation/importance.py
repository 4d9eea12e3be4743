"""A bound on log p(x) by importance sampling, in chunks, so that any number of samples fits into memory."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from src.models.base import BaseVAE
from src.models.objectives import iwae_bound, log_weights


class ImportanceEstimate(NamedTuple):
    """Estimates for each of B images from K posterior samples."""

    log_likelihood: Tensor  # [B] the bound on log p(x), nats, float64
    elbo: Tensor  # [B] the ELBO from the same samples: the mean of the log weights
    effective_samples: Tensor  # [B] (sum w)^2 / sum w^2 of the weights, 1 to K: near 1 the bound is still loose


@torch.no_grad()
def importance_bound(model: BaseVAE, x: Tensor, num_samples: int, at_once: int) -> ImportanceEstimate:
    """Compute ``log 1/K sum_k p(x|z_k) p(z_k) / q(z_k|x)`` of images, in nats, ``at_once`` samples at a time.

    Its expectation is a lower bound on log p(x) that tightens as K grows (Burda et al. 2016, arXiv 1509.00519). Sums
    are in float64.

    Args:
        model: in eval mode.
        x: images ``[B, C, H, W]`` on the model's device.
        num_samples: K.
        at_once: samples of each image that are in memory together.
    """
    total = torch.full((len(x),), -math.inf, dtype=torch.float64, device=x.device)
    squares, logs = total.clone(), torch.zeros_like(total)
    draw = model.sampler(x)
    for start in range(0, num_samples, at_once):
        weights = log_weights(x, model.with_likelihood(draw(min(at_once, num_samples - start))))
        total = torch.logaddexp(total, iwae_bound(weights) + math.log(len(weights)))
        squares = torch.logaddexp(squares, torch.logsumexp(2 * weights, 0))
        logs += weights.sum(0)
    bound, effective = total - math.log(num_samples), torch.exp(2 * total - squares)
    return ImportanceEstimate(bound.cpu(), (logs / num_samples).cpu(), effective.cpu())
