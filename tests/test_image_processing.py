"""The image processor: MNIST bit for bit, every kind of image, MNIST's framing, no NaN, and no option ignored."""

import base64
import functools
import http.server
import io
import json
import threading

import numpy as np
import PIL.Image
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import pipeline
from transformers.image_utils import load_image
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from modeling_vit_mnist import VitMnistConfig, VitMnistForImageClassification, VitMnistImageProcessor
from modeling_vit_mnist.data.arguments import DataArguments
from modeling_vit_mnist.data.splits import load_images
from modeling_vit_mnist.image_processing_vit_mnist import open_image

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


@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 1), (28, 28, 2), (28, 28, 3), (28, 28, 4)])
def test_floats_that_rounding_put_outside_the_range_are_clipped(shape):
    for outside, level in ((1 + 1e-6, 1), (-1e-9, 0)):
        image = np.full(shape, outside)
        if shape[-1] in (2, 4):
            image[..., -1] = 1 + 1e-6
        assert (grayscale(image) == level).all()
    smooth = np.outer(*np.random.default_rng(0).integers(0, 2, (2, 90))).astype(np.float32)
    resized = torch.nn.functional.interpolate(
        torch.tensor(smooth)[None, None], (28, 28), mode="bilinear", antialias=True
    )
    assert np.allclose(grayscale(resized), resized[0], atol=1e-6)
    assert grayscale(PIL.Image.fromarray(np.full((28, 28), 1 + 1e-6, np.float32))).max() == 1


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
        assert np.array_equal(grayscale(image, background=0), grayscale(image))  # on black, nothing could be seen
        assert grayscale(image, background=40)[0, 0, 0] == 40
        assert grayscale(image, do_invert="auto")[0, 10, 13] == 255  # light ink on dark paper, as in MNIST
    white = ink.copy()
    white[..., :3] = 255
    for image in (PIL.Image.fromarray(white), white, white / 255):
        assert np.array_equal(grayscale(image) > 0, ink[None, ..., 3] > 0)
    noise = np.random.default_rng(0).integers(245, 256, (28, 28, 1), np.uint8)
    for level in (240, 250, 254, noise):
        white[..., :3] = level
        for image in (white, white / 255):
            brightest = 1 if image.dtype == float else 255
            assert grayscale(image)[0, 0, 0] == 0 and grayscale(image)[0, 10, 13] > 0.9 * brightest
    faint = np.where(ink[..., 3:] > 0, np.uint8([0, 0, 0, 20]), np.uint8(0))  # on black, it could not be seen either
    assert grayscale(faint)[0, 0, 0] == 255 and (grayscale(np.zeros((28, 28, 4), np.uint8)) == 255).all()
    half = np.array([[[0, 0, 0, 0.5]]], np.float32).repeat(28, 0).repeat(28, 1)
    assert grayscale(half)[0, 0, 0] == pytest.approx(0.5)
    palette = PIL.Image.fromarray(digit_like() // 2).convert("P")
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


def test_an_image_without_a_digit_is_named(digits, caplog):
    """Where nothing else says so, as in transformers' pipelines: a model predicts some digit of a black image."""
    sheet = PIL.Image.new("L", (300, 200), 225)
    for column in (20, 170):
        sheet.paste(30, (column, 40), PIL.Image.fromarray(digits[0]).resize((112, 112)))
    sheets = [np.full((60, 60), 7, np.uint8), sheet.crop((0, 0, 150, 200)), sheet]
    framed = grayscale(sheets, do_frame=True)
    assert [bool(image.any()) for image in framed] == [False, True, True]
    assert caplog.messages == [
        "Image 1 of 3 holds no digit: the image is blank. Ignore what is predicted.",
        "Image 3 of 3 holds more than one digit: the clearest is read.",
    ]
    assert all(record.levelname == "WARNING" for record in caplog.records)
    caplog.clear()
    pixels([sheets[0], sheets[1], *[sheets[0]] * 6, sheets[2], sheets[2]], do_frame=True)
    assert caplog.messages == [
        "Images 1, 3, 4, 5, 6, ... (7 of 10) hold no digit: the image is blank. Ignore what is predicted.",
        "Images 9, 10 (2 of 10) hold more than one digit: the clearest is read.",
    ]


def test_a_hairline_and_a_dot_can_be_centered():
    for mark in (np.s_[0:400, 200], np.s_[3, 0:400], np.s_[399, 399]):
        image = np.zeros((400, 400), np.uint8)
        image[mark] = 255
        assert pixels(image, do_center=True).isfinite().all()


def test_a_size_is_needed_only_for_resizing_or_centering(digits):
    for options in ({"do_resize": False, "size": None}, {"do_resize": False, "size": None, "resample": None}):
        assert torch.equal(pixels(list(digits), **options), as_torchvision(digits))
        assert len(pixels([], **options)) == 0
        for needed in ("do_resize", "do_center"):
            with pytest.raises(ValueError, match="size must be a height and a width"):
                pixels(list(digits), **options | {needed: True})


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
        (np.full((28, 28), 1.00002), {}, ValueError, "got values from 1.00002 to 1.00002"),
        (np.full((28, 28), -1e-4), {}, ValueError, "got values from -0.0001 to -0.0001"),
        (np.full((28, 28), np.nan), {}, ValueError, "got values from nan to nan"),
        (np.full((28, 28), np.inf, np.float16), {}, ValueError, "got values from inf to inf"),
        (torch.full((28, 28), np.nan, dtype=torch.bfloat16), {}, ValueError, "got values from nan to nan"),
        (PIL.Image.fromarray(np.full((28, 28), np.nan, np.float32)), {}, ValueError, "got values from nan to nan"),
        (np.where(np.arange(4) == 3, np.nan, np.ones((28, 28, 4))), {}, ValueError, "got values from nan to nan"),
        (np.full((28, 28), -1), {}, ValueError, "got -1 to -1"),
        (np.full((28, 28), 256), {}, ValueError, "got 256 to 256"),
        (np.full((28, 28), 200, np.uint16), {}, ValueError, "up to 200 may have 8 bits or 16"),
        (np.full((28, 28), 0.5, object), {}, ValueError, "got object"),
        (np.zeros((28, 28), complex), {}, ValueError, "got complex128"),
        (PIL.Image.new("L", (0, 5)), {}, ValueError, r"got a size of \(0, 5\)"),
        (np.zeros((28, 28, 3)), {"input_data_format": "channels_first"}, ValueError, "with channels_first"),
        (None, {}, TypeError, "got <class 'NoneType'>"),
        ({"image": 1}, {}, TypeError, "got <class 'dict'>"),
        (np.zeros((28, 28)), {"do_invert": "maybe"}, ValueError, "got 'maybe'"),
        (np.zeros((28, 28)), {"background": 256}, ValueError, "got 256"),
        ([np.zeros((28, 28)), np.zeros((30, 28))], {"do_resize": False}, ValueError, "28x28, 30x28"),
    ],
)
def test_unusable_images_are_refused(image, options, error, message):
    with pytest.raises(error, match=message):
        PROCESSOR(image, **options)


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LA", "PA", "La", "RGBa", "RGBX", "I;16B"]
)
def test_every_mode_of_an_opaque_white_image_is_white(mode):
    source = {"La": "LA", "RGBa": "RGBA", "PA": "LA"}.get(mode, "I;16" if mode == "I;16B" else "L")
    white = PIL.Image.new("L", (28, 28), 255) if source != "I;16" else PIL.Image.new(mode, (28, 28), 65535)
    image = white if source == "I;16" else white.convert(source).convert(mode)
    assert image.mode == mode and (grayscale(image) == 255).all()


def test_dark_images_of_16_bits_stay_dark():
    """Whether 16 bits are meant is not decided by how bright an image is, where its type says so."""
    levels = np.full((28, 28), 200, np.uint16)
    assert (grayscale(PIL.Image.fromarray(levels)) == 1).all()
    assert (grayscale(levels * 257) == 200).all() and (grayscale((levels * 257).astype(">u2")) == 200).all()


def test_gray_and_alpha_channels_are_one_image(digits):
    both = np.stack([digits[0], np.full((28, 28), 255, np.uint8)], -1)
    assert np.array_equal(grayscale(both), digits[:1])
    assert np.allclose(grayscale(both / 255)[0], digits[0] / 255)
    both[..., 1] = 0
    assert (grayscale(both) == 255).all() and (grayscale(both / 255) == 1).all()


# Ways to name the image in a file.
SOURCES = {
    "path": str,
    "Path": lambda path: path,
    "bytes": lambda path: path.read_bytes(),
    "file": lambda path: path.open("rb"),
    "base64": lambda path: base64.b64encode(path.read_bytes()).decode(),
    "base64 in lines": lambda path: base64.encodebytes(path.read_bytes()).decode(),
    "data URL": lambda path: f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}",
    "URL": lambda path: f"{path.parent.as_uri()}/{path.name}",
    "PIL": lambda path: PIL.Image.open(io.BytesIO(path.read_bytes())),
}


@pytest.fixture
def source_of(tmp_path):
    """A function of a key of SOURCES and the name of a file in `tmp_path`, which a local server serves."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=tmp_path))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/"
    yield lambda kind, name: url + name if kind == "URL" else SOURCES[kind](tmp_path / name)
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_every_source_of_an_image_is_opened_upright(suffix, source_of, tmp_path):
    upright = (np.arange(28 * 40).reshape(40, 28) // 5).astype(np.uint8)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the upright image is the stored one, turned to the right
    PIL.Image.fromarray(np.rot90(upright)).save(tmp_path / f"photo.{suffix}", exif=exif, quality=95)
    for kind in SOURCES:
        found = grayscale([source_of(kind, f"photo.{suffix}")], do_resize=False)[0]
        assert found.shape == (40, 28), kind
        assert np.abs(found.astype(int) - upright).max() <= (3 if suffix == "jpg" else 0), kind
        if kind not in ("Path", "bytes", "file", "path"):  # what transformers' own loader takes, and reads as Pillow
            expected = load_image(source_of(kind, f"photo.{suffix}")).convert("L")
            assert np.array_equal(found, np.asarray(expected)), kind


def test_every_source_of_an_image_keeps_its_transparency(source_of, tmp_path):
    ink = np.zeros((28, 28, 4), np.uint8)
    ink[8:20, 12:16, 3] = 255
    PIL.Image.fromarray(ink).save(tmp_path / "ink.png")
    expected = grayscale(ink)
    assert expected[0, 0, 0] == 255
    for kind in SOURCES:
        assert np.array_equal(grayscale(source_of(kind, "ink.png")), expected), kind
        assert np.array_equal(grayscale([source_of(kind, "ink.png")]), expected), kind


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no.png", "'no.png' does not exist, and is not the http URL or base64 text of an image"),
        ("/tmp/no/such/image.png", "'/tmp/no/such/image.png' does not exist"),
        ("aGVsbG8=", "'aGVsbG8=' does not exist, and is not .* base64 text of an image"),
        ("data:image/png;base64,", "is not .* base64 text of an image"),
        ("x" * 5000, r"^'x{80}\.\.\.' does not exist"),
        ("", "'' does not exist"),
        ("http://127.0.0.1:1/7.png", "Cannot download http://127.0.0.1:1/7.png: .*refused"),
    ],
)
def test_texts_that_lead_to_no_image_are_refused(source, message):
    with pytest.raises((ValueError, OSError), match=message) as refused:
        PROCESSOR(source)
    assert "\n" not in str(refused.value)


def test_files_that_hold_no_image_are_refused(source_of, tmp_path):
    (tmp_path / "text.png").write_text("hello")
    for kind in ("path", "Path", "URL"):
        with pytest.raises(ValueError, match=r"text.png' holds no image"):
            PROCESSOR(source_of(kind, "text.png"))
    with pytest.raises(OSError, match=r"Cannot download .*no\.png: .*404"):
        PROCESSOR(source_of("URL", "no.png"))
    with pytest.raises(FileNotFoundError, match=r"no\.png"):
        PROCESSOR(tmp_path / "no.png")
    with pytest.raises(IsADirectoryError):
        open_image(str(tmp_path))


IN_TREE = ViTImageProcessorPil(size=28, image_mean=[0.1307], image_std=[0.3081])


@pytest.mark.parametrize(
    ("shape", "data_format"),
    [
        ((1, 28, 1), "channels_last"), ((1, 28, 1), "channels_first"), ((3, 40, 1), "channels_last"),
        ((1, 3, 3), "channels_first"), ((3, 3, 1), "channels_last"), ((40, 30, 1), "channels_last"),
    ],
)  # fmt: skip
def test_input_data_format_is_obeyed_as_in_tree(shape, data_format):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    expected = IN_TREE(image, input_data_format=data_format, return_tensors="np").pixel_values
    for ours in (
        pixels(image, input_data_format=data_format),
        pixels(torch.from_numpy(image)[None], input_data_format=data_format),
        VitMnistImageProcessor(input_data_format=data_format)(image, return_tensors="pt").pixel_values,
    ):
        assert np.allclose(ours, expected, atol=1e-6)


def test_input_data_format_decides_what_an_ambiguous_array_is():
    color = np.random.default_rng(0).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    luma = [np.asarray(PIL.Image.fromarray(image).convert("L")) for image in (color, color.transpose(1, 2, 0).copy())]
    for expected, data_format in zip(luma, ("channels_last", "channels_first"), strict=True):
        assert np.array_equal(grayscale(color, input_data_format=data_format, do_resize=False)[0], expected)
    four = np.random.default_rng(0).integers(0, 256, (4, 28, 28), dtype=np.uint8)
    assert len(grayscale(four)) == 4 and len(grayscale(four, input_data_format="channels_first")) == 1


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "LA"])
def test_conversion_to_rgb_first_changes_nothing(mode):
    image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (28, 28, 4), dtype=np.uint8)).convert(mode)
    on_white = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    expected = np.asarray(on_white.convert("RGB").convert("L"))
    assert np.array_equal(grayscale(image, do_convert_rgb=True)[0], expected)
    assert np.array_equal(grayscale(image)[0], expected)


def test_returned_tensors_are_on_the_device_asked_for():
    assert pixels(np.zeros((28, 28)), device="meta").device.type == "meta"


NAN = float("nan")
REFUSED = [
    ("do_center_crop", True, "do_center_crop is not supported"),
    ("do_pad", True, "do_pad is not supported"),
    ("data_format", "channels_last", "data_format must be .*got 'channels_last'"),
    ("input_data_format", "channels_middle", "channels_middle is not a valid ChannelDimension"),
    ("size", {"shortest_edge": 28}, "size must be a height and a width.*got {'shortest_edge': 28}"),
    ("size", {"longest_edge": 28}, "got {'longest_edge': 28}"),
    ("size", {"max_height": 28, "max_width": 28}, "got {'max_height': 28, 'max_width': 28}"),
    ("size", {"height": 0, "width": 28}, "got {'height': 0, 'width': 28}"),
    ("size", -28, "got {'height': -28, 'width': -28}"),
    ("resample", 9, "resample.*9"),
    ("resample", "bilinear", "resample must be one of .*got 'bilinear'"),
    ("rescale_factor", 0.0, "rescale_factor must be a positive, finite number.*got 0.0"),
    ("rescale_factor", NAN, "rescale_factor must be a positive, finite number.*got nan"),
    ("image_std", 0.0, "image_std must be a positive, finite number.*got .*0.0"),
    ("image_std", [0.0], "image_std must be a positive, finite number.*got .*0.0"),
    ("image_std", -0.3081, "image_std must be a positive, finite number.*got .*-0.3081"),
    ("image_std", NAN, "image_std must be a positive, finite number.*got .*nan"),
    ("image_mean", NAN, "image_mean must be a finite number.*got .*nan"),
    ("image_mean", [0.1, 0.2, 0.3], "image_mean must be .*same for all channels.*got .*0.1, 0.2, 0.3"),
    ("do_center", "no", "do_center.*no"),
    ("do_deskew", "no", "do_deskew.*no"),
    ("do_invert", "maybe", "do_invert must be one of True, False, None, 'auto', got 'maybe'"),
    ("background", 300, "background must be an integer from 0 to 255, got 300"),
    ("do_centre", True, "did you mean 'do_center'|unexpected keyword argument 'do_centre'"),
    ("do_flip", True, "Unknown option do_flip=True|unexpected keyword argument 'do_flip'"),
    ("do_flip_channel_order", True, "Unknown option do_flip_channel_order=True|unexpected keyword argument"),
]


@pytest.mark.parametrize(("option", "value", "message"), REFUSED)
def test_options_that_cannot_be_obeyed_are_refused(option, value, message, tmp_path):
    """When the processor is made, loaded, changed or called."""
    with pytest.raises(ValueError, match=message):
        VitMnistImageProcessor(**{option: value})
    PROCESSOR.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        VitMnistImageProcessor.from_pretrained(tmp_path, **{option: value})
    record = json.loads((tmp_path / "preprocessor_config.json").read_text()) | {option: value}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=message):
        VitMnistImageProcessor.from_pretrained(tmp_path)
    with pytest.raises((ValueError, TypeError, StrictDataclassError), match=message):  # types are transformers'
        PROCESSOR(np.zeros((28, 28)), **{option: value})
    if hasattr(PROCESSOR, option):
        changed = VitMnistImageProcessor()
        setattr(changed, option, value)
        with pytest.raises(ValueError, match=message):
            changed(np.zeros((28, 28)))


@pytest.mark.parametrize(("option", "value"), [("crop_pct", 0.9), ("size_divisor", 32), ("do_thumbnail", True)])
def test_saved_options_that_no_one_knows_are_refused_unless_they_are_off(option, value):
    record = PROCESSOR.to_dict() | {"processor_class": "P", "feature_extractor_type": "F", "auto_map": {}}
    for off in (None, False):
        VitMnistImageProcessor.from_dict(record | {option: off, "do_grayscale": off})
    with pytest.raises(ValueError, match=f"Unknown option {option}={value}: this processor cannot obey it"):
        VitMnistImageProcessor.from_dict(record | {option: value})


@pytest.mark.parametrize(("option", "value"), [("image_std", 0.0), ("image_mean", [NAN]), ("rescale_factor", 0)])
def test_images_of_datasets_are_not_normalized_by_what_cannot_be_obeyed(option, value):
    changed = VitMnistImageProcessor()
    setattr(changed, option, value)
    with pytest.raises(ValueError, match=f"{option} must be"):
        changed.rescale_and_normalize(torch.zeros(1, 28, 28, dtype=torch.uint8))


def test_means_of_equal_channels_are_one_mean(tmp_path):
    processor = VitMnistImageProcessor(image_mean=[0.5, 0.5, 0.5], image_std=0.25)
    assert (processor.image_mean, processor.image_std) == ((0.5,), (0.25,))
    image = np.full((28, 28), 255, np.uint8)
    assert (processor(image).pixel_values[0] == 2).all()
    assert (pixels(image, image_mean=0.5, image_std=[0.25] * 3) == 2).all()


def test_datasets_are_prepared_with_the_options_of_the_processor(digits):
    """Training and inference call `rescale_and_normalize` on images that are gray already."""
    for options in ({"do_normalize": False}, {"do_rescale": False}, {"rescale_factor": 1 / 100}, {"image_std": 0.5}):
        processor = VitMnistImageProcessor(**options)
        expected = processor(list(digits), return_tensors="pt").pixel_values
        assert torch.equal(processor.rescale_and_normalize(torch.from_numpy(digits)), expected)
        assert torch.equal(pixels(list(digits), **options), expected)


def test_floats_are_rescaled_as_integers_are(digits):
    options = {"rescale_factor": 1 / 127.5, "image_mean": 1.0, "image_std": 1.0}
    expected = torch.from_numpy(digits)[:, None] / 127.5 - 1
    assert torch.allclose(pixels(list(digits), **options), expected, atol=1e-6)
    assert torch.allclose(pixels(list(digits / 255), **options), expected, atol=1e-6)


@pytest.mark.parametrize("do_deskew", [False, True])
def test_floats_that_are_framed_stay_in_their_range(do_deskew, digits):
    processor = VitMnistImageProcessor(do_frame=True, do_deskew=do_deskew)
    paper = 255 - np.pad(digits, ((0, 0), (40, 30), (10, 60)))
    expected = processor(list(paper), return_tensors="pt").pixel_values
    for images in (list(paper / 255), torch.from_numpy(paper) / 255, [paper[0] / 255, *paper[1:]]):
        assert torch.allclose(processor(images, return_tensors="pt").pixel_values, expected, atol=1e-5)
        assert torch.allclose(
            processor(images, do_rescale=False, return_tensors="pt").pixel_values, expected, atol=1e-5
        )
    alone = processor(paper[0] / 255, do_rescale=False, return_tensors="pt").pixel_values
    assert torch.allclose(alone, expected[:1], atol=1e-5)
    assert processor.to_grayscale(list(paper / 255)).max() == 1


@pytest.mark.parametrize("value", [1, np.True_])
def test_any_true_value_inverts(value, digits):
    processor = VitMnistImageProcessor(do_invert=value)
    assert np.array_equal(processor.to_grayscale(list(digits)), 255 - digits)


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
