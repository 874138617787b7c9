"""The network in text: a table of every parameter, and the shape after every stage."""

import torch
from torch import nn

from ..configuration_vit_mnist import VitMnistConfig
from ..modeling_vit_mnist import VitMnistForImageClassification

# Where the count of each parameter comes from, by the end of its name. d: hidden_size.
SIZES = {
    "cls_token": "d",
    "pos_embed": "(1 + num_patches) * d",
    "patch_embed.proj.weight": "d * num_channels * patch_size^2",
    "attn.qkv.weight": "(q, k, v) 3 * d * d",
    "attn.qkv.bias": "(q, k, v) 3 * d",
    "attn.proj.weight": "d * d",
    "mlp.fc1.weight": "intermediate_size * d",
    "mlp.fc1.bias": "intermediate_size",
    "mlp.fc2.weight": "d * intermediate_size",
    "head.weight": "num_labels * d",
    "head.bias": "num_labels",
    "": "d",
}


def parameter_table(model: VitMnistForImageClassification) -> str:
    """A line of up to 80 characters per parameter, with name, shape, count and where the count comes from, and the
    total. All names but those of the head begin with "vit.", which is left out."""
    rows = [("parameter", "shape", "count", f"= (d = hidden_size = {model.config.hidden_size})")]
    for name, parameter in model.named_parameters():
        meaning = next(meaning for end, meaning in SIZES.items() if name.endswith(end))
        shape = "x".join(map(str, parameter.shape))
        rows.append((name.removeprefix("vit."), shape, f"{parameter.numel():,}", meaning))
    rows.append(("total", "", f"{model.num_parameters():,}", ""))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"{n:<{widths[0]}}  {s:<{widths[1]}}  {c:>{widths[2]}}  {m}".rstrip() for n, s, c, m in rows]
    rule = "-" * max(map(len, lines))
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def parameter_budget(config: VitMnistConfig) -> dict[str, dict[str, int]]:
    """The number of parameters of each part of a network and of its parts, in the order of the forward pass."""
    with torch.device("meta"):  # counts without memory
        model = VitMnistForImageClassification(config)
    parts = {"patch_embed": "patch embedding", "cls_token": "CLS token", "pos_embed": "positions"}
    kinds = {"norm1": "LayerNorms", "norm2": "LayerNorms", "attn": "attention", "mlp": "MLP"}
    budget: dict[str, dict[str, int]] = {part: {} for part in parts.values()}
    for name, parameter in model.named_parameters():
        first, *rest = name.removeprefix("vit.").split(".")
        part, kind = parts.get(first, {"norm": "LayerNorm", "head": "head"}.get(first, "")), ""
        if first == "blocks":
            part, kind = f"block {int(rest[0]) + 1}", kinds[rest[1]]
        counts = budget.setdefault(part, {})
        counts[kind] = counts.get(kind, 0) + parameter.numel()
    return budget


@torch.no_grad()
def stage_shapes(model: VitMnistForImageClassification, pixel_values: torch.Tensor) -> list[tuple[str, tuple]]:
    """The name and the output shape of every stage of a forward pass, in order."""
    stages = [("pixel_values", tuple(pixel_values.shape))]
    meanings = {"patch_embed": " (patches, projected)", "pos_drop": " (with CLS token and positions)"}
    shown = {*meanings, "norm1", "qkv", "attn", "norm2", "fc1", "mlp", "norm", "head"}

    def hook(name: str):
        def record(module: nn.Module, inputs, output):
            tensor = output[0] if isinstance(output, tuple) else output
            label = name.removeprefix("vit.")
            stages.append((label + meanings.get(label, ""), tuple(tensor.shape)))

        return record

    ends = ((name, name.rpartition(".")[2], module) for name, module in model.named_modules())
    chosen = [(name, module) for name, end, module in ends if end in shown or end.isdigit()]
    handles = [module.register_forward_hook(hook(name)) for name, module in chosen]
    try:
        model(pixel_values)
    finally:
        for handle in handles:
            handle.remove()
    return stages
