"""The network that a run starts from."""

import logging
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from ..checkpoints.folder import load_checkpoint
from ..cli.errors import UsageError
from ..configuration_vit_mnist import VitMnistConfig
from ..data.images import ImageDataset
from ..data.streaming import ImageStream
from ..modeling_vit_mnist import VitMnistForImageClassification
from .arguments import ModelArguments

logger = logging.getLogger(__name__)

WHITENING_IMAGES = 10_000


def build_model(args: ModelArguments, names: list[str]) -> VitMnistForImageClassification:
    """A new network for the classes `names`, or a checkpoint with a head for these classes. Raises [`UsageError`] for
    an impossible network, fewer than two classes, or a folder that holds no such checkpoint."""
    if len(names) < 2:
        raise UsageError(f"A classifier needs two classes or more, the dataset has {len(names)}: {', '.join(names)}.")
    options: dict[str, Any] = {"attn_implementation": args.attn_implementation}
    if args.model_name_or_path:
        options["dtype"] = torch.float32  # whatever the checkpoint has: updates are too small for half precision
        model, _ = load_checkpoint(args.model_name_or_path, **options)
        for name, value in args.config_fields().items():
            if value != getattr(model.config, name):
                raise UsageError(
                    f"--{name} {value} does not match the checkpoint {args.model_name_or_path}, which has "
                    f"{getattr(model.config, name)}."
                )
        _set_classes(model, names)
        return model
    options["id2label"] = dict(enumerate(names))
    try:
        return VitMnistForImageClassification(VitMnistConfig(**args.config_fields(), **options))
    except (ValueError, StrictDataclassError) as error:
        raise UsageError(str(error).rpartition("ValueError: ")[2]) from error  # without what wraps the sentence


@torch.no_grad()
def _set_classes(model: VitMnistForImageClassification, names: list[str]) -> None:
    """Give a model the classes `names`, in this order. The head keeps the weights of classes with the same name."""
    known = {str(name): int(index) for index, name in model.config.id2label.items()}
    if list(known) == names:
        return
    new = [name for name in names if name not in known]
    if new:
        logger.warning(
            "New weights in the head for the classes %s, which the checkpoint does not know (it knows %s).",
            ", ".join(new), ", ".join(known),
        )  # fmt: skip
    old, model.head = model.head, torch.nn.Linear(model.config.hidden_size, len(names))
    model._init_weights(model.head)
    for index, name in enumerate(names):
        if name in known:
            model.head.weight[index] = old.weight[known[name]]
            model.head.bias[index] = old.bias[known[name]]
    model.num_labels = len(names)
    model.config.id2label = dict(enumerate(names))


@torch.no_grad()
def whiten_patch_embed(model: VitMnistForImageClassification, dataset: ImageDataset | ImageStream) -> None:
    """Initialize `vit.patch_embed.proj` with a random rotation of the whitened leading principal components of the
    patches in the first images. Its outputs are then uncorrelated, centered and of unit variance. Neighboring pixels
    are almost equal, which makes any random projection badly conditioned. Whitening of patches after Coates and Ng
    (2012), as the initialization of a first layer after airbench (Jordan, 2024, https://arxiv.org/abs/2404.00498).

    Raises [`UsageError`] if the hidden size is larger than the number of pixels in a patch."""
    proj = model.vit.patch_embed.proj
    width, length = proj.weight.shape[0], proj.weight[0].numel()
    if width > length:
        raise UsageError(
            f"--whiten_patches needs a hidden size of at most {length}, the pixels of a patch, got {width}."
        )
    pixel_values = dataset.processor.rescale_and_normalize(dataset.take(WHITENING_IMAGES).images)
    patches = torch.nn.functional.unfold(pixel_values, proj.kernel_size, stride=proj.stride)  # (n, length, patches)
    patches = patches.transpose(1, 2).reshape(-1, length).double()
    variances, components = torch.linalg.eigh(patches.T.cov())  # ascending
    variances, components = variances[-width:], components[:, -width:]
    whitening = (components / (variances + 1e-3).sqrt()).T  # (width, length)
    rotation = torch.linalg.qr(torch.randn(width, width, dtype=torch.double)).Q
    weight = rotation @ whitening
    proj.weight.copy_(weight.view_as(proj.weight))
    proj.bias.copy_(-(weight @ patches.mean(0)))
