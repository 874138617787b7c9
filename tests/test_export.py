"""Exports compute the same as our model, load without our code, and can be imported with the same bits."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification, ViTForImageClassification

from modeling_vit_mnist import VitMnistConfig, VitMnistForImageClassification, VitMnistImageProcessor
from modeling_vit_mnist.checkpoints.convert import hf_vit_model, import_checkpoint
from modeling_vit_mnist.checkpoints.export import ExportArguments, run_export
from modeling_vit_mnist.checkpoints.folder import load_checkpoint, save_checkpoint

from .conftest import ROOT, TINY, weights


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A network with every size different from the default, and random weights."""
    folder = tmp_path_factory.mktemp("export") / "checkpoint"
    torch.manual_seed(0)
    config = VitMnistConfig(hidden_size=12, num_hidden_layers=3, num_attention_heads=3, intermediate_size=20)
    model = VitMnistForImageClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    save_checkpoint(folder, model, VitMnistImageProcessor(), card="", records={})
    return folder


@pytest.fixture
def export(run_script, tmp_path, checkpoint):
    def run(form, *more):
        done = run_script("run_export.py", "--format", form, "--model", checkpoint, "--output", tmp_path / form, *more)
        assert done.code == 0, done.err
        return tmp_path / form

    return run


@pytest.mark.parametrize("form", ["vit", "vit-rgb", "timm"])
def test_export_and_import_keep_every_bit(export, run_script, tmp_path, checkpoint, form):
    heads = json.loads((checkpoint / "config.json").read_text())["num_attention_heads"]
    done = run_script("run_export.py", "--format", "import", "--model", export(form), "--output", tmp_path / "back")
    assert done.code == 0, done.err
    before, after = weights(checkpoint), weights(tmp_path / "back")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert (config["num_attention_heads"], config["intermediate_size"], config["patch_size"]) == (heads, 20, 7)
    assert config["id2label"] == {str(digit): str(digit) for digit in range(10)}
    processor = VitMnistImageProcessor.from_pretrained(tmp_path / "back")
    assert (list(processor.image_mean), list(processor.image_std)) == ([0.1307], [0.3081])


@pytest.mark.parametrize(("form", "channels"), [("vit", 1), ("vit-rgb", 3)])
def test_transformers_vit_gives_the_same_logits(export, checkpoint, form, channels):
    theirs, info = ViTForImageClassification.from_pretrained(export(form), output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ours, _ = load_checkpoint(checkpoint)
    pixel_values = torch.randn(7, 1, 28, 28, dtype=torch.double)
    with torch.no_grad():
        expected = ours.double().eval()(pixel_values).logits
        got = theirs.double().eval()(pixel_values.expand(-1, channels, -1, -1)).logits
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_a_stock_pipeline_runs_vit_rgb(export, checkpoint, sample, tmp_path):
    """In a fresh process, which does not import this package. Exporting, in turn, does not import the Hub's code."""
    files = []
    for index, frame in enumerate(sample["test"].images[:8]):
        files.append(str(tmp_path / f"{index}.png"))
        PIL.Image.fromarray(frame.numpy()).save(files[-1])
    code = f"""
import json, sys
from transformers import pipeline
classify = pipeline("image-classification", model={str(export("vit-rgb"))!r}, top_k=1)
print(json.dumps([[result[0]["label"], result[0]["score"]] for result in classify({files!r})]))
assert not [name for name in sys.modules if name.startswith("modeling_vit_mnist")]
sys.path.insert(0, {str(ROOT)!r})
import modeling_vit_mnist.checkpoints.export
assert "modeling_vit_mnist.checkpoints.hub" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    model, processor = load_checkpoint(checkpoint)
    with torch.no_grad():
        expected = model.eval()(processor.rescale_and_normalize(sample["test"].images[:8])).logits.softmax(-1).max(-1)
    for (label, score), value, index in zip(json.loads(done.stdout), *expected, strict=True):
        assert (label, score) == (str(index.item()), pytest.approx(value.item(), abs=1e-5))


def test_the_stock_processor_gives_the_same_pixels(export, sample):
    image = PIL.Image.fromarray(sample["test"].images[0].numpy())
    expected = VitMnistImageProcessor()(image, return_tensors="pt").pixel_values
    for form, channels in (("vit", 1), ("vit-rgb", 3)):
        processor = AutoImageProcessor.from_pretrained(export(form))
        got = processor(image if channels == 1 else image.convert("RGB"), return_tensors="pt").pixel_values
        torch.testing.assert_close(got, expected.expand(-1, channels, -1, -1), rtol=0, atol=1e-6)


def test_timm_gives_the_same_logits(export, checkpoint):
    folder = export("timm")
    assert {"cls_token", "blocks.2.attn.qkv.weight", "norm.bias", "head.weight"} <= weights(folder).keys()
    try:
        import timm
    except Exception as error:  # a torchvision that does not match torch raises many kinds
        pytest.skip(f"timm cannot be imported: {error}")
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).double().eval()
    ours, _ = load_checkpoint(checkpoint)
    pixel_values = torch.randn(3, 1, 28, 28, dtype=torch.double)
    with torch.no_grad():
        torch.testing.assert_close(theirs(pixel_values), ours.double().eval()(pixel_values).logits)


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"model": state, "epoch": 3}])
def test_a_pth_file_with_timm_names_is_imported(tmp_path, wrap):
    model, _ = load_checkpoint(TINY)
    state = {name.removeprefix("vit."): tensor for name, tensor in model.state_dict().items()}
    torch.save(wrap(state), tmp_path / "vit.pth")
    imported, _ = import_checkpoint(tmp_path / "vit.pth")
    assert all(torch.equal(tensor, imported.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert imported.config.num_attention_heads == 2


class Evil:
    def __reduce__(self):
        return print, ("code from a pickle has run",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": Evil()}, "Cannot read the weights in"),
        ({"fc.weight": torch.zeros(2)}, "holds no state dict with timm's names"),
        ({"patch_embed.proj.weight": torch.zeros(8, 1, 7, 7)}, "do not match a ViT classifier"),
    ],
)
def test_unusable_files_give_a_one_line_error(tmp_path, run_script, content, message):
    torch.save(content, tmp_path / "x.pth")
    done = run_script(
        "run_export.py", "--format", "import", "--model", tmp_path / "x.pth", "--output", tmp_path / "out"
    )
    assert done.code == 2 and message in done.err and done.err.count("\n") == 1
    assert "code from a pickle" not in done.out
    assert not list((tmp_path / "out").iterdir())


def test_a_folder_in_use_stays_unchanged(tmp_path, run_script):
    (tmp_path / "thesis.txt").write_text("years of work")
    done = run_script("run_export.py", "--format", "vit", "--output", tmp_path)
    assert done.code == 2 and "is not empty" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_unknown_format_is_refused(tmp_path, run_script):
    done = run_script("run_export.py", "--format", "tflite", "--output", tmp_path / "x")
    assert done.code == 2 and "invalid choice: 'tflite'" in done.err


onnx_group = pytest.mark.xdist_group("onnx")  # its tests share an export of several seconds


@pytest.fixture(scope="module")
def onnx_folder(tmp_path_factory):
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("onnx") / "out"
    run_export(ExportArguments(format="onnx", output=str(folder)))
    return folder


def session(folder, name):
    import onnxruntime

    return onnxruntime.InferenceSession(folder / "onnx" / f"{name}.onnx")


@onnx_group
def test_onnx_gives_the_same_logits_at_any_batch_size(onnx_folder):
    model, _ = load_checkpoint(TINY)
    rgb_model = hf_vit_model(model, rgb=True)
    network = session(onnx_folder, "model")
    for size in (1, 2, 17):
        for channels, torch_model in ((1, model.eval()), (3, rgb_model)):
            pixel_values = torch.randn(size, channels, 28, 28, generator=torch.Generator().manual_seed(size))
            with torch.no_grad():
                expected = torch_model(pixel_values).logits
            (got,) = network.run(None, {"pixel_values": pixel_values.numpy()})
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@onnx_group
def test_onnx_files_have_class_names_and_no_local_paths(onnx_folder):
    for name in ("model", "model_quantized", "model_images"):
        labels = session(onnx_folder, name).get_modelmeta().custom_metadata_map["labels"]
        assert json.loads(labels) == [str(digit) for digit in range(10)]
        content = (onnx_folder / "onnx" / f"{name}.onnx").read_bytes()
        assert len(content) < 25_000 and b".py" not in content and b"/home" not in content and b"/root" not in content


@onnx_group
def test_onnx_predicts_the_same_digits(onnx_folder, sample):
    compare_predictions(onnx_folder, sample["test"], int8_slack=0.01)  # one percent of 1,000 images


@onnx_group
def test_onnx_predicts_the_same_digits_on_mnist(onnx_folder, mnist):
    from modeling_vit_mnist.data.arguments import DataArguments
    from modeling_vit_mnist.data.splits import load_images

    test = load_images(DataArguments(dataset_name=mnist), VitMnistImageProcessor(), ["test"])["test"]
    compare_predictions(onnx_folder, test)


def compare_predictions(folder, dataset, int8_slack=0.002):
    model, processor = load_checkpoint(TINY)
    pixel_values = processor.rescale_and_normalize(dataset.images)
    with torch.no_grad():
        logits = model.eval()(pixel_values).logits
    expected, labels = logits.argmax(1).numpy(), dataset.labels.numpy()
    (plain,) = session(folder, "model").run(None, {"pixel_values": pixel_values.numpy()})
    assert np.array_equal(plain.argmax(1), expected)
    (end_to_end,) = session(folder, "model_images").run(None, {"images": dataset.images.numpy()})
    assert np.array_equal(end_to_end.argmax(1), expected)
    np.testing.assert_allclose(end_to_end, logits.softmax(-1), atol=1e-4)
    (int8,) = session(folder, "model_quantized").run(None, {"pixel_values": pixel_values.numpy()})
    assert abs((int8.argmax(1) == labels).mean() - (expected == labels).mean()) <= int8_slack


NODE_SCRIPT = """
globalThis.fetch = (url) => { throw new Error(`unexpected network access: ${url}`); };
const { env, pipeline } = require("@huggingface/transformers");
const [folder, dtype, ...files] = process.argv.slice(1);
env.allowRemoteModels = false;
(async () => {
    const classify = await pipeline("image-classification", folder, { dtype });
    console.log(JSON.stringify(await classify(files, { top_k: null })));
})();
"""


@pytest.fixture(scope="module")
def node_modules() -> Path:
    """The folder in which transformers.js is installed: on NODE_PATH or in this repository."""
    folders = [Path(name) for name in os.environ.get("NODE_PATH", "").split(os.pathsep) if name]
    for folder in [*folders, ROOT / "node_modules"]:
        if shutil.which("node") and (folder / "@huggingface" / "transformers").is_dir():
            return folder
    pytest.skip("needs Node and transformers.js: npm install --no-save --ignore-scripts @huggingface/transformers")


@onnx_group
@pytest.mark.parametrize(("dtype", "name"), [("fp32", "model"), ("q8", "model_quantized")])
def test_transformers_js_gives_the_same_probabilities(onnx_folder, node_modules, sample, tmp_path, dtype, name):
    digits, files = sample["test"].select(slice(20)), []
    for index, frame in enumerate(digits.images):
        image = PIL.Image.fromarray(frame.numpy())
        files.append(tmp_path / f"{index}.png")
        (image if index % 2 else image.convert("RGB")).save(files[-1])
    done = subprocess.run(
        ["node", "-e", NODE_SCRIPT, onnx_folder, dtype, *files],
        capture_output=True, text=True, timeout=600, env=os.environ | {"NODE_PATH": str(node_modules)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers = [{entry["label"]: entry["score"] for entry in answer} for answer in json.loads(done.stdout)]
    got = np.array([[answer[str(digit)] for digit in range(10)] for answer in answers])

    model, processor = load_checkpoint(TINY)
    pixel_values = processor.rescale_and_normalize(digits.images)
    with torch.no_grad():
        expected = model.eval()(pixel_values).logits
    if dtype == "q8":
        (logits,) = session(onnx_folder, name).run(None, {"pixel_values": pixel_values.numpy()})
        expected = torch.from_numpy(logits)
    np.testing.assert_allclose(got, expected.softmax(-1), rtol=0, atol=1e-5)


def test_auto_classes_load_the_exported_vit(tmp_path, run_script):
    done = run_script("run_export.py", "--format", "vit", "--output", tmp_path / "vit")
    assert done.code == 0, done.err
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "vit")
    assert type(model) is ViTForImageClassification and model.num_parameters() == 1850
