"""A tiny Vision Transformer for MNIST as a Hugging Face model package.

Importing it registers its classes with transformers' Auto classes, so that `AutoModel.from_pretrained` loads a
checkpoint without further flags. Training, data and inference are imported where they are used."""

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification

from .configuration_vit_mnist import VitMnistConfig
from .image_processing_vit_mnist import VitMnistImageProcessor
from .modeling_vit_mnist import VitMnistForImageClassification, VitMnistModel

AutoConfig.register(VitMnistConfig.model_type, VitMnistConfig)
AutoModel.register(VitMnistConfig, VitMnistModel)
AutoModelForImageClassification.register(VitMnistConfig, VitMnistForImageClassification)
# The same class serves where torchvision is installed and where it is not.
AutoImageProcessor.register(
    VitMnistConfig, image_processor_classes={"pil": VitMnistImageProcessor, "torchvision": VitMnistImageProcessor}
)

# `save_pretrained` then copies the code into the saved folder, for loading with `trust_remote_code=True`.
VitMnistConfig.register_for_auto_class()
VitMnistModel.register_for_auto_class("AutoModel")
VitMnistForImageClassification.register_for_auto_class("AutoModelForImageClassification")
VitMnistImageProcessor.register_for_auto_class("AutoImageProcessor")

__all__ = ["VitMnistConfig", "VitMnistForImageClassification", "VitMnistImageProcessor", "VitMnistModel"]
