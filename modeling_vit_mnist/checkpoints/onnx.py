"""A checkpoint as ONNX files, laid out for transformers.js."""

import copy
import json
from pathlib import Path

import torch
from torch import nn

from ..cli.errors import UsageError
from ..image_processing_vit_mnist import VitMnistImageProcessor
from ..modeling_vit_mnist import VitMnistForImageClassification
from .convert import CHANNEL_WEIGHTS, hf_vit_config, hf_vit_processor
from .folder import check_problem, quiet
from .settings import describe_losses, normalization, refuse


class EndToEndModel(nn.Module):
    """From grayscale uint8 images to probabilities, including the processor's arithmetic."""

    def __init__(self, model: VitMnistForImageClassification, processor: VitMnistImageProcessor):
        super().__init__()
        self.model = model
        self.mean, self.std = normalization(processor)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pixel_values = (images.unsqueeze(1).float() / 255 - self.mean) / self.std
        return self.model(pixel_values, return_dict=True).logits.softmax(-1)


class LogitsModel(nn.Module):
    """From one or three channels to a tensor of logits. ONNX has no output classes."""

    weights: torch.Tensor

    def __init__(self, model: VitMnistForImageClassification):
        super().__init__()
        self.model = model
        self.register_buffer("weights", torch.tensor(CHANNEL_WEIGHTS).view(1, -1, 1, 1))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        gray = (self.weights * pixel_values).sum(1, keepdim=True)  # a single channel is broadcast to three
        return self.model(gray, return_dict=True).logits


def export_onnx(model: VitMnistForImageClassification, processor: VitMnistImageProcessor, folder: Path) -> list[str]:
    """Write ONNX files with a dynamic batch and the class names in their metadata:

    - `onnx/model.onnx`: `pixel_values` `(batch, channels, height, width)`, float32, with one channel or three, to
      `logits` `(batch, classes)`;
    - `onnx/model_quantized.onnx`: the same with 8-bit weights in its matrix products;
    - `onnx/model_images.onnx`: `images` `(batch, height, width)`, grayscale uint8, to `probabilities`
      `(batch, classes)`.

    And `config.json` and `preprocessor_config.json` of transformers' ViT with three channels, for transformers.js.
    Returns a sentence for each setting that is lost. Raises [`UsageError`] if the results would change.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    if model.config.num_channels != 1:
        refuse("the ONNX export, which takes gray images,", {"num_channels": model.config.num_channels})
    check_problem("this model", model.config)
    config, stock = hf_vit_config(model.config, 3), hf_vit_processor(processor, 3)
    lost = describe_losses(processor, "ONNX", stock.to_dict())
    if model.dtype != torch.float32:
        lost.append(f"The weights were {str(model.dtype).removeprefix('torch.')} and are float32 here.")
    model = copy.deepcopy(model).float().eval()
    model.set_attn_implementation("eager")
    side = model.config.image_size
    target = folder / "onnx"
    target.mkdir()
    labels = json.dumps([config.id2label[index] for index in range(config.num_labels)])
    # With one image, the exporter would take the batch size for a constant.
    pixel_values, images = torch.zeros(2, 1, side, side), torch.zeros(2, side, side, dtype=torch.uint8)
    _write_onnx(LogitsModel(model), pixel_values, "pixel_values", "logits", labels, target / "model.onnx")
    end_to_end = EndToEndModel(model, processor).eval()
    _write_onnx(end_to_end, images, "images", "probabilities", labels, target / "model_images.onnx")
    with quiet():  # with signed weights, sums of 16 bits overflow on x86 CPUs without VNNI
        quantize_dynamic(
            target / "model.onnx", target / "model_quantized.onnx", op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True, weight_type=QuantType.QUInt8,
        )  # fmt: skip
    config.save_pretrained(folder)
    stock.save_pretrained(folder)
    return lost


def _write_onnx(module: nn.Module, example: torch.Tensor, given: str, result: str, labels: str, path: Path) -> None:
    import onnx

    with torch.inference_mode():
        if not module(example).isfinite().all():
            raise UsageError("Cannot export to ONNX: its output is not finite. The weights are too large for float32.")
    with quiet():
        program = torch.onnx.export(
            module, (example,), input_names=[given], output_names=[result], dynamo=True, verbose=False,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        )  # fmt: skip
    proto = program.model_proto
    for item in (*proto.graph.node, *proto.graph.value_info, *proto.graph.initializer, proto.graph):
        item.doc_string = ""
        del item.metadata_props[:]  # stack traces, nine tenths of the file
    del proto.graph.value_info[:]
    if given == "pixel_values":
        proto.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "channels"  # one or three
    onnx.helper.set_model_props(proto, {"labels": labels})
    onnx.checker.check_model(proto, full_check=True)
    onnx.save_model(proto, path)
