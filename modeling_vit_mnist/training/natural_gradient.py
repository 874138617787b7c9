"""Natural gradient descent with the full Fisher matrix, which is affordable for 1,850 parameters.

The negative gradient is the direction of steepest descent per unit of change in the weights. The negative natural
gradient is that direction per unit of change in the predictions (Amari, 1998, "Natural Gradient Works Efficiently in
Learning"). Adam scales each weight separately. The Fisher matrix also removes their correlations."""

import math
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

MAX_FISHER_PARAMETERS = 10_000  # their Fisher matrix has 400 MB


class NaturalGradient(torch.optim.Optimizer):
    """Steps along the damped inverse of the Fisher matrix times the gradient, averaged over steps.

    `update_fisher` updates the moving average of the matrix; its inverse is used until the next update. The first
    `adam_steps` steps are Adam's, since predictions change too quickly for the matrix then. Damping and the bound on a
    step follow Martens (2020), "New Insights and Perspectives on the Natural Gradient Method".

    Args:
        params: The parameters, in one group, with at most 10,000 numbers.
        lr (`float`): Learning rate.
        momentum (`float`): Decay of the moving average of steps, in [0, 1).
        damping (`float`): Added to the diagonal of the matrix. Larger is closer to gradient descent.
        fisher_decay (`float`): Decay of the moving average of the matrix, in [0, 1).
        max_step_norm (`float`): Maximum Euclidean norm of a step.
        adam_steps (`int`): Steps before the first `update_fisher` is needed.
        betas, eps: Of Adam, for these steps, as in `torch.optim.Adam`.

    Raises:
        ValueError: a value out of range, several groups, or too many parameters.
        FloatingPointError: in `step`, a matrix that is not finite and positive definite: the weights have diverged.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float = 0.05, momentum: float = 0.9, damping: float = 0.01,
        fisher_decay: float = 0.5, max_step_norm: float = 0.5, adam_steps: int = 0,
        betas: tuple[float, float] = (0.9, 0.99), eps: float = 1e-8,
    ):  # fmt: skip
        shares = {"momentum": momentum, "fisher_decay": fisher_decay, "betas[0]": betas[0], "betas[1]": betas[1]}
        for name, value in shares.items():
            if not 0 <= value < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {value:g}.")
        for name, value in (("lr", lr), ("damping", damping), ("max_step_norm", max_step_norm)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {value:g}.")
        defaults = {
            "lr": lr, "momentum": momentum, "damping": damping, "fisher_decay": fisher_decay,
            "max_step_norm": max_step_norm, "adam_steps": adam_steps, "betas": betas, "eps": eps,
        }  # fmt: skip
        super().__init__(params, defaults)
        self.params = self.param_groups[0]["params"]
        self.sizes = [param.numel() for param in self.params]
        if len(self.param_groups) > 1:
            raise ValueError("NaturalGradient takes one group of parameters: its matrix couples them all.")
        if sum(self.sizes) > MAX_FISHER_PARAMETERS:
            raise ValueError(
                f"NaturalGradient takes up to {MAX_FISHER_PARAMETERS:,} parameters, got {sum(self.sizes):,}."
            )
        self.inverse: torch.Tensor | None = None

    @torch.no_grad()
    def update_fisher(self, gradients: torch.Tensor) -> None:
        """Update the matrix with per-sample gradients. With several processes, each must call it with its share.

        Args:
            gradients (`torch.Tensor` of shape `(n, parameters)`): Of the negative log-likelihood of labels drawn from
                the model's own predictions. With the labels of the data it would not be the Fisher matrix (Kunstner
                et al., 2019, https://arxiv.org/abs/1905.12558).
        """
        fisher = gradients.T @ gradients  # (parameters, parameters)
        count = fisher.new_tensor(len(gradients))
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(fisher)
            dist.all_reduce(count)
        fisher /= count
        state, group = self.state[self.params[0]], self.param_groups[0]
        state["fisher"] = torch.lerp(fisher, state["fisher"], group["fisher_decay"]) if "fisher" in state else fisher
        self.inverse = None

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else torch.enable_grad()(closure)()
        state, group = self.state[self.params[0]], self.param_groups[0]
        gradient = torch.cat([param.grad.flatten() for param in self.params])  # (parameters,)
        state["step"] = state.get("step", 0) + 1
        if state["step"] <= group["adam_steps"]:
            update = self._adam(gradient, state, group)
        else:
            update = self._natural(gradient, state, group)
        pieces = [piece.view_as(param) for piece, param in zip(update.split(self.sizes), self.params, strict=True)]
        torch._foreach_add_(self.params, pieces, alpha=-group["lr"])
        return loss

    def _adam(self, gradient: torch.Tensor, state: dict, group: dict) -> torch.Tensor:
        betas = group["betas"]
        mean = state.setdefault("exp_avg", torch.zeros_like(gradient)).lerp_(gradient, 1 - betas[0])
        square = state.setdefault("exp_avg_sq", torch.zeros_like(gradient)).lerp_(gradient**2, 1 - betas[1])
        mean, square = mean / (1 - betas[0] ** state["step"]), square / (1 - betas[1] ** state["step"])
        return mean / (square.sqrt() + group["eps"])

    def _natural(self, gradient: torch.Tensor, state: dict, group: dict) -> torch.Tensor:
        if "fisher" not in state:
            raise RuntimeError("NaturalGradient needs update_fisher() once its adam_steps are over.")
        if self.inverse is None:  # after an update or load_state_dict
            damped = state["fisher"].clone()
            damped.diagonal().add_(group["damping"])
            try:
                self.inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
            except torch.linalg.LinAlgError as error:
                raise FloatingPointError("the Fisher matrix is not finite and positive definite") from error
        average = state.setdefault("exp_avg_natural", torch.zeros_like(gradient))
        average.lerp_(self.inverse @ gradient, 1 - group["momentum"])
        return average * (group["max_step_norm"] / (group["lr"] * average.norm())).clamp(max=1)

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        self.params = self.param_groups[0]["params"]
        self.inverse = None


def per_sample_gradients(
    model: nn.Module, pixel_values: torch.Tensor, generator: torch.Generator, chunk_size: int = 1024,
    first: int = 0, total: int | None = None,
) -> torch.Tensor:  # fmt: skip
    """Per-sample gradients for [`NaturalGradient.update_fisher`], with labels drawn from the model's predictions.

    Args:
        model: Returns `logits` of shape `(n, classes)`.
        pixel_values (`torch.Tensor` of shape `(n, channels, height, width)`): Training images.
        generator: Draws the labels, on the device of the model.
        chunk_size: Images per pass, which limits memory.
        first, total: Of several processes, each passes its share of `total` images, which begins at image `first`. It
            draws the labels that one process would.

    Returns a `torch.Tensor` of shape `(n, parameters)`, in the order of `model.parameters()`. Raises
    `FloatingPointError` if a prediction is not finite.
    """
    parameters = {name: param.detach() for name, param in model.named_parameters()}

    def loss(parameters, image, label):
        logits = functional_call(model, parameters, (image.unsqueeze(0),)).logits
        return F.cross_entropy(logits.float(), label.unsqueeze(0))

    per_sample = vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")
    rows = [next(model.parameters()).new_empty(0, sum(weight.numel() for weight in parameters.values()))]
    noise = None
    for start in range(0, len(pixel_values), chunk_size):
        images = pixel_values[start : start + chunk_size]
        with torch.no_grad():
            probabilities = model(images).logits.float().softmax(-1)
        if not probabilities.isfinite().all():
            raise FloatingPointError("the model's predictions are not finite")
        if noise is None:  # that of `torch.multinomial`, which could not begin with image `first`
            sizes = [len(chunk) for chunk in torch.arange(total or len(pixel_values)).split(chunk_size)]
            shapes = [(size, probabilities.shape[1]) for size in sizes]
            noise = torch.cat([probabilities.new_empty(shape).exponential_(generator=generator) for shape in shapes])
        labels = (probabilities / noise[first + start :][: len(images)]).argmax(1)
        rows.append(torch.cat([g.flatten(1) for g in per_sample(parameters, images, labels).values()], dim=1))
    return torch.cat(rows)
