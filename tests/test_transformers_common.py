"""
Transformers' tests of every model of its own, run on ours: the mixins of its test suite.

The mixins are in transformers' source distribution and not in its wheel. So these tests run only where
VIT_MNIST_TRANSFORMERS_SOURCE names the unpacked source distribution of the installed version.
"""

import importlib
import os
import sys
import types
import unittest
import warnings
from pathlib import Path
from unittest import mock

import pytest
import transformers

from modeling_vit_mnist import VitMnistConfig, VitMnistForImageClassification, VitMnistImageProcessor, VitMnistModel

VERSION = transformers.__version__
SOURCE = Path(os.environ.get("VIT_MNIST_TRANSFORMERS_SOURCE", "")).resolve()
INIT = SOURCE / "src" / "transformers" / "__init__.py"
if not INIT.is_file() or f'\n__version__ = "{VERSION}"\n' not in INIT.read_text(encoding="utf-8"):
    pytest.skip(
        f"needs the source of transformers {VERSION}: pip download --no-deps --no-binary transformers "
        f"transformers=={VERSION} && tar -xzf transformers-{VERSION}.tar.gz && "
        f"export VIT_MNIST_TRANSFORMERS_SOURCE=$PWD/transformers-{VERSION}",
        allow_module_level=True,
    )

# Tests of the mixins that do not apply to our classes. The mixins themselves skip more, each with a reason of its own:
# those that need an accelerator or a language model, for example.
INAPPLICABLE = {
    "test_model_get_set_embeddings": "The model reads images: it has no nn.Embedding of tokens.",
    "test_resize_tokens_embeddings": "The model reads images: it has no vocabulary to resize.",
    "test_backends_equivalence": "One class is registered for both backends: there are no two to compare.",
    "test_backends_equivalence_batched": "One class is registered for both backends: there are no two to compare.",
    "test_new_models_require_torchvision_backend": "The processor works with Pillow and needs no torchvision.",
    "test_pil_can_run_without_torchvision": "Its process does not import our package, nor trust remote code.",
    "test_pil_can_load_without_torchvision": "It looks for our package inside transformers.models.",  # of 5.20
}

# The fields of every config that the configuration tests set. Each value differs from the default.
COMMON_FIELDS = {
    "architectures": ["VitMnistModel"],
    "chunk_size_feed_forward": 5,
    "dtype": "float16",
    "id2label": {0: "zero"},
    "label2id": {"zero": 0},
    "output_attentions": True,
    "output_hidden_states": True,
    "problem_type": "regression",
    "return_dict": False,
}


def stand_in(name: str, **contents) -> None:
    """Make a module that an import inside transformers' tests then finds."""
    module = sys.modules[name] = types.ModuleType(name)
    vars(module).update(contents)


def import_mixins() -> tuple[types.ModuleType, ...]:
    """Import transformers' package `tests` under another name, since `tests` is also the name of this package."""
    package = "transformers_tests"
    stand_in(package, __path__=[str(SOURCE / "tests")])
    # The source distribution leaves out the subfolders of `tests`, which the mixins import from. So the tests of
    # exporting a model are not run, nor PipelineTesterMixin's, which need a list of models on the Hub.
    stand_in(f"{package}.exporters.test_export", ExportTesterMixin=type("ExportTesterMixin", (), {}))
    stand_in(f"{package}.generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
    stand_in(f"{package}.utils.test_configuration_utils", config_common_kwargs=COMMON_FIELDS)
    stand_in("fetch_hub_objects_for_ci", url_to_local_path=None)  # for images on the Hub, not used here
    os.environ.setdefault("TRANSFORMERS_TEST_DEVICE", "cpu")  # read at import; else a GPU is used where there is one
    # The configuration tests load a `tests/__init__.py`, which is left out too, and never use what they load.
    # The marks are registered in transformers' own pytest configuration, which is not read here.
    with mock.patch("transformers.utils.direct_transformers_import"), warnings.catch_warnings():
        warnings.simplefilter("ignore", pytest.PytestUnknownMarkWarning)
        names = ("configuration", "image_processing", "modeling")
        return tuple(importlib.import_module(f"{package}.test_{name}_common") for name in names)


configuration, image_processing, modeling = import_mixins()


@pytest.fixture(autouse=True)
def same_as_in_tree(monkeypatch):
    """Seed all random numbers, and put our classes on the lists that tell the mixins what kind of model each is."""
    transformers.set_seed(0)
    modeling.global_rng.seed(0)
    model_type = VitMnistConfig.model_type
    monkeypatch.setitem(modeling.MODEL_MAPPING_NAMES, model_type, VitMnistModel.__name__)
    classifiers = modeling.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    monkeypatch.setitem(classifiers, model_type, VitMnistForImageClassification.__name__)


def skip_inapplicable(case: type) -> type:
    for name in INAPPLICABLE.keys() & set(dir(case)):
        setattr(case, name, pytest.mark.skip(reason=INAPPLICABLE[name])(getattr(case, name)))
    return case


class ModelTester:
    """What the mixin asks of the model under test."""

    batch_size = 3
    is_training = True
    seq_length = 1 + 16  # CLS token and patches
    hidden_size = 12
    num_hidden_layers = 2
    num_attention_heads = 4

    def prepare_config_and_inputs_for_common(self):
        config = VitMnistConfig(hidden_size=self.hidden_size, num_attention_heads=self.num_attention_heads)
        shape = (self.batch_size, config.num_channels, config.image_size, config.image_size)
        return config, {"pixel_values": modeling.floats_tensor(shape)}


@skip_inapplicable
class ModelTest(modeling.ModelTesterMixin, unittest.TestCase):
    all_model_classes = (VitMnistModel, VitMnistForImageClassification)
    test_can_init_all_missing_weights_before_2023 = True  # a file without a year counts as older

    def setUp(self):
        self.model_tester = ModelTester()

    def test_config(self):
        tester = configuration.ConfigTester(
            self, config_class=VitMnistConfig, has_text_modality=False, hidden_size=12, num_attention_heads=4
        )
        tester.run_common_tests()


class ImageProcessingTester(image_processing.ImageProcessingTester):
    """What the mixin asks of the processor under test. Its values differ from the defaults."""

    def __init__(self, parent):
        size = {"height": 21, "width": 14}
        super().__init__(parent, size=size, image_mean=[0.2], image_std=[0.4], do_invert="auto", background=7)

    def _get_image_processing_classes(self):
        return {"pil": VitMnistImageProcessor, "torchvision": VitMnistImageProcessor}  # as the package registers it

    def expected_output_image_shape(self, images):
        return 1, self.size["height"], self.size["width"]  # grayscale, whatever the input


@skip_inapplicable
class ImageProcessingTest(image_processing.ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = ImageProcessingTester
