"""The image processor: MNIST bit for bit, every kind of image, MNIST's framing, and no NaN."""

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import pipeline

from modeling_vit_mnist import VitMnistConfig, VitMnistForImageClassification, VitMnistImageProcessor
from modeling_vit_mnist.data.arguments import DataArguments
from modeling_vit_mnist.data.splits import load_images

PROCESSOR = VitMnistImageProcessor()


def as_torchvision(images: np.ndarray) -> torch.Tensor:
    """What ToTensor and Normalize((0.1307,), (0.3081,)) compute, in their order of operations."""
    pixels = torch.from_numpy(images)[:, None].to(torch.float32).div(255)
    return pixels.sub_(torch.tensor([0.1307])).div_(torch.tensor([0.3081]))


def pixels(images, **kwargs) -> torch.Tensor:
    return PROCESSOR(images, return_tensors="pt", **kwargs).pixel_values


def grayscale(images, **kwargs) -> np.ndarray:
    """Grayscale and resized images, neither rescaled nor normalized."""
    return PROCESSOR(images, do_rescale=False, do_normalize=False, return_tensors="np", **kwargs).pixel_values[:, 0]


@pytest.fixture(scope="module")
def digits(sample) -> np.ndarray:
    return sample["test"].images[:40].numpy()


def test_mnist_equals_torchvision_bit_for_bit(digits):
    assert torch.equal(pixels([PIL.Image.fromarray(digit) for digit in digits]), as_torchvision(digits))


def test_every_gray_level_equals_torchvision_bit_for_bit():
    ramp = np.arange(256, dtype=np.uint8).repeat(4)[:784].reshape(1, 28, 28)
    other = np.arange(60, 256, dtype=np.uint8).repeat(4).reshape(1, 28, 28)
    for images in (ramp, other):
        assert torch.equal(pixels(images), as_torchvision(images))
        assert torch.equal(PROCESSOR.rescale_and_normalize(torch.from_numpy(images)), as_torchvision(images))


FORMS = {
    "L": PIL.Image.fromarray,
    "RGB": lambda d: PIL.Image.fromarray(d).convert("RGB"),
    "RGBA": lambda d: PIL.Image.fromarray(d).convert("RGBA"),
    "LA": lambda d: PIL.Image.fromarray(d).convert("LA"),
    "P": lambda d: PIL.Image.fromarray(d).convert("P"),
    "I": lambda d: PIL.Image.fromarray(d.astype(np.int32)),
    "I;16": lambda d: PIL.Image.fromarray(d.astype(np.uint16) * 257),
    "F": lambda d: PIL.Image.fromarray(d.astype(np.float32) / 255),
    "numpy HW": lambda d: d,
    "numpy HW1": lambda d: d[..., None],
    "numpy 1HW": lambda d: d[None],
    "numpy HW3": lambda d: d[..., None].repeat(3, -1),
    "numpy 3HW": lambda d: d[None].repeat(3, 0),
    "numpy int64": lambda d: d.astype(np.int64),
    "numpy uint16": lambda d: d.astype(np.uint16) * 257,
    "numpy float": lambda d: d.astype(np.float32) / 255,
    "torch HW": torch.tensor,
    "torch 1HW": lambda d: torch.tensor(d)[None],
    "torch 3HW": lambda d: torch.tensor(d)[None].repeat(3, 1, 1),
    "torch HW3": lambda d: torch.tensor(d)[..., None].repeat(1, 1, 3),
    "torch float": lambda d: torch.tensor(d) / 255,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_an_image_gives_the_same_pixels(form, digits):
    expected = as_torchvision(digits[:3])
    images = [FORMS[form](digit) for digit in digits[:3]]
    assert torch.equal(pixels(images), expected)
    assert torch.equal(pixels(images[0]), expected[:1])
    if not isinstance(images[0], PIL.Image.Image):  # four, since a batch of three would be one color image
        stack = np.stack if isinstance(images[0], np.ndarray) else torch.stack
        assert torch.equal(pixels(stack([*images, images[0]])), expected[[0, 1, 2, 0]])
        assert torch.equal(pixels([stack([*images, images[0]])[:, None][:, 0], images[1]])[4:], expected[1:2])


def test_black_and_white_and_bool(digits):
    binary = digits[0] > 127
    expected = as_torchvision(binary[None] * np.uint8(255))
    assert torch.equal(pixels(PIL.Image.fromarray(binary)), expected)
    assert PIL.Image.fromarray(binary).mode == "1"
    assert torch.equal(pixels(binary), expected)


def test_color_floats_and_a_mixed_batch(digits):
    color = np.stack([digits[0]] * 3, -1) / 255
    assert torch.allclose(pixels(color), as_torchvision(digits[:1]), atol=1e-6)
    mixed = pixels([digits[0], digits[1].astype(np.float64) / 255])
    assert torch.allclose(mixed, as_torchvision(digits[:2]), atol=1e-6)


def test_luma_equals_pillows():
    color = np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    expected = np.asarray(PIL.Image.fromarray(color).convert("L"))
    assert np.array_equal(grayscale(color)[0], expected)
    assert np.array_equal(grayscale(color.transpose(2, 0, 1))[0], expected)
    assert np.abs(grayscale(color / 255)[0] * 255 - expected).max() <= 1


def test_transparent_pixels_show_the_background():
    ink = np.zeros((28, 28, 4), np.uint8)
    ink[8:20, 12:16, 3] = 255  # opaque black on transparent
    for image in (PIL.Image.fromarray(ink), ink):
        assert np.array_equal(np.unique(grayscale(image)), [0, 255]) and grayscale(image)[0, 0, 0] == 255
        assert not grayscale(image, background=0).any()
        assert grayscale(image, do_invert="auto")[0, 10, 13] == 255  # light ink on dark paper, as in MNIST
    half = np.array([[[0, 0, 0, 0.5]]], np.float32).repeat(28, 0).repeat(28, 1)
    assert grayscale(half)[0, 0, 0] == pytest.approx(0.5)
    palette = PIL.Image.fromarray(digit_like()).convert("P")
    palette.info["transparency"] = 0
    assert grayscale(palette)[0, 0, 0] == 255


def digit_like(side: int = 28) -> np.ndarray:
    image = np.zeros((side, side), np.uint8)
    image[side // 4 : side * 3 // 4, side // 2 - side // 14 : side // 2 + side // 14] = 255
    return image


def test_resizing_equals_pillows_antialiased_bilinear():
    image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 70), dtype=np.uint8))
    assert np.array_equal(grayscale(image)[0], np.asarray(image.resize((28, 28), PIL.Image.Resampling.BILINEAR)))
    assert grayscale(np.asarray(image) / 255).shape == (1, 28, 28)
    assert VitMnistImageProcessor(size=32)(image).pixel_values[0].shape == (1, 32, 32)


def test_auto_invert_inverts_dark_ink_on_light_paper(digits):
    for flipped in (digits, 255 - digits):
        assert np.array_equal(grayscale(list(flipped), do_invert="auto"), digits)
    assert np.array_equal(grayscale(list(digits), do_invert=True), 255 - digits)
    assert np.array_equal(grayscale(list(digits)), digits)


def test_centering_leaves_mnist_unchanged(digits):
    assert np.array_equal(grayscale(list(digits), do_center=True), digits)


@pytest.mark.parametrize("scale", [1, 3, 12])
@pytest.mark.parametrize("corner", [(0, 0), (40, 5), (100, 100)])
def test_centering_restores_mnists_framing(digits, scale, corner):
    """An enlarged digit anywhere on a sheet is framed as in MNIST, up to resampling."""
    for digit in digits[:5]:
        side = 28 * scale
        sheet = np.zeros((side + 120, side + 120), np.uint8)
        large = PIL.Image.fromarray(digit).resize((side, side), PIL.Image.Resampling.NEAREST)
        sheet[corner[0] : corner[0] + side, corner[1] : corner[1] + side] = np.asarray(large)
        framed = grayscale(sheet, do_center=True)[0].astype(float)
        rows, columns = np.nonzero(framed)
        assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20
        center = [(np.indices((28, 28))[axis] * framed).sum() / framed.sum() for axis in (0, 1)]
        assert center == pytest.approx([14, 14], abs=0.51)
        assert np.abs(framed - digit).mean() < 10


def test_centering_a_noisy_photograph():
    noise = np.random.default_rng(0).normal(0, 6, (200, 150))
    photo = np.clip(200 - 150 * (np.pad(digit_like(80), ((20, 100), (10, 60))) > 0) + noise, 0, 255).astype(np.uint8)
    framed = grayscale(photo, do_invert="auto", do_center=True)[0]
    rows, _ = np.nonzero(framed > 40)
    assert (rows.min(), rows.max()) == (4, 23)


@pytest.mark.parametrize("value", [0, 7, 255])
@pytest.mark.parametrize("options", [{}, {"do_center": True}, {"do_invert": "auto", "do_center": True}])
def test_blank_images_give_no_nan(value, options):
    image = np.full((50, 30), value, np.uint8)
    for form in (image, image / np.float32(255), PIL.Image.fromarray(image)):
        assert pixels(form, **options).isfinite().all()


def test_a_hairline_and_a_dot_can_be_centered():
    for mark in (np.s_[0:400, 200], np.s_[3, 0:400], np.s_[399, 399]):
        image = np.zeros((400, 400), np.uint8)
        image[mark] = 255
        assert pixels(image, do_center=True).isfinite().all()


def test_empty_batch_and_return_types(digits):
    assert pixels([]).shape == (0, 1, 28, 28)
    assert isinstance(PROCESSOR(digits[0]).pixel_values, list)
    assert PROCESSOR(digits[0], return_tensors="np").pixel_values.dtype == np.float32


@pytest.mark.parametrize(
    ("image", "options", "error", "message"),
    [
        (np.zeros((2, 2, 2, 2, 2)), {}, ValueError, r"got \(2, 2, 2, 2, 2\)"),
        (np.zeros(784), {}, ValueError, r"got \(784,\)"),
        (np.zeros((0, 28)), {}, ValueError, r"got \(0, 28\)"),
        (np.full((28, 28), 255.0), {}, ValueError, "lie in \\[0, 1\\], got values from 255 to 255"),
        (np.full((28, 28), np.nan), {}, ValueError, "got values from nan to nan"),
        (np.full((28, 28), -1), {}, ValueError, "got -1 to -1"),
        ({"image": 1}, {}, TypeError, "got <class 'dict'>"),
        (np.zeros((28, 28)), {"do_invert": "maybe"}, ValueError, "got 'maybe'"),
        (np.zeros((28, 28)), {"background": 256}, ValueError, "got 256"),
        ([np.zeros((28, 28)), np.zeros((30, 28))], {"do_resize": False}, ValueError, "28x28, 30x28"),
    ],
)
def test_unusable_images_are_refused(image, options, error, message):
    with pytest.raises(error, match=message):
        PROCESSOR(image, **options)


def test_files_keep_their_transparency(tmp_path):
    ink = np.zeros((28, 28, 4), np.uint8)
    ink[8:20, 12:16, 3] = 255
    PIL.Image.fromarray(ink).save(tmp_path / "ink.png")
    assert grayscale(str(tmp_path / "ink.png"))[0, 0, 0] == 255
    assert np.array_equal(grayscale([tmp_path / "ink.png"] * 2)[1], grayscale(ink)[0])


def test_a_saved_processor_loads_unchanged(tmp_path, digits):
    VitMnistImageProcessor(do_invert="auto", do_center=True, size=35, background=0).save_pretrained(tmp_path)
    loaded = VitMnistImageProcessor.from_pretrained(tmp_path)
    assert (loaded.do_invert, loaded.do_center, loaded.size.height, loaded.background) == ("auto", True, 35, 0)
    PROCESSOR.save_pretrained(tmp_path)
    again = VitMnistImageProcessor.from_pretrained(tmp_path)(list(digits), return_tensors="pt").pixel_values
    assert torch.equal(again, as_torchvision(digits))


def test_pipeline_gives_the_models_probabilities(digits):
    """Pipelines convert every image to RGB. The processor converts it back without loss."""
    torch.manual_seed(0)
    model = VitMnistForImageClassification(VitMnistConfig()).eval()
    classify = pipeline("image-classification", model=model, image_processor=PROCESSOR)
    answers = classify([PIL.Image.fromarray(digit) for digit in digits[:4]], top_k=10)
    expected = model(as_torchvision(digits[:4])).logits.softmax(-1)
    for answer, probabilities in zip(answers, expected, strict=True):
        assert [entry["label"] for entry in answer] == [
            str(i) for i in probabilities.argsort(descending=True).tolist()
        ]
        assert answer[0]["score"] == pytest.approx(probabilities.max().item(), abs=1e-6)


def test_all_of_mnist(mnist):
    digits = load_images(DataArguments(dataset_name=mnist), PROCESSOR, ["test"])["test"]
    images = digits.images.numpy()
    assert torch.equal(PROCESSOR.rescale_and_normalize(digits.images), as_torchvision(images))
    assert np.array_equal(grayscale(images, do_invert="auto"), images)
    assert (grayscale(images, do_center=True) == images).all((1, 2)).mean() > 0.999
