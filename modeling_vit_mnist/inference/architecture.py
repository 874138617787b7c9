"""The network in text: a table of every parameter, and the shape after every stage."""

import torch
from torch import nn

from ..modeling_vit_mnist import VitMnistForImageClassification

# The sizes of each parameter, by the end of its name.
SIZES = {
    "cls_token": "1 x 1 x hidden_size",
    "pos_embed": "1 x (1 + num_patches) x hidden_size",
    "patch_embed.proj.weight": "hidden_size x num_channels x patch_size x patch_size",
    "attn.qkv.weight": "(q, k, v) 3 * hidden_size x hidden_size",
    "attn.qkv.bias": "(q, k, v) 3 * hidden_size",
    "attn.proj.weight": "hidden_size x hidden_size",
    "mlp.fc1.weight": "intermediate_size x hidden_size",
    "mlp.fc1.bias": "intermediate_size",
    "mlp.fc2.weight": "hidden_size x intermediate_size",
    "head.weight": "num_labels x hidden_size",
    "head.bias": "num_labels",
    "": "hidden_size",
}


def parameter_table(model: VitMnistForImageClassification) -> str:
    """A line per parameter, with name, shape, count and meaning of its sizes, and the total."""
    rows = [("parameter", "shape", "count", "where the count comes from")]
    for name, parameter in model.named_parameters():
        meaning = next(meaning for end, meaning in SIZES.items() if name.endswith(end))
        rows.append((name, " x ".join(map(str, parameter.shape)), f"{parameter.numel():,}", meaning))
    rows.append(("total", "", f"{model.num_parameters():,}", ""))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"{n:<{widths[0]}}  {s:<{widths[1]}}  {c:>{widths[2]}}  {m}".rstrip() for n, s, c, m in rows]
    rule = "-" * max(map(len, lines))
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


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
