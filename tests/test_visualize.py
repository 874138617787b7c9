"""Every view prints its facts and draws a picture."""

import json
import sys
from contextlib import contextmanager

import matplotlib.figure
import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest
import torch

from modeling_vit_mnist import VitMnistConfig, VitMnistForImageClassification, VitMnistImageProcessor, inference
from modeling_vit_mnist.checkpoints.folder import load_checkpoint, save_checkpoint
from modeling_vit_mnist.deskewing_vit_mnist import deskew
from modeling_vit_mnist.inference import plots
from modeling_vit_mnist.inference.architecture import parameter_table

from .conftest import SAMPLE


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    history = [entry for epoch in (1.0, 2.0) for entry in (
        {"epoch": epoch, "loss": 2 / epoch, "learning_rate": 0.01 * epoch},
        {"epoch": epoch, "eval_loss": 1 / epoch, "eval_accuracy": 0.5 * epoch - 0.1},
    )]  # fmt: skip
    save_checkpoint(
        folder, VitMnistForImageClassification(VitMnistConfig()), VitMnistImageProcessor(), card="",
        records={"history.json": {"log_history": history}},
    )  # fmt: skip
    return folder


@pytest.fixture
def view(run_script, checkpoint, tmp_path):
    def run(name, *arguments):
        return run_script(
            "run_visualize.py", name, "--model", checkpoint, "--output_dir", tmp_path / "pictures",
            "--dataset_name", SAMPLE, *arguments,
        )  # fmt: skip

    return run


def assert_has_picture(done, path):
    assert done.code == 0, done.err
    assert f"Wrote {path}" in done.out
    image = PIL.Image.open(path)
    assert image.width > 1000 and len(image.convert("L").getcolors()) > 20


@pytest.mark.parametrize("name", ["attention", "training", "mistakes"])
def test_pictures(view, name, tmp_path):
    assert_has_picture(view(name), tmp_path / "pictures" / f"{name}.png")


def test_facts_and_picture_of_the_sample(view, sample, tmp_path):
    done = view("data")
    assert_has_picture(done, tmp_path / "pictures" / "data.png")
    out = done.out
    pixels = torch.cat([sample["train"].images, sample["validation"].images]).double() / 255
    assert "Train:   4,000 images (3,667 to train on, 333 for validation)" in out
    assert "Test:    1,000 images" in out
    assert f"{pixels.mean():.4f} measured on train, 0.1307 used" in out
    assert f"{(pixels**2).mean().sub(pixels.mean() ** 2).sqrt():.4f} measured on train, 0.3081 used" in out
    assert "Batch: images [64, 1, 28, 28], labels [64]" in out


def test_facts_of_full_mnist(run_script, mnist, tmp_path):
    out = run_script("run_visualize.py", "data", "--dataset_name", mnist, "--output_dir", tmp_path).out
    assert "Train:   60,000 images" in out
    assert "0.1307 measured" in out and "0.3081 measured" in out


def test_parameter_table_counts_every_parameter(checkpoint):
    model, _ = load_checkpoint(checkpoint)
    rows = [line.split("  ") for line in parameter_table(model).splitlines()]
    rows = [[cell.strip() for cell in row if cell.strip()] for row in rows if not row[0].startswith("---")]
    values = {name: getattr(model.config, name) for name in (
        "hidden_size", "num_channels", "patch_size", "num_patches", "intermediate_size", "num_labels")}  # fmt: skip
    total = 0
    for _, shape, count, meaning in rows[1:-1]:
        total += int(count)
        formula = meaning.removeprefix("(q, k, v) ").replace(" x ", " * ")
        assert eval(formula, {}, values) == int(count) == eval(shape.replace(" x ", "*"))
    assert len(rows) == 2 + 32 and rows[-1] == ["total", "1,850"] and total == 1850


def test_shapes_after_every_stage(view):
    out = view("model", "--batch_size", "3").out
    stages = [line.strip().split("  ")[0] for line in out.splitlines() if line.endswith("]")]
    assert stages[:3] == [
        "pixel_values",
        "patch_embed (patches, projected)",
        "pos_drop (with CLS token and positions)",
    ]
    for line in (
        "pixel_values                                 [3, 1, 28, 28]",
        "[3, 16, 8]",
        "[3, 17, 24]",
        "[3, 17, 16]",
    ):
        assert line in out
    assert out.rstrip().endswith("[3, 10]") and len(stages) == 3 + 2 * 7 + 2


def test_mistakes_and_inference_print_the_same_accuracy(view, run_script, checkpoint):
    shown = view("mistakes").out.splitlines()[0].split(",")[0]
    inferred = run_script(
        "run_inference.py", "--model", checkpoint, "--dataset_name", SAMPLE, "--num_samples", "0"
    ).out.splitlines()[-1]
    assert inferred.startswith(shown)


def draw_seven(path, ink="black", paper="white", size=(300, 200), **options):
    image = PIL.Image.new("RGB", size, paper)
    points = [(x * min(size), y * min(size)) for x, y in ((0.3, 0.2), (0.7, 0.2), (0.45, 0.8))]
    PIL.ImageDraw.Draw(image).line(points, fill=ink, width=max(2, min(size) // 25))
    image.save(path, **options)
    return path


def test_framing_tells_what_it_finds_in_each_file(run_script, sample, tmp_path):
    PIL.Image.fromarray(sample["test"].images[0].numpy()).save(tmp_path / "a.png")
    draw_seven(tmp_path / "b.png", ink="blue", paper="yellow")
    draw_seven(tmp_path / "c.png", ink="white", paper="black", size=(64, 64))
    PIL.Image.new("L", (40, 30), 128).save(tmp_path / "d.png")
    PIL.Image.fromarray(np.full((40, 30), 40_000, np.uint16)).save(tmp_path / "e.png")
    PIL.Image.new("La", (9, 9)).convert("LA").save(tmp_path / "f.png")
    done = run_script("run_visualize.py", "framing", "--image", tmp_path, "--output_dir", tmp_path / "pictures")
    assert_has_picture(done, tmp_path / "pictures" / "framing.png")
    found = [line.removeprefix(f"{tmp_path}/") for line in done.out.splitlines()[:-1]]
    assert found[0] == "a.png: framed already"
    assert found[1].startswith("b.png: dark on light, strokes of ") and found[1].endswith(" pixels of 28")
    assert found[2].startswith("c.png: light on dark, strokes of ")
    assert found[3:] == [f"{name}.png: the image is blank" for name in "def"]


def test_framing_shows_pictures_upright_with_the_digit_in_its_box(run_script, drawn, tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    draw_seven(tmp_path / "x.jpg", exif=exif)
    run_script("run_visualize.py", "framing", "--image", tmp_path / "x.jpg", "--output_dir", tmp_path)
    picture, ink, digit, frame = drawn[0].axes
    height, width = picture.images[0].get_array().shape[:2]
    assert (width, height) == (200, 300) and picture.get_xlabel() == "x.jpg\n200x300 pixels"
    mask = digit.images[0].get_array()
    assert mask.shape == ink.images[0].get_array().shape
    (box,) = digit.patches
    rows, columns = np.nonzero(mask)
    expected = (columns.min() - 0.5, rows.min() - 0.5, np.ptp(columns) + 1, np.ptp(rows) + 1)
    assert (*box.get_xy(), box.get_width(), box.get_height()) == expected
    assert frame.images[0].get_array().shape == (28, 28) and frame.get_xlabel().startswith("dark on light\n")


def test_framing_shows_the_digit_upright_if_the_checkpoint_deskews(run_script, drawn, checkpoint, tmp_path):
    draw_seven(tmp_path / "x.png")
    PIL.Image.new("L", (40, 30), 128).save(tmp_path / "y.png")
    model, _ = load_checkpoint(checkpoint)
    save_checkpoint(tmp_path / "upright", model, VitMnistImageProcessor(do_deskew=True), card="", records={})
    files = (tmp_path / "x.png", tmp_path / "y.png")
    flags = ("run_visualize.py", "framing", "--image", *files, "--output_dir", tmp_path / "pictures")
    for folder, titles in (
        (checkpoint, ["Picture", "Ink", "Digit", "Frame"]),
        (tmp_path / "upright", ["Picture", "Ink", "Digit", "Frame", "Upright"]),
    ):
        assert run_script(*flags, "--model", folder).code == 0
        assert [axis.get_title() for axis in drawn[-1].axes if axis.get_title()] == titles
    frame, upright, *_, blank = (axis.images[0].get_array() for axis in (*drawn[-1].axes[3:5], drawn[-1].axes[9]))
    assert np.array_equal(upright, deskew(frame)) and not np.array_equal(upright, frame) and not blank.any()


def test_framing_changes_no_image_that_it_shows(run_script, tmp_path):
    before = draw_seven(tmp_path / "framing.png").read_bytes()
    done = run_script("run_visualize.py", "framing", "--image", tmp_path, "--output_dir", tmp_path)
    assert done.code == 2 and "would change the input" in done.err
    assert (tmp_path / "framing.png").read_bytes() == before


def test_framing_takes_twenty_images_that_can_be_read(run_script, tmp_path):
    for number in range(21):
        draw_seven(tmp_path / f"{number:02}.png", size=(32, 32))
    flags = ["framing", "--output_dir", tmp_path / "pictures", "--image"]
    done = run_script("run_visualize.py", *flags, tmp_path)
    assert done.code == 2 and "takes 1 to 20 images, got 21" in done.err
    (tmp_path / "20.png").write_bytes(b"not an image")
    done = run_script("run_visualize.py", *flags, tmp_path / "0?.png", tmp_path / "20.png")
    assert done.code == 2 and f"Cannot read {tmp_path / '20.png'}" in done.err
    done = run_script("run_visualize.py", *flags, tmp_path / "0?.png", tmp_path / "20.png", "--skip_bad_images")
    assert_has_picture(done, tmp_path / "pictures" / "framing.png")


@pytest.fixture
def drawn(monkeypatch):
    """The figures of `plots`, which are not saved."""
    figures = []

    @contextmanager
    def figure(path, width, height):
        with matplotlib.rc_context(plots.STYLE):
            figures.append(matplotlib.figure.Figure())
            yield figures[-1]

    monkeypatch.setattr(plots, "_figure", figure)
    return figures


def test_the_confusion_matrix_names_both_sides(drawn, tmp_path):
    """Rows are the dataset's classes, also those that the model lacks; columns are the model's."""
    labels, predictions = torch.tensor([0, 0, 1, 2, 2]), torch.tensor([0, 1, 1, 0, 0])
    probabilities = torch.nn.functional.one_hot(predictions, 2).float()
    plots.plot_mistakes(torch.zeros(5, 28, 28), labels, probabilities, ["$a^", "b\n", "only here"], tmp_path / "x")
    axis = drawn[0].subfigs[0].axes[0]
    assert axis.get_title() == "3 mistakes in 5 images"
    assert [label.get_text() for label in axis.get_xticklabels()] == ["$a^", "b\\n"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["$a^", "b\\n", "only here"]
    counts = {text.get_position()[::-1]: int(text.get_text()) for text in axis.texts}
    assert counts == {(0, 0): 1, (0, 1): 1, (1, 1): 1, (2, 0): 2}
    assert "$a^, not only here" in [axis.get_title() for axis in drawn[0].subfigs[1].axes]
    drawn[0].canvas.draw()  # without reading the names as formulas


def test_gaps_in_a_history(drawn, tmp_path):
    accuracies = [0.5, None, 0.9, float("nan"), 0.8]
    history = [{"epoch": epoch, "eval_loss": 1.0, "eval_accuracy": value} for epoch, value in enumerate(accuracies)]
    plots.plot_training(history, tmp_path / "x")
    _, accuracy, _ = drawn[0].axes
    np.testing.assert_array_equal(accuracy.lines[0].get_ydata(), [0.5, np.nan, 0.9, np.nan, 0.8])
    assert [text.get_text() for text in accuracy.texts] == ["best 90.00%, epoch 2"]


@pytest.mark.parametrize(
    "content",
    [
        {"log_history": []}, {"log_history": [{"epoch": 1.0, "loss": None, "eval_accuracy": None}]},
        {"log_history": [{"epoch": 1.0, "loss": float("nan")}]}, {"log_history": None}, ["log_history"],
    ],
)  # fmt: skip
def test_a_history_without_values_is_refused(view, tmp_path, content):
    (tmp_path / "history.json").write_text(json.dumps(content))
    done = view("training", "--model", tmp_path)
    assert done.code == 2 and "holds no record of its training" in done.err.splitlines()[-1]
    assert not (tmp_path / "pictures" / "training.png").exists()


@pytest.mark.parametrize(
    ("arguments", "unused"),
    [
        (["data", "--index", "3", "--split", "test"], "'data' does not use --index, --model, --split."),
        (["model", "--device", "cpu"], "'model' does not use --dataset_name, --device, --output_dir."),
        (["mistakes", "--image", "x.png"], "'mistakes' does not use --image."),
        (["mistakes", "--max_train_samples", "9"], "'mistakes' does not use --max_train_samples."),
    ],
)
def test_flags_without_an_effect_are_named(view, arguments, unused, caplog):
    assert view(*arguments).code == 0
    assert caplog.messages == [f"The view {unused}"]


@pytest.mark.parametrize("name", ["attention", "mistakes"])
def test_a_model_without_finite_results_is_a_failure(view, checkpoint, tmp_path, name):
    model, processor = load_checkpoint(checkpoint)
    torch.nn.init.constant_(model.head.weight, 3e38)
    model.save_pretrained(tmp_path / "broken")
    processor.save_pretrained(tmp_path / "broken")
    done = view(name, "--model", tmp_path / "broken", "--index", "7")
    assert done.code == 1 and done.err.splitlines()[-1].startswith("error: FloatingPointError: ")
    assert "not finite for image " + ("7: " if name == "attention" else "0, image 1, ") in done.err
    assert not (tmp_path / "pictures" / f"{name}.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dta"], "invalid choice: 'dta'"),
        (["attention", "--index", "1000"], "--index must lie in 0 to 999, got 1000"),
        (["attention", "--index", "-1"], "--index must lie in 0 to 999, got -1"),
        (["attention", "--index", *["1"] * 101], "--index takes at most 100 images, got 101"),
        (["framing"], "takes 1 to 20 images, got 0: pass --image FILE"),
        (["framing", "--image", "/nowhere.png"], "No image at '/nowhere.png'"),
        (["data", "--batch_size", "0"], "--batch_size must be from 1 to 100,000, got 0"),
        (["data", "--outptu_dir", "x"], "did you mean --output_dir"),
        (["training", "--model", "/nowhere"], "holds no record of its training"),
    ],
)
def test_wrong_usage_exits_with_a_one_line_error_and_code_2(view, arguments, message):
    done = view(*arguments)
    assert done.code == 2 and done.err.count("\n") == 1
    assert message in done.err


def test_missing_matplotlib_names_the_extra(run_script, monkeypatch):
    for name in ("visualize", "plots"):
        monkeypatch.delitem(sys.modules, f"modeling_vit_mnist.inference.{name}", raising=False)
        monkeypatch.delattr(inference, name, raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = run_script("run_visualize.py", "model")
    assert (done.code, done.err) == (1, "error: matplotlib is not installed: run pip install 'vit-mnist[plots]'\n")
