"""Predictions as a user gets them: what is printed, what is written, and what is refused."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pandas
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import pipeline

from modeling_vit_mnist import VitMnistConfig, VitMnistForImageClassification, VitMnistImageProcessor, hub, inference
from modeling_vit_mnist.errors import InputError
from modeling_vit_mnist.functional import weight_shapes
from modeling_vit_mnist.inference import choose_device, predict
from modeling_vit_mnist.light import load_light_checkpoint

from .conftest import ROOT, SAMPLE


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A network that has learned nothing, which errs enough to show mistakes."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    model = VitMnistForImageClassification(VitMnistConfig())
    hub.save_checkpoint(folder, model, VitMnistImageProcessor(), card="", records={})
    return folder


@pytest.fixture
def infer(run_script, checkpoint):
    def run(*arguments, model=checkpoint, dataset=SAMPLE):
        return run_script("run_inference.py", "--model", model, "--dataset_name", dataset, *arguments)

    return run


@pytest.fixture
def pictures(tmp_path, sample):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(3):
        PIL.Image.fromarray(sample["test"].images[index].numpy()).save(folder / f"{index}.png")
    return folder


def test_default_output_is_the_originals(infer, checkpoint, sample):
    done = infer()
    lines = done.out.splitlines()
    assert (done.code, done.err) == (0, "")
    assert len(lines) == 2 * 64 + 1
    model, processor = hub.load_checkpoint(checkpoint)
    digits = sample["test"].select(slice(64))
    predictions = model(processor.to_pixel_values(digits.images)).logits.argmax(1)
    for index, (label, prediction) in enumerate(zip(digits.labels.tolist(), predictions.tolist(), strict=True)):
        assert lines[2 * index] == f"Idx:{index} GT:{label} Pred:{prediction} isAcc:{label == prediction}"
        assert lines[2 * index + 1] == "------------------------------"
    accuracy = (predictions == digits.labels).float().mean()
    assert re.fullmatch(
        rf"Accuracy: {accuracy:.2%} \(\d+ of 64 test images of mnist-5k\), [\d,]+ images/s on \w+", lines[-1]
    )


def test_kept_checkpoint_on_mnist(run_script, mnist):
    done = run_script("run_inference.py", "--dataset_name", mnist)
    lines = done.out.splitlines()
    assert [re.match(r"Idx:\d+ GT:(\d)", line)[1] for line in lines[:20:2]] == list("7210414959")
    assert lines[0] == "Idx:0 GT:7 Pred:7 isAcc:True" and lines[1] == "-" * 30
    done = run_script("run_inference.py", "--dataset_name", mnist, "--num_samples", "0")
    accuracy = re.search(r"Accuracy: ([\d.]+)% .* of 10,000", done.out)[1]
    results = json.loads((hub.CARD_TEMPLATE.parent / "vit-mnist-tiny" / "all_results.json").read_text())
    # Another CPU may round a pair of nearly equal logits the other way.
    assert float(accuracy) == pytest.approx(100 * results["test_accuracy"], abs=0.021)


def test_number_of_samples_and_split(infer):
    assert "of 1,000 test images" in infer("--num_samples", "0").out
    assert "of 5 validation images" in infer("--num_samples", "5", "--split", "validation").out


@pytest.mark.parametrize(
    ("suffix", "read"), [("jsonl", pandas.read_json), ("csv", pandas.read_csv), ("parquet", pandas.read_parquet)]
)
def test_tables_hold_what_is_printed(infer, tmp_path, suffix, read):
    path = tmp_path / "new folder" / f"predictions.{suffix}"
    done = infer("--output", path, "--top_k", "3", "--num_samples", "20")
    table = read(path, lines=True) if suffix == "jsonl" else read(path)
    printed = re.findall(r"Idx:(\d+) GT:(\d) Pred:(\d) .* Top:(\d)=([\d.]+),\d=[\d.]+,\d=[\d.]+", done.out)
    assert len(table) == len(printed) == 20
    for row, (index, label, prediction, top, probability) in zip(table.to_dict("records"), printed, strict=True):
        assert [str(row[name]) for name in ("index", "label", "prediction")] == [index, label, prediction]
        assert top == prediction and row["probability"] == pytest.approx(float(probability), abs=5.1e-5)


def test_grid_is_a_picture(infer, tmp_path, pictures):
    infer("--grid", tmp_path / "grid.png", "--num_samples", "25")
    infer("--grid", tmp_path / "one.png", "--image", pictures / "0.png")
    assert PIL.Image.open(tmp_path / "grid.png").width > 1000
    assert PIL.Image.open(tmp_path / "one.png").width > 200


def test_files_folders_and_globs(infer, pictures, checkpoint):
    model, processor = hub.load_checkpoint(checkpoint)
    files = sorted(map(str, pictures.iterdir()))
    expected = predict(model, processor, torch.cat([torch.tensor(np.asarray(PIL.Image.open(f)))[None] for f in files]))
    for arguments in ([pictures], files, [pictures / "*.png"], [pictures / "0.png", pictures / "[12].png"]):
        lines = infer("--image", *arguments).out.splitlines()
        for file, line, probabilities in zip(files, lines[::2], expected, strict=False):
            assert line == f"{file} Pred:{probabilities.argmax()} Prob:{probabilities.max():.4f}"
        assert lines[1] == "-" * 30 and lines[-1].startswith("3 images, ")


def test_photographs_are_framed_on_request(infer, pictures, sample):
    """A digit drawn dark on light in the corner of a large sheet gets the answer of the digit itself."""
    sheet = PIL.Image.new("L", (300, 200), 255)
    digit = PIL.Image.fromarray(255 - sample["test"].images[0].numpy())
    sheet.paste(digit, (200, 120))
    sheet.save(pictures / "sheet.png")
    plain = infer("--image", pictures / "0.png").out.split()[1:3]
    assert infer("--image", pictures / "sheet.png").out.split()[1:3] != plain
    blank = infer("--image", pictures / "sheet.png", "--do_center", "true").out
    assert blank.startswith(f"Nothing is left to see of {pictures / 'sheet.png'}. If it is dark ink on light paper, ")
    assert (
        infer("--image", pictures / "sheet.png", "--do_center", "true", "--do_invert", "auto").out.split()[1:3]
        == plain
    )


def test_same_as_the_pipeline(infer, pictures, checkpoint):
    model, processor = hub.load_checkpoint(checkpoint)
    classify = pipeline("image-classification", model=model, image_processor=processor)
    best = classify(str(pictures / "0.png"))[0]
    assert f"0.png Pred:{best['label']} Prob:{best['score']:.4f}" in infer("--image", pictures / "0.png").out


def test_files_of_floats_go_with_files_of_bytes(infer, pictures, sample):
    PIL.Image.fromarray(sample["test"].images[0].numpy().astype(np.float32) / 255).save(pictures / "0.tiff")
    alone = infer("--image", *sorted(pictures.glob("*.png"))).out.splitlines()[:6:2]
    together = infer("--image", pictures).out.splitlines()[:8:2]
    assert [line.split()[1:] for line in together] == [line.split()[1:] for line in (alone[0], *alone)]


def in_a_fresh_process(*arguments) -> tuple[list[str], set[str]]:
    """The lines that `run_inference.py` prints there, and the modules that it has imported."""
    code = (
        f"import json, runpy, sys; sys.argv = ['run_inference.py', *{[str(argument) for argument in arguments]}]; "
        "runpy.run_path(sys.argv[0], run_name='__main__'); print(json.dumps(list(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    *lines, modules = done.stdout.splitlines()
    return lines, set(json.loads(modules))


def test_few_images_need_little_started_up(pictures, sample):
    images = ["--image", pictures, "--device", "cpu"]
    lines, modules = in_a_fresh_process(*images)
    assert [line.split()[1] for line in lines[:6:2]] == [f"Pred:{label}" for label in sample["test"].labels[:3]]
    heavy = {"transformers.modeling_utils", "datasets", "pandas", "scipy", "sympy", "torch._dynamo", "matplotlib"}
    assert "torch" in modules and not heavy & modules


def test_without_the_packages_init_the_full_way_does_the_same(pictures, tmp_path, run_script):
    shutil.copytree(ROOT / "vit-mnist-tiny", tmp_path / "model")
    (tmp_path / "model" / "preprocessor_config.json").unlink()
    images = ["--image", pictures, "--device", "cpu"]
    lines, modules = in_a_fresh_process(*images, "--model", tmp_path / "model")
    assert "transformers.modeling_utils" in modules
    assert lines[:-1] == run_script("run_inference.py", *images).out.splitlines()[:-1]


@pytest.mark.parametrize("name", ["vit-mnist-tiny", "vit-mnist-small"])
def test_light_model_gives_the_models_probabilities(name, sample):
    frames = sample["test"].images[:300]
    light, full = load_light_checkpoint(str(ROOT / name)), hub.load_checkpoint(ROOT / name)
    assert torch.equal(light[1].to_pixel_values(frames), full[1].to_pixel_values(frames))
    for images in (frames, frames / 255):  # 1e-5 is what rounding to float32 does to either of them
        torch.testing.assert_close(predict(*light, images), predict(*full, images), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "arguments",
    [[], ["--do_center", "true", "--do_invert", "auto"], ["--do_invert", "yes"], ["--top_k", "3"]],
    ids=str,
)
def test_light_way_prints_and_writes_the_same(infer, pictures, tmp_path, arguments, monkeypatch):
    colours = np.random.default_rng(0).integers(0, 256, (40, 30, 4), dtype=np.uint8)
    PIL.Image.fromarray(colours).save(pictures / "rgba.png")
    PIL.Image.fromarray(colours[..., 0].astype(np.float32) / 255).save(pictures / "floats.tiff")
    tables = []
    for limit in (64, 0):
        monkeypatch.setattr(inference, "LIGHT_IMAGES", limit)
        infer("--image", pictures, "--output", tmp_path / "out.jsonl", "--device", "cpu", *arguments)
        tables.append([json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()])
    assert len(tables[0]) == len(tables[1]) == 5
    for light, full in zip(*tables, strict=True):
        assert light.pop("probability") == pytest.approx(full.pop("probability"), abs=2e-6)
        for tops in zip(light.pop("top_k", []), full.pop("top_k", []), strict=True):
            assert tops[0]["label"] == tops[1]["label"]
            assert tops[0]["probability"] == pytest.approx(tops[1]["probability"], abs=2e-6)
        assert light == full


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder, **changes):
    path = folder / "model.safetensors"
    save_file(load_file(path) | changes, path, metadata={"format": "pt"})


UNUSUAL = {
    "processor": lambda folder: edit_json(folder / "preprocessor_config.json", do_center=True),
    "processor's field": lambda folder: edit_json(folder / "preprocessor_config.json", sharpen=True),
    "no processor": lambda folder: (folder / "preprocessor_config.json").unlink(),
    "torn processor": lambda folder: (folder / "preprocessor_config.json").write_text("{"),
    "activation": lambda folder: edit_json(folder / "config.json", hidden_act="relu"),
    "model type": lambda folder: edit_json(folder / "config.json", model_type="vit"),
    "size": lambda folder: edit_json(folder / "config.json", hidden_size=16),
    "wrong size": lambda folder: edit_json(folder / "config.json", hidden_size=9),
    "half precision": lambda folder: edit_json(folder / "config.json", dtype="bfloat16"),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "torn weights": lambda folder: (folder / "model.safetensors").write_bytes(b"torn"),
    "one weight more": lambda folder: edit_weights(folder, other=torch.zeros(1)),
    "a shape that broadcasts": lambda folder: edit_weights(folder, **{"vit.norm.bias": torch.zeros(1)}),
    "half weights": lambda folder: edit_weights(folder, **{"vit.norm.bias": torch.zeros(8, dtype=torch.float16)}),
}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_whatever_is_unusual_takes_the_full_way(checkpoint, tmp_path, kind):
    """Which loads it or says what is wrong: see `test_what_is_no_checkpoint_gets_one_line`."""
    shutil.copytree(checkpoint, tmp_path / "unusual")
    assert load_light_checkpoint(str(tmp_path / "unusual"))
    UNUSUAL[kind](tmp_path / "unusual")
    assert load_light_checkpoint(str(tmp_path / "unusual")) is None
    assert load_light_checkpoint("someone/vit-mnist") is None


@pytest.mark.parametrize(
    "fields", [{}, {"qkv_bias": False, "num_hidden_layers": 3, "hidden_size": 16, "num_labels": 3}]
)
def test_shapes_of_the_weights_are_the_models(fields):
    config = VitMnistConfig(**fields)
    state = VitMnistForImageClassification(config).state_dict()
    assert weight_shapes(config) == {name: tuple(weight.shape) for name, weight in state.items()}


def test_a_corrupt_file_is_named_and_refused_or_skipped(infer, pictures, tmp_path):
    (pictures / "1.png").write_bytes((pictures / "1.png").read_bytes()[:80])
    done = infer("--image", pictures, "--output", tmp_path / "out.csv")
    assert done.code == 2 and done.out == "" and not (tmp_path / "out.csv").exists()
    assert "1.png cannot be read" in done.err and done.err.count("\n") == 1
    done = infer("--image", pictures, "--skip_bad_images")
    assert done.code == 0 and "Skipped" in done.out and "2 images, " in done.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--num_samples", "-1"], "--num_samples must be at least 0, got -1"),
        (["--top_k", "0"], "--top_k must be at least 1, got 0"),
        (["--batch_size", "0"], "--batch_size must be at least 1, got 0"),
        (["--num_sample", "3"], "Unknown flag --num_sample: did you mean num_samples?"),
        (["--split", "tset"], "invalid choice: 'tset'"),
        (["--output", "x.txt"], "--output must end in .jsonl, .csv, .parquet, got 'x.txt'"),
        (["--grid", "x.jpg"], "--grid must end in .png, got 'x.jpg'"),
        (["--output", "/dev/null/x.csv"], "folder /dev/null cannot be written"),
        (["--device", "cuda:99"], "no device 'cuda:99' here"),
        (["--image", "/nowhere/*.png"], "no image at '/nowhere/*.png'"),
        (["--dataset_name", "/nowhere"], "no dataset folder '/nowhere'"),
        (["--model", "/nowhere"], "no checkpoint folder '/nowhere'"),
    ],
)
def test_wrong_usage_gets_one_line_and_exit_code_2(infer, arguments, says):
    done = infer(*arguments)
    assert done.code == 2
    assert done.err.startswith("error: ") and done.err.count("\n") == 1
    assert says in done.err


def test_a_full_disk_while_writing_keeps_the_old_table(infer, tmp_path, monkeypatch):
    path = tmp_path / "predictions.csv"
    path.write_text("old\n")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pandas.DataFrame, "to_csv", full)
    done = infer("--output", path, "--num_samples", "3")
    assert done.code == 1 and "No space left on device" in done.err
    assert path.read_text() == "old\n" and [p.name for p in tmp_path.iterdir()] == ["predictions.csv"]


def test_predict_in_batches_and_none_at_all(sample, checkpoint):
    model, processor = hub.load_checkpoint(checkpoint)
    frames = sample["test"].images[:50]
    whole = predict(model.train(), processor, frames)
    assert whole.shape == (50, 10) and not whole.requires_grad
    torch.testing.assert_close(predict(model, processor, frames, batch_size=7), whole)
    assert predict(model, processor, frames[:0]).shape == (0, 10)


def test_devices():
    assert choose_device("cpu").type == "cpu"
    assert choose_device().type in ("cpu", "cuda", "mps", "xpu")
    with pytest.raises(InputError, match="no device 'toaster' here"):
        choose_device("toaster")
