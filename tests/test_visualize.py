"""Every view prints its facts and draws a picture."""

import importlib
import json
import shutil
import sys
import warnings
from contextlib import contextmanager

import matplotlib.figure
import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest
import torch

from modeling_vit_mnist import VitMnistConfig, VitMnistForImageClassification, VitMnistImageProcessor, inference
from modeling_vit_mnist.checkpoints.folder import load_checkpoint, save_checkpoint
from modeling_vit_mnist.data.arguments import DataArguments
from modeling_vit_mnist.data.augmentation import AugmentationArguments, AugmentedDataset
from modeling_vit_mnist.data.splits import load_images
from modeling_vit_mnist.deskewing_vit_mnist import deskew
from modeling_vit_mnist.inference import plots, plots_network, plots_results
from modeling_vit_mnist.inference.analysis import (
    attention_rollout,
    calibration,
    count_warmup,
    learning_rates,
    position_similarity,
)
from modeling_vit_mnist.inference.architecture import parameter_budget, parameter_table
from modeling_vit_mnist.inference.plots_architecture import plot_architecture
from modeling_vit_mnist.inference.style import DARK, LIGHT, Style
from modeling_vit_mnist.training.metrics import expected_calibration_error

from .conftest import ROOT, SAMPLE, TINY


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    history = [entry for epoch in (1.0, 2.0) for entry in (
        {"epoch": epoch, "loss": 2 / epoch, "learning_rate": 0.01 * epoch},
        {"epoch": epoch, "eval_loss": 1 / epoch, "eval_accuracy": 0.5 * epoch - 0.1},
    )]  # fmt: skip
    save_checkpoint(
        folder, VitMnistForImageClassification(VitMnistConfig()), VitMnistImageProcessor(do_frame=True), card="",
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


IMAGE_VIEWS = ("patches", "filters", "attention", "rollout", "mistakes", "calibration")


@pytest.mark.parametrize("name", ["architecture", "parameters", "positions", *IMAGE_VIEWS])
def test_figures_say_what_they_show(view, drawn_captions, checkpoint, name, tmp_path):
    """On the screen, and in the figure, without a path."""
    done = view(name)
    assert_has_picture(done, tmp_path / "pictures" / f"{name}.png")
    assert done.out.startswith(f"Checkpoint: {checkpoint}, 1,850 parameters\n")
    (caption,) = drawn_captions
    assert checkpoint.name in caption and str(checkpoint) not in caption
    assert ("test images of mnist-5k" in caption) == (name in IMAGE_VIEWS)
    assert ("Data: 1,000 test images of mnist-5k\n" in done.out) == (name in IMAGE_VIEWS)


def test_curves_of_a_run_without_a_record_of_its_recipe(view, tmp_path):
    assert_has_picture(view("training"), tmp_path / "pictures" / "training.png")


def test_figures_for_dark_pages_and_as_drawings(view, tmp_path):
    """The same figure is the same file."""
    assert_has_picture(view("positions", "--dark"), tmp_path / "pictures" / "positions-dark.png")
    assert PIL.Image.open(tmp_path / "pictures" / "positions-dark.png").getpixel((1, 1))[:3] == (0x0D, 0x11, 0x17)
    drawing = tmp_path / "pictures" / "parameters.svg"
    contents = [view("parameters", "--format", "svg").out and drawing.read_bytes() for _ in range(2)]
    assert contents[0] == contents[1] and b"<svg" in contents[0] and b"<dc:date>" not in contents[0]


def test_colors_of_text_can_be_read():
    """WCAG 2.1 asks for a contrast of 4.5 for text of this size."""

    def luminance(color):
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in matplotlib.colors.to_rgb(color)]
        return np.dot(linear, (0.2126, 0.7152, 0.0722))

    for style in (LIGHT, DARK):
        for color in (style.ink, style.muted, style.red, style.blue, style.green):
            lights = sorted((luminance(color), luminance(style.paper)))
            assert (lights[1] + 0.05) / (lights[0] + 0.05) > 4.5, color
        lightness = [luminance(style.sequential(value)) for value in np.linspace(0, 1, 20)]
        steps = np.diff(lightness)
        assert (steps > 0).all() or (steps < 0).all()  # a map that is read in gray, too


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


def test_the_table_fits_80_columns(view):
    for name in ("vit-mnist-tiny", "vit-mnist-small"):
        lines = view("model", "--model", ROOT / name).out.splitlines()
        assert len(lines) > 40 and max(map(len, lines[1:])) <= 80, name


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
    values["d"] = values["hidden_size"]
    total = 0
    for _, shape, count, meaning in rows[1:-1]:
        total += int(count)
        formula = meaning.removeprefix("(q, k, v) ").replace("^", "**")
        assert eval(formula, {}, values) == int(count) == eval(shape.replace("x", "*"))
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
    shown = view("mistakes").out.splitlines()[2].split(",")[0]
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
    found = [line.removeprefix(f"{tmp_path}/") for line in done.out.splitlines()[1:-1]]
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
    save_checkpoint(
        tmp_path / "upright", model, VitMnistImageProcessor(do_frame=True, do_deskew=True), card="", records={}
    )
    files = (tmp_path / "x.png", tmp_path / "y.png")
    flags = ("run_visualize.py", "framing", "--image", *files, "--output_dir", tmp_path / "pictures")
    for folder, titles in (
        (checkpoint, ["1. Picture", "2. Ink", "3. Box", "4. Frame"]),
        (tmp_path / "upright", ["1. Picture", "2. Ink", "3. Box", "4. Frame", "5. Deskewed"]),
    ):
        assert run_script(*flags, "--model", folder).code == 0
        assert [axis.get_title() for axis in drawn[-1].axes if axis.get_title()] == titles
    frame, upright, *_, blank = (axis.images[0].get_array() for axis in (*drawn[-1].axes[3:5], drawn[-1].axes[9]))
    assert np.array_equal(upright, deskew(frame)) and not np.array_equal(upright, frame) and not blank.any()


def test_framing_is_not_shown_of_a_checkpoint_that_does_not_frame(run_script, checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "resizes")
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | {"do_frame": False}))
    image = draw_seven(tmp_path / "x.png")
    done = run_script("run_visualize.py", "framing", "--model", folder, "--image", image, "--output_dir", tmp_path)
    assert done.code == 2 and "resizes does not frame images (do_frame is off)" in done.err
    assert not (tmp_path / "framing.png").exists()


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
    assert done.code == 2 and "takes up to 20 images, got 21" in done.err
    (tmp_path / "20.png").write_bytes(b"not an image")
    done = run_script("run_visualize.py", *flags, tmp_path / "0?.png", tmp_path / "20.png")
    assert done.code == 2 and f"Cannot read {tmp_path / '20.png'}" in done.err
    done = run_script("run_visualize.py", *flags, tmp_path / "0?.png", tmp_path / "20.png", "--skip_bad_images")
    assert_has_picture(done, tmp_path / "pictures" / "framing.png")


@pytest.fixture
def drawn(monkeypatch):
    """The figures, which are not saved."""
    figures = []

    @contextmanager
    def figure(self, path, width, height, caption=""):
        with matplotlib.rc_context(self.parameters):
            figures.append(matplotlib.figure.Figure())
            yield figures[-1]

    monkeypatch.setattr(Style, "figure", figure)
    return figures


@pytest.fixture
def drawn_captions(monkeypatch):
    """The captions of figures."""
    captions, figure = [], Style.figure

    def recording(self, path, width, height, caption=""):
        captions.append(caption)
        return figure(self, path, width, height, caption)

    monkeypatch.setattr(Style, "figure", recording)
    return captions


def test_rollout_of_two_layers(drawn, tmp_path):
    """By hand: A = (0.5 a2 + 0.5) (0.5 a1 + 0.5), where a1 is the mean of two heads."""
    first = torch.tensor([[[[0.2, 0.8], [0.6, 0.4]], [[0.4, 0.6], [0.0, 1.0]]]])  # mean [[.3, .7], [.3, .7]]
    second = torch.tensor([[[[0.5, 0.5], [1.0, 0.0]]]])
    # 0.5 a1 + 0.5 = [[.65, .35], [.15, .85]]; 0.5 a2 + 0.5 = [[.75, .25], [.5, .5]]
    expected = torch.tensor([[[0.525, 0.475], [0.4, 0.6]]])
    torch.testing.assert_close(attention_rollout((first, second)), expected)
    images = torch.zeros(1, 28, 28, dtype=torch.uint8)
    plots_network.plot_rollout(images, (first, second), expected, ["1"], tmp_path / "x")
    maps = [axis for axis in drawn[0].axes if axis.images and axis.child_axes]
    assert [axis.get_title() for axis in maps] == ["layer 1", "layer 2", "rollout"]
    assert [axis.child_axes[0].texts[0].get_text() for axis in maps] == ["CLS 30%", "CLS 50%", "CLS 52%"]
    np.testing.assert_allclose([axis.images[0].get_array()[0, 0] for axis in maps], [0.7, 0.5, 0.475], atol=1e-6)
    assert len({(axis.images[0].norm.vmin, axis.images[0].norm.vmax) for axis in maps}) == 1


def test_every_head_is_shown_on_one_scale(drawn, sample, tmp_path):
    """A head that spreads its attention can be told from white: its largest value is over a third of the colors."""
    model, processor = load_checkpoint(TINY, attn_implementation="eager")
    images = sample["test"].images[:3]
    with torch.no_grad():
        attentions = model.eval()(processor.rescale_and_normalize(images), output_attentions=True).attentions
    plots_network.plot_attention(images, attentions, ["a", "b", "$c"], tmp_path / "x")
    maps = [axis for axis in drawn[0].axes if axis.child_axes]
    assert [axis.get_title() for axis in maps[:4]] == [f"layer {i}\nhead {j}" for i in (1, 2) for j in (1, 2)]
    assert len(maps) == 12
    for number, axis in enumerate(maps):
        layer, head = divmod(number % 4, 2)
        values = axis.images[0].get_array()
        np.testing.assert_array_equal(values.flatten(), attentions[layer][number // 4, head, 0, 1:])
        assert axis.images[0].norm(values.max()) > 0.35


def test_layers_of_many_heads_get_a_row_each(drawn, tmp_path):
    attentions = tuple(torch.full((2, 4, 5, 5), 0.2) for _ in range(3))
    plots_network.plot_attention(torch.zeros(2, 28, 28), attentions, ["1", "2"], tmp_path / "x")
    maps = [axis for axis in drawn[0].axes if axis.child_axes]
    assert len(maps) == 2 * 3 * 4
    assert [axis.get_title() for axis in maps[:5]] == [*(f"head {head}" for head in range(1, 5)), ""]
    assert [axis.get_ylabel() for axis in maps[::4]] == ["layer 1", "layer 2", "layer 3"] * 2


def test_similarity_of_positions_is_their_cosine(checkpoint):
    model, _ = load_checkpoint(checkpoint)
    positions = model.vit.pos_embed[0].detach().double().numpy()
    expected = [[a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for b in positions] for a in positions]
    np.testing.assert_allclose(position_similarity(model), expected, atol=1e-6)


def test_an_image_without_a_digit_is_no_correct_answer(view, run_script, tmp_path):
    """Whatever the network says of the black frame; the figures agree with run_inference.py."""
    for label in ("1", "7"):
        (tmp_path / "digits" / "test" / label).mkdir(parents=True)
        shutil.copy(ROOT / "vit-mnist-small" / "digit-7.png", tmp_path / "digits" / "test" / label)
    for label in range(10):
        folder = tmp_path / "digits" / "test" / str(label)
        folder.mkdir(exist_ok=True)
        PIL.Image.new("L", (60, 60), 230).save(folder / "blank.png")
    flags = ["--model", ROOT / "vit-mnist-small", "--dataset_name", tmp_path / "digits"]
    accuracy = "Accuracy: 8.33% (1 of 12 test images of digits), 10 without a digit"
    assert accuracy in run_script("run_inference.py", *flags).out
    assert accuracy in view("mistakes", *flags).out
    assert "(2 images, 15 bins), without 10 that hold no digit" in view("calibration", *flags).out
    for images in (tmp_path / "digits" / "test" / label / "digit-7.png" for label in "17"):
        images.unlink()
    done = run_script("run_visualize.py", "mistakes", *flags)
    assert done.code == 2 and "None of the test images of digits holds a digit" in done.err


def test_many_classes_make_no_picture_of_hundreds_of_megapixels(tmp_path):
    classes = torch.arange(200)
    probabilities = torch.eye(200).roll(1, 0)
    plots_results.plot_mistakes(
        torch.zeros(200, 28, 28), classes, probabilities, [*map(str, range(200))], tmp_path / "x.png"
    )
    width, height = PIL.Image.open(tmp_path / "x.png").size
    assert width * height < 30e6


def test_calibration_by_hand_and_as_the_metric_has_it(drawn, sample, tmp_path):
    """Five images in bins of a fifth: 0.5 and 0.6 share one, with one of them right; 0.9 and 1.0, both right; 0.8,
    wrong, in the bin that is closed above. (|1 - 1.1| + |2 - 1.9| + |0 - 0.8|) / 5 = 0.2."""
    top = torch.tensor([0.5, 0.6, 0.9, 1.0, 0.8], dtype=torch.float64)
    probabilities = torch.stack([top, 1 - top], 1)
    found = calibration(probabilities, torch.tensor([0, 1, 0, 0, 1]), bins=5)
    assert found.counts.tolist() == [0, 0, 2, 1, 2] and found.error == pytest.approx(0.2)
    np.testing.assert_allclose(found.accuracy, [np.nan, np.nan, 0.5, 0, 1])
    np.testing.assert_allclose(found.confidence, [np.nan, np.nan, 0.55, 0.8, 0.95])
    plots_results.plot_calibration(found, tmp_path / "x")
    assert drawn[0].axes[0].get_title() == "Expected calibration error: 0.2000"
    assert drawn[0].axes[1].get_ylabel() == "5 images"

    probabilities = torch.rand(300, 10, generator=torch.Generator().manual_seed(0)).mul(6).softmax(1)
    labels = sample["test"].labels[:300]
    expected = expected_calibration_error(probabilities.numpy(), labels.numpy())
    assert calibration(probabilities, labels).error == pytest.approx(expected, abs=1e-6)


def test_the_learning_rate_of_each_step(drawn, tmp_path):
    """That of the bundled runs, which Trainer logged after each epoch; the warmup is enlarged."""
    for name, warmup in (("vit-mnist-tiny", 215), ("vit-mnist-small", 8130)):
        history = json.loads((ROOT / name / "history.json").read_text())["log_history"]
        run = json.loads((ROOT / name / "run.json").read_text())
        steps = history[-1]["step"]
        rates = learning_rates(run["training"], steps)
        logged = [(entry["step"], entry["learning_rate"]) for entry in history if "learning_rate" in entry]
        assert len(logged) >= 80 and len(rates) == steps
        np.testing.assert_allclose([rates[step - 1] for step, _ in logged], [rate for _, rate in logged], rtol=1e-9)
        assert count_warmup(run["training"], steps) == warmup
        plots_results.plot_training(history, tmp_path / "x", run=run)
        loss, _, rate = drawn[-1].axes[:3]
        shown = [text.get_text() for text in rate.texts] + [inset.get_title() for inset in rate.child_axes]
        assert shown == [f"warmup: {warmup:,} steps"]
        assert rate.get_ylim()[1] >= max(rates)
        ends = run["augmentation"]["augment_until"] * history[-1]["epoch"]
        assert loss.lines[2].get_xdata() == [ends, ends]
        assert any(f"after epoch {ends:g}" in text.get_text() for text in loss.texts)
    assert learning_rates({"learning_rate": 0.1, "lr_scheduler_type": "reduce_lr_on_plateau"}, 10) is None


@pytest.mark.parametrize(
    "fields",
    [{}, {"num_hidden_layers": 5, "num_attention_heads": 4, "patch_size": 4}, {"image_size": 8, "patch_size": 8},
     {"hidden_size": 6, "num_hidden_layers": 1, "num_attention_heads": 3, "num_labels": 47}],
)  # fmt: skip
def test_the_architecture_is_drawn_from_the_config(drawn, tmp_path, fields):
    config = VitMnistConfig(**fields)
    plot_architecture(config, tmp_path / "x")
    texts = [text.get_text() for text in drawn[0].axes[0].texts]
    model = VitMnistForImageClassification(config)
    budget = parameter_budget(config)
    assert sum(sum(counts.values()) for counts in budget.values()) == model.num_parameters()
    block = sum(parameter.numel() for parameter in model.vit.blocks[0].parameters())
    depth, heads, patch = config.num_hidden_layers, config.num_attention_heads, config.patch_size
    assert f"total {model.num_parameters():,}" in texts
    assert f"{depth} block{'s' if depth > 1 else ''} of {block:,} parameters" in texts
    assert f"attention: {heads} heads of {config.hidden_size // heads}" in texts
    assert f"patch embedding: linear {patch**2} → {config.hidden_size}" in texts
    assert f"{1 + config.num_patches} x {config.hidden_size}" in texts
    squares = [p for p in drawn[0].axes[0].patches if type(p) is matplotlib.patches.Rectangle]
    tokens, classes = min(24, 1 + config.num_patches), min(24, config.num_labels)
    assert len(squares) == 1 + tokens + classes
    cuts = [len(lines.get_segments()) for lines in drawn[0].axes[0].collections]
    assert cuts == [config.image_size // patch - 1] * 2
    frames = [p for p in drawn[0].axes[0].patches if type(p) is matplotlib.patches.FancyBboxPatch]
    assert len(frames) == 8 + min(depth, 6)


def test_patches_and_filters_show_what_the_network_computes(drawn, sample, tmp_path):
    model, processor = load_checkpoint(TINY)
    images = sample["test"].images[:2]
    with torch.no_grad():
        tokens = model.vit.patch_embed(processor.rescale_and_normalize(images))
    plots_network.plot_patches(images[0], tokens[0], 7, tmp_path / "x")
    _image, *patches, table, _bar = drawn[0].axes if drawn[0].axes else [a for f in drawn[0].subfigs for a in f.axes]
    assert len(patches) == 16 and table.get_title() == "16 tokens\nof 8 numbers"
    assert np.array_equal(patches[6].images[0].get_array(), images[0, 7:14, 14:21])
    # The seventh token is the seventh patch, normalized, times each filter.
    pixels = (images[0, 7:14, 14:21].float() / 255 - 0.1307) / 0.3081
    weights, bias = model.vit.patch_embed.proj.weight[:, 0], model.vit.patch_embed.proj.bias
    expected = ((weights * pixels).sum((1, 2)) + bias).detach()
    np.testing.assert_allclose(table.images[0].get_array()[6], expected, atol=1e-4)
    plots_network.plot_filters(model, images, tokens, tmp_path / "x")
    grids = [axis.images[0].get_array() for axis in drawn[1].axes if axis.images]
    assert np.array_equal(grids[3], model.vit.patch_embed.proj.weight[3, 0].detach())
    np.testing.assert_allclose(grids[8 + 1 + 3][1, 2], expected[3], atol=1e-4)


def test_warps_are_those_of_the_run(view, drawn, monkeypatch):
    """Column n shows what the dataset gives in epoch n of the recorded run, which trained on other images here."""
    draws = AugmentationArguments(max_translate=1, max_rotation=8, max_scale_jitter=0.08, max_shear=6)
    done = view("warps", "--model", TINY, "--index", "5", "9")
    assert done.code == 0, done.err
    assert "Augmentation: shift up to 1 px, rotation 8°, scale 8%, shear 6°\n" in done.out
    dataset = load_images(DataArguments(dataset_name=str(SAMPLE)), load_checkpoint(TINY)[1], ["train"])["train"]
    augmented = AugmentedDataset(dataset, draws, seed=0, num_epochs=80)
    shown = [axis.images[0].get_array() for axis in drawn[0].axes if axis.images]
    assert len(shown) == 16 and np.array_equal(shown[8], dataset.images[9])
    for epoch in (0, 3):
        augmented.set_epoch(epoch)
        pixels = (shown[9 + epoch] / 255 - 0.1307) / 0.3081
        np.testing.assert_allclose(pixels, augmented[9]["pixel_values"][0], atol=1e-5)


@pytest.mark.parametrize(
    ("run", "message"),
    [(None, "cannot read run.json"), ("[1]", "cannot read run.json"),
     ({"augmentation": {"max_shear": "x"}}, "cannot read run.json"),
     ({"augmentation": {}}, "was trained without augmentation")],
)  # fmt: skip
def test_warps_need_a_record_of_the_recipe(view, checkpoint, tmp_path, run, message):
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    if isinstance(run, dict):
        run = json.dumps(json.loads((TINY / "run.json").read_text()) | run)
    if run:
        (folder / "run.json").write_text(run)
    done = view("warps", "--model", folder)
    assert done.code == 2 and message in done.err.splitlines()[-1]


def test_framing_shows_images_of_the_split_on_paper_if_no_file_is_given(view, drawn):
    done = view("framing", "--index", "3", "700")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert [line.split(", strokes")[0] for line in lines[1:3]] == [
        "image 3: dark on light",
        "image 700: dark on light",
    ]
    assert drawn[0].axes[0].images[0].get_array().shape[:2] == (240, 300)


def test_grids_name_the_files_they_show(drawn, tmp_path):
    row = {"prediction": "7", "probability": 0.5, "digit_score": 2.0}
    files = ["/somewhere/a.png", "/somewhere/a-very-long-name-of-a-scan.png"]
    plots.plot_predictions(torch.zeros(2, 28, 28), [row | {"image": file} for file in files], tmp_path / "x")
    assert [axis.get_xlabel() for axis in drawn[0].axes] == ["50.0%\na.png", "50.0%\na-v...scan.png"]
    plots.plot_predictions(torch.zeros(1, 28, 28), [row | {"label": "7"}], tmp_path / "x")
    assert [axis.get_xlabel() for axis in drawn[1].axes] == ["50.0%"]


def test_the_confusion_matrix_names_both_sides(drawn, tmp_path):
    """Rows are the dataset's classes, also those that the model lacks; columns are the model's."""
    labels, predictions = torch.tensor([0, 0, 1, 2, 2]), torch.tensor([0, 1, 1, 0, 0])
    probabilities = torch.nn.functional.one_hot(predictions, 2).float()
    plots_results.plot_mistakes(
        torch.zeros(5, 28, 28), labels, probabilities, ["$a^", "b\n", "only here"], tmp_path / "x"
    )
    axis = drawn[0].subfigs[0].axes[0]
    assert axis.get_title() == "60.00% wrong: 3 of 5 images"
    assert [label.get_text() for label in axis.get_xticklabels()] == ["$a^", "b\\n"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["$a^ (2)", "b\\n (1)", "only here (2)"]
    percent = {text.get_position()[::-1]: float(text.get_text()) for text in axis.texts}
    assert percent == {(0, 0): 50, (0, 1): 50, (1, 1): 100, (2, 0): 100}
    assert "$a^,\nnot only here" in [axis.get_title() for axis in drawn[0].subfigs[1].axes]
    drawn[0].canvas.draw()  # without reading the names as formulas


@pytest.mark.parametrize(
    "run",
    [
        {"augmentation": {"augment_until": "x"}, "training": {"learning_rate": "x"}},
        {"augmentation": {"augment_until": float("nan")}, "training": {"learning_rate": 0.1, "warmup_steps": 1e300}},
        {"training": {"learning_rate": 0.1, "warmup_steps": float("inf"), "lr_scheduler_type": "linear"}},
        {"training": {"learning_rate": 0.1, "warmup_steps": 5, "lr_scheduler_type": []}},
    ],
)
def test_records_of_strangers_leave_the_curves_as_they_are(drawn, tmp_path, run):
    history = [{"epoch": 1, "step": 10, "learning_rate": 0.1}, {"epoch": float("inf"), "step": "x", "loss": 1}]
    plots_results.plot_training(history, tmp_path / "x", run=run)
    assert drawn[0].axes[2].lines[0].get_ydata() == [0.1] and not drawn[0].axes[2].child_axes


def test_long_names_of_classes_leave_room_for_the_matrix(tmp_path):
    names = [f"a class with a long name {number}" for number in range(10)]
    labels = torch.arange(10)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # matplotlib warns if there is no room
        plots_results.plot_mistakes(
            torch.zeros(10, 28, 28), labels, torch.eye(10).roll(1, 0), names, tmp_path / "x.png"
        )
        plots.plot_data(torch.zeros(10, 28, 28, dtype=torch.uint8), labels, names, tmp_path / "y.png")


def test_gaps_in_a_history(drawn, tmp_path):
    accuracies = [0.5, None, 0.9, float("nan"), 0.8]
    history = [{"epoch": epoch, "eval_loss": 1.0, "eval_accuracy": value} for epoch, value in enumerate(accuracies)]
    plots_results.plot_training(history, tmp_path / "x")
    _, accuracy, _ = drawn[0].axes
    np.testing.assert_array_equal(accuracy.lines[0].get_ydata(), [0.5, np.nan, 0.9, np.nan, 0.8])
    assert [text.get_text() for text in accuracy.texts] == ["selected: 90.00%, epoch 2"]


@pytest.mark.parametrize(
    ("training", "epoch"),
    [
        ({}, 2), ({"metric_for_best_model": "accuracy", "greater_is_better": True}, 2),
        ({"metric_for_best_model": "loss", "greater_is_better": False}, 1), ({"load_best_model_at_end": False}, 4),
    ],
)  # fmt: skip
def test_the_selected_epoch_is_marked(training, epoch, drawn, tmp_path):
    accuracies, losses = [0.5, 0.7, 0.9, 0.9, 0.8], [3.0, 0.5, 1.0, 2.0, 4.0]
    measured = enumerate(zip(accuracies, losses, strict=True))
    history = [{"epoch": at, "eval_accuracy": accuracy, "eval_loss": loss} for at, (accuracy, loss) in measured]
    plots_results.plot_training(history, tmp_path / "x", run={"training": training})
    _, accuracy, _ = drawn[0].axes
    assert [text.get_text() for text in accuracy.texts] == [f"selected: {accuracies[epoch]:.2%}, epoch {epoch}"]


@pytest.mark.parametrize(("best_epoch", "marked"), [(None, 2), (1, 1), (3, None)])
def test_only_an_epoch_that_was_evaluated_is_marked_as_selected(best_epoch, marked, drawn, tmp_path):
    """Trainer does not select the evaluation before the first step."""
    history = [{"epoch": at, "eval_accuracy": value} for at, value in enumerate((0.9, 0.7, 0.8))]
    plots_results.plot_training(history, tmp_path / "x", best_epoch=best_epoch)
    shown = [text.get_text() for text in drawn[0].axes[1].texts]
    assert shown == ([f"selected: {(0.9, 0.7, 0.8)[marked]:.2%}, epoch {marked}"] if marked else [])


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
        (["model", "--dark"], "'model' does not use --dark, --dataset_name, --output_dir."),
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


@pytest.fixture
def figures(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("figures")


def test_figures_of_the_docs_are_there_in_light_and_dark(figures, tmp_path):
    known = figures.figures(tmp_path)
    expected = {f"{name}{twin}.{kind}" for name, (_, kind, _) in known.items() for twin in ("", "-dark")}
    assert {path.name for path in (ROOT / "docs" / "figures").iterdir()} == expected | {"accuracy.csv"}
    assert len(known) == 15


def test_figures_of_the_docs_are_drawn_again_as_the_same_files(run_script, tmp_path):
    done = run_script("benchmarks/figures.py", "accuracy", "positions", "--output_dir", tmp_path)
    assert done.code == 0, done.err
    drawn = sorted(tmp_path.iterdir())
    assert len(drawn) == 4
    again = tmp_path / "again"
    run_script("benchmarks/figures.py", "accuracy", "positions", "--output_dir", again)
    assert [path.read_bytes() for path in sorted(again.iterdir())] == [path.read_bytes() for path in drawn]
    done = run_script("benchmarks/figures.py", "acuracy")
    assert done.code == 2 and "No figure 'acuracy': choose from architecture, " in done.err


def test_accuracies_that_are_drawn_have_sources(figures):
    """Ours are those of the records beside the weights, and of the tables in benchmarks/README.md."""
    rows = {row["network"]: row for row in figures.read_results()}
    tables = (ROOT / "benchmarks" / "README.md").read_text("utf-8")
    for row in rows.values():
        assert row["parameters"] and row["accuracy"] and row["source"]
        if row["kind"] == "published":
            assert row["source"].startswith("https://") and row["seconds"] is None
        elif row["kind"] != "original":
            line = f"n = {row['n']:.0f}** | "
            mean = (
                f"**{row['accuracy']:.2f} ± {row['std']:.2f}** | | {row['seconds']:,.0f} ± {row['seconds_std']:.0f} |"
            )
            assert any(line in text and mean in text for text in tables.splitlines()), row
    for name in ("vit-mnist-tiny", "vit-mnist-best", "vit-mnist-small"):
        seeds, results = (json.loads((ROOT / name / f"{file}.json").read_text()) for file in ("seeds", "all_results"))
        row = rows[name]
        assert row["parameters"] == results["parameters"] and row["n"] == seeds["n"]
        assert row["accuracy"] == pytest.approx(seeds["test_mean"], abs=0.005)
        assert row["std"] == pytest.approx(seeds["test_std"], abs=0.005)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dta"], "invalid choice: 'dta'"),
        (["attention", "--index", "1000"], "--index must lie in 0 to 999, got 1000"),
        (["attention", "--index", "-1"], "--index must lie in 0 to 999, got -1"),
        (["attention", "--index", *["1"] * 101], "--index takes at most 100 images, got 101"),
        (["framing", "--index", *["1"] * 21], "takes up to 20 images, got 21: pass fewer"),
        (["attention", "--format", "pdf"], "invalid choice: 'pdf'"),
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
    figures = ("style", "plots", "plots_network", "plots_results", "plots_architecture")
    for name in ("visualize", "subject", "report", *figures):
        monkeypatch.delitem(sys.modules, f"modeling_vit_mnist.inference.{name}", raising=False)
        monkeypatch.delattr(inference, name, raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = run_script("run_visualize.py", "model")
    assert (done.code, done.err) == (1, "error: matplotlib is not installed: run pip install 'vit-mnist[plots]'\n")
