"""A tiny Vision Transformer for MNIST as a Hugging Face model package.

Importing it registers its classes with transformers' Auto classes, so that `AutoModel.from_pretrained` loads a
checkpoint without further flags. Training, data and inference are imported where they are used."""

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification

# `transformers.AutoVideoProcessor` is a placeholder where torchvision is missing.
from transformers.models.auto.video_processing_auto import AutoVideoProcessor

from .configuration_vit_mnist import VitMnistConfig
from .image_processing_vit_mnist import VitMnistImageProcessor
from .modeling_vit_mnist import VitMnistForImageClassification, VitMnistModel, digit_score

AutoConfig.register(VitMnistConfig.model_type, VitMnistConfig)
AutoModel.register(VitMnistConfig, VitMnistModel)
AutoModelForImageClassification.register(VitMnistConfig, VitMnistForImageClassification)
# The same class serves where torchvision is installed and where it is not.
AutoImageProcessor.register(
    VitMnistConfig, image_processor_classes={"pil": VitMnistImageProcessor, "torchvision": VitMnistImageProcessor}
)
# There is no video processor. `pipeline` would look for its code in a checkpoint, and ask whether to trust it.
AutoVideoProcessor.register(VitMnistConfig, None)

# `save_pretrained` then copies the code into the saved folder, for loading with `trust_remote_code=True`.
VitMnistConfig.register_for_auto_class()
VitMnistModel.register_for_auto_class("AutoModel")
VitMnistForImageClassification.register_for_auto_class("AutoModelForImageClassification")
VitMnistImageProcessor.register_for_auto_class("AutoImageProcessor")

__all__ = [
    "VitMnistConfig", "VitMnistForImageClassification", "VitMnistImageProcessor", "VitMnistModel", "digit_score",
]  # fmt: skip
