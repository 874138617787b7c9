"""What the figures show of a network and its run, as numbers."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F
from transformers import get_scheduler

from ..modeling_vit_mnist import VitMnistForImageClassification

MAX_STEPS = 10_000_000  # whose learning rates are computed


def attention_rollout(attentions: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """How much of each input token reaches each output token (Abnar and Zuidema, 2020,
    https://arxiv.org/abs/2005.00928). Heads are averaged. Half of each layer is its residual connection, so that of n
    layers a token keeps at least 1 / 2^n of itself. The MLPs are left out.

    Args:
        attentions (tuple of `torch.Tensor` of shape `(n, heads, tokens, tokens)`): Of each layer. Rows sum to 1.

    Returns a `torch.Tensor` of shape `(n, tokens, tokens)`, whose rows sum to 1.
    """
    identity = torch.eye(attentions[0].shape[-1])
    flow = identity.expand(len(attentions[0]), -1, -1)
    for attention in attentions:
        flow = (0.5 * attention.mean(1) + 0.5 * identity) @ flow
    return flow


def position_similarity(model: VitMnistForImageClassification) -> torch.Tensor:
    """The cosines of the angles between position embeddings, of shape `(1 + patches, 1 + patches)`, CLS first."""
    directions = F.normalize(model.vit.pos_embed[0].detach().float().cpu(), dim=-1)
    return directions @ directions.T


@dataclass
class Calibration:
    """Images by the probability of their predicted class, in bins of equal width that are open below and closed above:
    `counts`, and mean `confidence` and `accuracy`, NaN where there are none, of shape `(bins,)`; and the expected
    calibration error, the mean gap between the two weighted by the counts (Guo et al., 2017,
    https://arxiv.org/abs/1706.04599)."""

    counts: torch.Tensor
    confidence: torch.Tensor
    accuracy: torch.Tensor
    error: float


def calibration(probabilities: torch.Tensor, labels: torch.Tensor, bins: int = 15) -> Calibration:
    """The calibration of `probabilities` of shape `(n, classes)` for `labels` of shape `(n,)`, as the metric of
    training bins them."""
    confidence, predictions = probabilities.double().max(1)
    correct = (predictions == labels).double()
    which = (confidence * bins).ceil().long().sub(1).clamp(0, bins - 1)
    counts = which.bincount(minlength=bins)
    sums = [which.bincount(weights, minlength=bins) for weights in (confidence, correct)]
    error = (sums[0] - sums[1]).abs().sum() / len(labels)
    return Calibration(counts, sums[0] / counts, sums[1] / counts, error.item())


def learning_rates(training: dict[str, Any], steps: int) -> list[float] | None:
    """The learning rate of each step of a run, from `training` of its `run.json`; `None` if its schedule depends on
    more than the step, or the record is another program's."""
    options = training.get("lr_scheduler_kwargs") or {}
    try:
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=training["learning_rate"])
        warmup = count_warmup(training, steps)
        scheduler = get_scheduler(training["lr_scheduler_type"], optimizer, warmup, steps, options)
        return [training["learning_rate"] * scheduler.lr_lambdas[0](step) for step in range(min(steps, MAX_STEPS))]
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
        return None


def count_warmup(training: dict[str, Any], steps: int) -> int:
    """The steps of the warmup of a run, as `TrainingArguments.get_warmup_steps` counts them."""
    warmup = training["warmup_steps"]
    return int(warmup) if warmup >= 1 else math.ceil(steps * warmup)
