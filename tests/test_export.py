"""Exports compute the same as our model, load without our code, and can be imported with the same bits."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from huggingface_hub.dataclasses import strict
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModelForImageClassification, ViTForImageClassification

from modeling_vit_mnist import VitMnistConfig, VitMnistForImageClassification, VitMnistImageProcessor
from modeling_vit_mnist.checkpoints.convert import hf_vit_model, import_checkpoint
from modeling_vit_mnist.checkpoints.export import FORMATS, ExportArguments, run_export
from modeling_vit_mnist.checkpoints.folder import load_checkpoint, save_checkpoint
from modeling_vit_mnist.checkpoints.onnx import export_onnx
from modeling_vit_mnist.checkpoints.settings import BASE_FIELDS
from modeling_vit_mnist.checkpoints.timm import ACTIVATIONS, mlp_ratio
from modeling_vit_mnist.cli.errors import UsageError

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


def test_heads_are_given_for_weight_files_only(export, run_script, tmp_path, checkpoint, caplog):
    export("vit", "--num_attention_heads", 4)
    assert caplog.messages == ["--format vit does not use --num_attention_heads."]
    caplog.clear()
    flags = ["--format", "import", "--model", tmp_path / "vit", "--num_attention_heads", 4]
    done = run_script("run_export.py", *flags, "--output", tmp_path / "back")
    assert done.code == 0 and caplog.messages == ["The import of a folder does not use --num_attention_heads."]


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
    theirs = timm_or_skip().create_model(f"local-dir:{folder}", pretrained=True).double().eval()
    ours, _ = load_checkpoint(checkpoint)
    pixel_values = torch.randn(3, 1, 28, 28, dtype=torch.double)
    with torch.no_grad():
        torch.testing.assert_close(theirs(pixel_values), ours.double().eval()(pixel_values).logits)


# A value of every field and of every setting that differs from its default.
OTHER_FIELDS = {
    "hidden_size": 12, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 29, "hidden_act": "relu",
    "hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3, "layer_norm_eps": 0.5, "image_size": 14,
    "patch_size": 4, "num_channels": 3, "qkv_bias": False, "initializer": "trunc_normal", "initializer_range": 0.02,
    "digit_score_threshold": 3.5,
}  # fmt: skip
OTHER_SETTINGS = {
    "do_resize": False, "size": {"height": 14, "width": 14}, "resample": 0, "do_rescale": False,
    "rescale_factor": 1 / 100, "do_normalize": False, "image_mean": 0.5, "image_std": [0.2], "do_invert": True,
    "do_center": True, "do_frame": True, "do_deskew": True, "background": 0,
}  # fmt: skip
FRAMING = ("do_frame", "do_invert", "do_center", "do_deskew", "background")


def export_to(folder, form, config=None, settings=None):
    """Export a new network and a processor. Returns the network, its pixels and logits of an image that has to be
    resized, prepared without framing, and the sentences about lost settings."""
    torch.manual_seed(0)
    config, settings = VitMnistConfig(**config or {}), settings or {}
    model = VitMnistForImageClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    processor = VitMnistImageProcessor(**{"size": config.image_size} | settings)
    folder.mkdir()
    lost = FORMATS[form](model, processor, folder)
    unframed = {name: value for name, value in settings.items() if name not in FRAMING}
    pixel_values = VitMnistImageProcessor(**{"size": config.image_size} | unframed)(
        noise(config.image_size, settings), return_tensors="pt"
    ).pixel_values.float()
    pixel_values = pixel_values.expand(-1, config.num_channels, -1, -1)
    return pixel_values, model(pixel_values).logits.detach(), lost


def noise(size, settings):
    """An image of another size and shape, but for a processor that does not resize."""
    shape = (size, size) if settings.get("do_resize") is False else (3 * size, 2 * size)
    return PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def timm_or_skip():
    try:
        import timm.data
    except Exception as error:  # a torchvision that does not match torch raises many kinds
        pytest.skip(f"timm cannot be imported: {error}")
    return timm


def run_exported(folder, form, image):
    """The pixels and the logits of an image by the library that the export is for."""
    if form == "timm":
        timm = timm_or_skip()
        theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        transform = timm.data.create_transform(**timm.data.resolve_model_data_config(theirs))
        pixel_values = transform(image if theirs.in_chans == 1 else image.convert("RGB"))[None]
        return pixel_values, theirs(pixel_values).detach()
    theirs = ViTForImageClassification.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    image = image if theirs.config.num_channels == 1 else image.convert("RGB")
    pixel_values = processor(image, return_tensors="pt").pixel_values.float()
    return pixel_values, theirs(pixel_values).logits.detach()


@pytest.mark.parametrize("form", ["vit", "vit-rgb", "timm"])
@pytest.mark.parametrize("name", sorted({field.name for field in dataclasses.fields(VitMnistConfig)} - BASE_FIELDS))
def test_no_field_of_the_config_is_lost(tmp_path, form, name):
    """A new field must get a value above, and be written or refused."""
    config = {name: OTHER_FIELDS[name]}
    if (form, name) == ("timm", "layer_norm_eps"):
        with pytest.raises(UsageError, match=r"layer_norm_eps=0\.5: timm has no such setting"):
            export_to(tmp_path / form, form, config)
        return
    pixel_values, expected, lost = export_to(tmp_path / form, form, config)
    back, _ = import_checkpoint(tmp_path / form)
    if name != "num_channels":
        torch.testing.assert_close(back.eval()(pixel_values).logits, expected, rtol=0, atol=1e-4)
    if form != "timm" or name not in ("initializer", "initializer_range"):
        assert getattr(back.config, name) == (1 if name == "num_channels" else config[name])
    got_pixels, got = run_exported(tmp_path / form, form, noise(config.get("image_size", 28), {}))
    torch.testing.assert_close(got_pixels, pixel_values.expand(got_pixels.shape), rtol=0, atol=1e-6)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    assert len(lost) == ((form, name) == ("timm", "hidden_dropout_prob"))


@pytest.mark.parametrize("form", ["vit", "vit-rgb", "timm"])
@pytest.mark.parametrize("name", sorted(VitMnistImageProcessor().to_dict().keys() - {"image_processor_type"}))
def test_no_setting_of_the_processor_is_lost(tmp_path, form, name):
    """Framing is named in a sentence. The rest is written."""
    settings = {name: OTHER_SETTINGS[name]}
    config = {"image_size": 14} if name == "size" else {}
    pixel_values, expected, lost = export_to(tmp_path / form, form, config, settings)
    is_lost = name in FRAMING or (form, name) == ("timm", "do_resize")
    assert [name in sentence and str(settings[name]) in sentence for sentence in lost] == [True] * is_lost
    got_pixels, got = run_exported(tmp_path / form, form, noise(config.get("image_size", 28), settings))
    torch.testing.assert_close(got_pixels, pixel_values.expand(got_pixels.shape), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    _, processor = import_checkpoint(tmp_path / form)
    back = processor(noise(config.get("image_size", 28), settings), return_tensors="pt").pixel_values.float()
    torch.testing.assert_close(back, pixel_values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["vit", "vit-rgb", "timm"])
def test_the_place_of_an_arrays_channels_comes_along(tmp_path, form):
    settings = {"input_data_format": "channels_last"}
    _, _, lost = export_to(tmp_path / form, form, settings=settings)
    assert [settings["input_data_format"] in sentence for sentence in lost] == [True] * (form == "timm")
    if form != "timm":
        stock = AutoImageProcessor.from_pretrained(tmp_path / form)
        _, processor = import_checkpoint(tmp_path / form)
        assert (stock.input_data_format, processor.input_data_format) == ("channels_last", "channels_last")


@pytest.mark.parametrize("form", ["vit", "vit-rgb", "timm", "onnx"])
def test_a_new_setting_is_refused_until_someone_writes_it(tmp_path, form, monkeypatch):
    processor = VitMnistImageProcessor()
    processor.do_sharpen = True
    with pytest.raises(UsageError, match=r"Cannot convert do_sharpen=True: .* has no such setting"):
        FORMATS[form](VitMnistForImageClassification(VitMnistConfig()), processor, tmp_path / form)

    @strict
    class Extended(VitMnistConfig):
        use_bias: bool = True

    model = VitMnistForImageClassification(Extended(use_bias=False))
    with pytest.raises(UsageError, match=r"Cannot convert use_bias=False: .* has no such setting"):
        FORMATS[form](model, VitMnistImageProcessor(), tmp_path)
    model = VitMnistForImageClassification(VitMnistConfig(hidden_act="prelu"))
    if form != "onnx":  # which has the weights of the activation in its graph
        with pytest.raises(UsageError, match=r"Cannot convert .*(act|prelu)"):
            FORMATS[form](model, VitMnistImageProcessor(), tmp_path)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_timm_has_the_same_activations(tmp_path, activation):
    _, expected, _ = export_to(tmp_path / "timm", "timm", {"hidden_act": activation})
    torch.testing.assert_close(run_exported(tmp_path / "timm", "timm", noise(28, {}))[1], expected, rtol=0, atol=1e-4)


def test_timm_computes_the_width_of_the_mlp_by_the_ratio():
    widths = [(hidden, width) for hidden in range(1, 60, 7) for width in range(1, 4 * hidden)]
    assert any(int(hidden * (width / hidden)) != width for hidden, width in widths)
    for hidden, width in widths:
        ratio = mlp_ratio(VitMnistConfig(hidden_size=hidden, num_attention_heads=1, intermediate_size=width))
        assert int(hidden * ratio) == width


def test_what_an_export_loses_is_on_the_screen_and_in_the_card(tmp_path, run_script):
    folder = shutil.copytree(TINY, tmp_path / "framed")
    _, processor = load_checkpoint(folder)
    processor.do_invert, processor.do_center = "auto", True
    processor.save_pretrained(folder)
    done = run_script("run_export.py", "--format", "vit", "--model", folder, "--output", tmp_path / "out")
    for text in (done.out, (tmp_path / "out" / "README.md").read_text()):
        assert "do_invert='auto' has no counterpart" in text and "do_center=True has no counterpart" in text
    with (tmp_path / "out" / "README.md").open() as file:
        data = yaml.safe_load(file.read().split("---\n")[1])
    assert data["license"] == "mit" and "mnist" in data["tags"] and data["datasets"] == ["ylecun/mnist"]


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"model": state, "epoch": 3}])
def test_a_pth_file_with_timm_names_is_imported(tmp_path, wrap):
    model, _ = load_checkpoint(TINY)
    torch.save(wrap(load_timm_state()), tmp_path / "vit.pth")
    imported, _ = import_checkpoint(tmp_path / "vit.pth")
    assert all(torch.equal(tensor, imported.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert imported.config.num_attention_heads == 2


@pytest.mark.parametrize("form", ["vit", "space"])
@pytest.mark.parametrize(
    ("front_matter", "says"),
    [
        (b"a: [1", "while parsing"),
        (b"- a", "should be a dict"),
        (b"a: \xff", "can't decode"),
        (b"license: [mit, 3]", "license=['mit', 3]"),
        (b"tags: 7", "tags=7"),
    ],
)
def test_a_card_that_cannot_be_read_is_named(run_script, tmp_path, form, front_matter, says):
    folder = shutil.copytree(TINY, tmp_path / "checkpoint")
    (folder / "README.md").write_bytes(b"---\n" + front_matter + b"\n---\n")
    done = run_script("run_export.py", "--format", form, "--model", folder, "--output", tmp_path / "out")
    assert done.code == 2 and says in done.err and str(folder / "README.md") in done.err and done.err.count("\n") == 1


@pytest.fixture
def edited(tmp_path, checkpoint):
    """Export in a format and change records in the folder: file name to keys and values, `None` to delete one."""

    def edit(form, **records):
        folder = tmp_path / form
        folder.mkdir()
        FORMATS[form](*load_checkpoint(checkpoint), folder)
        for name, changes in records.items():
            record = json.loads((folder / f"{name}.json").read_text())
            for key, value in changes.items():
                target, parts = record, key.split("__")
                for part in parts[:-1]:
                    target = target[part]
                target.pop(parts[-1], None)
                if value is not None:
                    target[parts[-1]] = value
            (folder / f"{name}.json").write_text(json.dumps(record))
        return folder

    return edit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"global_pool": "avg"}, "Cannot convert global_pool='avg'"),
        ({"model_args__global_pool": "avg"}, "Cannot convert global_pool='avg'"),
        ({"model_args__class_token": False}, "Cannot convert class_token=False"),
        ({"model_args__no_embed_class": True}, "Cannot convert no_embed_class=True"),
        ({"model_args__pre_norm": True}, "Cannot convert pre_norm=True"),
        ({"model_args__reg_tokens": 4}, "Cannot convert reg_tokens=4"),
        ({"model_args__qk_norm": True}, "Cannot convert qk_norm=True"),
        ({"model_args__init_values": 1e-5}, "Cannot convert init_values=1e-05"),
        ({"model_args__fc_norm": True}, "Cannot convert fc_norm=True"),
        ({"model_args__norm_layer": "rmsnorm"}, "Cannot convert norm_layer='rmsnorm'"),
        ({"model_args__act_layer": "hard_mish"}, "Cannot convert act_layer='hard_mish'"),
        ({"model_args__a_new_argument": 1}, "Cannot convert a_new_argument=1"),
        ({"model_args__img_size": 56}, "has img_size 56, but its weights are for 28"),
        ({"model_args__patch_size": 14}, "has patch_size 14, but its weights are for 7"),
        ({"num_classes": 5}, "has num_classes 5, but its weights are for 10"),
        ({"pretrained_cfg__label_offset": 1}, "has label_offset 1"),
        ({"pretrained_cfg__label_names": ["a", "b"]}, "do not match a ViT classifier"),
        ({"architecture": "vit_base_patch16_clip_224"}, "the architecture 'vit_base_patch16_clip_224'"),
        ({"architecture": "deit3_small_patch16_224"}, "the architecture 'deit3_small_patch16_224'"),
        ({"pretrained_cfg__mean": None}, "image_mean must be a finite number"),
        ({"pretrained_cfg__crop_pct": None}, "crops images .*0.875"),
        ({"pretrained_cfg__crop_mode": "border"}, "crops images .*border"),
        ({"pretrained_cfg__interpolation": "random"}, "Cannot convert interpolation='random'"),
        ({"pretrained_cfg__std": [0.0]}, "image_std must be a positive"),
    ],
    ids=str,
)
def test_a_timm_model_that_computes_something_else_is_refused(edited, change, message):
    with pytest.raises(UsageError, match=message):
        import_checkpoint(edited("timm", config=change))


def test_what_a_timm_model_leaves_out_is_its_own_default(edited, checkpoint, caplog):
    """Heads are those of the architecture, not ours. Arguments of training are ignored, which is logged."""
    changes = {"model_args__num_heads": None, "pretrained_cfg__interpolation": None, "model_args__drop_path_rate": 0.1}
    names = {str(index): f"class {index}" for index in reversed(range(10))}
    folder = edited("timm", config=changes | {"pretrained_cfg__label_names": names})
    model, processor = import_checkpoint(folder, num_attention_heads=6)
    assert model.config.num_attention_heads == 3 and processor.resample == PIL.Image.Resampling.BICUBIC
    assert model.config.id2label[7] == "class 7" and model.config.label2id["class 7"] == 7
    assert "Ignoring what does not change logits: drop_path_rate=0.1" in caplog.text


@pytest.mark.parametrize(
    "options",
    [
        {}, {"in_chans": 3}, {"act_layer": "quick_gelu"}, {"qkv_bias": False}, {"norm_layer": "layernorm"},
        {"num_heads": 1}, {"embed_dim": 30, "mlp_ratio": 29 / 30, "img_size": 14}, {"depth": 1, "num_classes": 3},
        {"attn_drop_rate": 0.1, "proj_drop_rate": 0.2, "drop_rate": 0.3},
    ],
    ids=str,
)  # fmt: skip
def test_a_model_that_timm_has_saved_gives_the_same_logits(tmp_path, options):
    timm = timm_or_skip()
    torch.manual_seed(0)
    sizes = {
        "img_size": 28,
        "patch_size": 7,
        "in_chans": 1,
        "embed_dim": 12,
        "depth": 2,
        "num_heads": 3,
        "num_classes": 10,
    }
    theirs = timm.create_model("vit_tiny_patch16_224", **sizes | options).eval()
    for parameter in theirs.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    channels = theirs.in_chans
    cfg = {"mean": [0.3] * channels, "std": [0.4] * channels, "crop_pct": 1.0, "crop_mode": "squash"}
    timm.models.save_for_hf(theirs, tmp_path / "timm", model_config={"pretrained_cfg": cfg}, safe_serialization=True)
    model, processor = import_checkpoint(tmp_path / "timm")
    image = noise(28, {})
    _, expected = run_exported(tmp_path / "timm", "timm", image)
    got = model.eval()(processor(image, return_tensors="pt").pixel_values).logits.detach()
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preprocessor_config": {"do_center_crop": True}}, "Cannot convert do_center_crop=True"),
        ({"preprocessor_config": {"rescale_offset": True}}, "Cannot convert rescale_offset=True"),
        ({"preprocessor_config": {"image_mean": [0.1, 0.2, 0.3]}}, "image_mean must be a finite number"),
        ({"preprocessor_config": {"size": None}}, "its processor makes images of 224x224, the model takes 28x28"),
        ({"preprocessor_config": {"image_std": [0.0] * 3}}, "image_std must be a positive"),
        ({"preprocessor_config": {"image_std": [float("nan")] * 3}}, "NaN is no number"),
        ({"preprocessor_config": {"image_processor_type": "CLIPImageProcessor"}}, "type 'CLIPImageProcessor'"),
        ({"config": {"image_size": [28, 14]}}, r"position_embeddings has .* not \(1, 9, 12\)"),
        ({"config": {"problem_type": "multi_label_classification"}}, "only single-label classification"),
        ({"config": {"hidden_size": "12"}}, "Cannot read the checkpoint"),
        ({"config": {"num_hidden_layers": 2}}, "do not match its config.json: .* is left over"),
        ({"config": {"model_type": "deit"}}, "neither a transformers ViT nor a timm model"),
    ],
    ids=str,
)  # fmt: skip
def test_a_transformers_vit_that_computes_something_else_is_refused(edited, changes, message):
    with pytest.raises(UsageError, match=message):
        import_checkpoint(edited("vit-rgb", **changes))


def test_settings_of_a_transformers_vit_come_along(edited):
    folder = edited(
        "vit-rgb",
        config={"hidden_act": "relu", "layer_norm_eps": 0.1, "initializer": None, "initializer_range": 0.02},
        preprocessor_config={"image_mean": None, "do_rescale": False, "do_resize": False, "resample": 0},
    )
    model, processor = import_checkpoint(folder)
    theirs = ViTForImageClassification.from_pretrained(folder).eval()
    image = noise(28, {"do_resize": False})
    with torch.no_grad():
        pixel_values = AutoImageProcessor.from_pretrained(folder)(
            image.convert("RGB"), return_tensors="pt"
        ).pixel_values
        expected = theirs(pixel_values.float()).logits
        got = model.eval()(processor(image, return_tensors="pt").pixel_values.float()).logits
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert list(processor.image_mean) == [0.5]  # transformers' default, not ours
    assert (model.config.initializer, model.config.initializer_range) == ("trunc_normal", 0.02)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensor: tensor.to(torch.int8), r"of type (I8|torch\.int8)"),
        (lambda tensor: tensor.to(torch.float8_e4m3fn), r"of type (F8_E4M3|torch\.float8_e4m3fn)"),
        (lambda tensor: tensor * torch.inf, "holds weights that are not finite"),
    ],
)
@pytest.mark.parametrize("form", ["vit", "bin", "shards", "timm", "pth"])
def test_weights_that_are_no_numbers_are_not_imported(edited, tmp_path, change, message, form):
    if form == "pth":
        path = tmp_path / "vit.pth"
        torch.save({name: change(tensor) for name, tensor in load_timm_state().items()}, path)
    elif form == "bin":
        path = edited("vit")
        torch.save({name: change(t) for name, t in weights(path).items()}, path / "pytorch_model.bin")
        (path / "model.safetensors").unlink()
    elif form == "shards":
        path = edited("vit")
        ViTForImageClassification.from_pretrained(path).save_pretrained(path, max_shard_size="2KB")
        (path / "model.safetensors").unlink()
        for file in path.glob("*.safetensors"):
            save_file({name: change(tensor) for name, tensor in load_file(file).items()}, file)
    else:
        path = edited(form)
        save_file({name: change(tensor) for name, tensor in weights(path).items()}, path / "model.safetensors")
    with pytest.raises(UsageError, match=message):
        import_checkpoint(path)


def test_a_name_on_the_hub_is_not_imported(tmp_path, run_script):
    done = run_script("run_export.py", "--format", "import", "--model", "me/a", "--output", tmp_path / "out")
    assert done.code == 2 and "No file or folder 'me/a'. Only local ones can be imported" in done.err


def load_timm_state():
    return {name.removeprefix("vit."): tensor for name, tensor in load_checkpoint(TINY)[0].state_dict().items()}


def test_what_a_pth_file_does_not_record_is_said(tmp_path, caplog):
    state = load_timm_state()
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].repeat(1, 3, 1, 1) / 3
    state["pos_embed"] = state["pos_embed"][:, :5]  # for 14x14 pixels
    torch.save({name: tensor.double() for name, tensor in state.items()}, tmp_path / "vit.pth")
    model, processor = import_checkpoint(tmp_path / "vit.pth", num_attention_heads=4)
    assert "assuming --num_attention_heads 4, and MNIST's mean" in caplog.text
    assert "Adding up 3 channels" in caplog.text and model.dtype == torch.float64
    assert model(processor(noise(28, {}), return_tensors="pt").pixel_values).logits.shape == (1, 10)


def test_weights_of_several_types_are_imported_without_rounding(tmp_path):
    state = load_timm_state()
    kinds = {"patch_embed.proj.weight": torch.float16, "norm.weight": torch.float64}
    state = {name: tensor.to(kinds.get(name, torch.float32)) for name, tensor in state.items()}
    torch.save(state, tmp_path / "vit.pth")
    imported = import_checkpoint(tmp_path / "vit.pth", num_attention_heads=2)[0].state_dict()
    assert all(torch.equal(imported[name if name in imported else f"vit.{name}"], state[name]) for name in state)


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


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("file", "is a file: choose another --output"),
        ("file/out", "Cannot write to the folder .*file/out: Not a directory"),
        ("x" * 300, "Cannot write to the folder .*: File name too long"),
    ],
)
def test_an_output_that_cannot_be_a_folder_is_refused(tmp_path, run_script, output, message):
    (tmp_path / "file").write_text("years of work")
    done = run_script("run_export.py", "--format", "vit", "--output", tmp_path / output)
    assert done.code == 2 and re.search(message, done.err) and done.err.count("\n") == 1
    assert (tmp_path / "file").read_text() == "years of work"


def test_an_output_of_any_name_is_written(tmp_path, run_script):
    folder = shutil.copytree(TINY, tmp_path / "ziffern: #[1] é\n| x")
    done = run_script("run_export.py", "--format", "vit", "--model", folder, "--output", tmp_path / "[ö] #'\"\n{{x}}")
    assert done.code == 0, done.err
    card = (tmp_path / "[ö] #'\"\n{{x}}" / "README.md").read_text(encoding="utf-8")
    assert "# ziffern: #[1] é | x as vit\n" in card and yaml.safe_load(card.split("---\n")[1])["license"] == "mit"


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
@pytest.mark.parametrize(
    "settings",
    [
        {"rescale_factor": 1 / 100, "image_mean": 0.5, "image_std": [0.2], "do_center": True},
        {"do_rescale": False, "do_normalize": False},
    ],
)
def test_onnx_loses_no_setting(tmp_path, settings):
    pytest.importorskip("onnxruntime")
    names = {index: f"class {index}" for index in range(12)}
    config = {"layer_norm_eps": 0.5, "hidden_act": "prelu", "qkv_bias": False, "hidden_size": 12, "id2label": names}
    config |= {"num_attention_heads": 3, "image_size": 14, "hidden_dropout_prob": 0.3, "return_dict": False}
    torch.manual_seed(0)
    model = VitMnistForImageClassification(VitMnistConfig(**config)).to(torch.bfloat16).eval()
    processor = VitMnistImageProcessor(size=14, **settings)
    lost = export_onnx(model, processor, tmp_path)
    assert ["do_center=True" in sentence or "bfloat16" in sentence for sentence in lost] == [True] * len(lost)
    assert len(lost) == 1 + settings.get("do_center", False) and model.dtype == torch.bfloat16

    image = noise(14, {"do_resize": False})
    processor.do_center = False
    pixel_values = processor(image, return_tensors="pt").pixel_values.float()
    stock = AutoImageProcessor.from_pretrained(tmp_path)(image.convert("RGB"), return_tensors="pt").pixel_values
    torch.testing.assert_close(stock.float(), pixel_values.expand(-1, 3, -1, -1), rtol=1e-5, atol=1e-5)
    expected = model.float()(pixel_values, return_dict=True).logits.detach()
    (logits,) = session(tmp_path, "model").run(None, {"pixel_values": stock.float().numpy()})
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    network = session(tmp_path, "model_images")
    (probabilities,) = network.run(None, {"images": np.asarray(image)[None]})
    np.testing.assert_allclose(probabilities, expected.softmax(-1), rtol=1e-4, atol=1e-4)
    assert json.loads(network.get_modelmeta().custom_metadata_map["labels"]) == list(names.values())


@pytest.mark.parametrize("config", [{"problem_type": "multi_label_classification"}, {"num_labels": 1}], ids=str)
@pytest.mark.parametrize("form", ["timm", "onnx"])
def test_other_problems_than_the_choice_of_a_class_are_refused(tmp_path, config, form):
    with pytest.raises(UsageError, match="only single-label classification of two or more classes"):
        export_to(tmp_path / form, form, config)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_onnx_refuses_weights_too_large_for_its_floats(tmp_path, dtype):
    pytest.importorskip("onnxruntime")
    model, processor = load_checkpoint(TINY, dtype=dtype)
    model.head.weight.data.fill_(3e38 if dtype == torch.float32 else 1e300)
    with pytest.raises(UsageError, match="output is not finite"):
        export_onnx(model, processor, tmp_path)


@pytest.mark.parametrize("config", [{"num_channels": 3}])
def test_onnx_refuses_what_its_graph_does_not_compute(tmp_path, config):
    pytest.importorskip("onnxruntime")
    with pytest.raises(UsageError, match=f"Cannot convert {next(iter(config))}="):
        export_onnx(VitMnistForImageClassification(VitMnistConfig(**config)), VitMnistImageProcessor(), tmp_path)


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
