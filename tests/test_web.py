"""The page: its network and framing in Node against the package, and the whole page in Chromium."""

import base64
import functools
import http.server
import io
import json
import math
import re
import shutil
import subprocess
import threading

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest
import torch

from modeling_vit_mnist import digit_score
from modeling_vit_mnist.checkpoints.export import ExportArguments, run_export
from modeling_vit_mnist.checkpoints.folder import load_checkpoint
from modeling_vit_mnist.deskewing_vit_mnist import deskew
from modeling_vit_mnist.framing_vit_mnist import frame_digit
from modeling_vit_mnist.grayscale_vit_mnist import to_grayscale

from .conftest import ROOT, TINY

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="needs Node to run JavaScript")
WEB = ROOT / "demo" / "web"


def node(code: str, tmp_path):
    """The JSON that a JavaScript program prints."""
    script = tmp_path / "test.mjs"
    script.write_text(code)
    done = subprocess.run(["node", str(script)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_node
@pytest.mark.parametrize("name", ["vit-mnist-tiny", "vit-mnist-small"])
def test_the_network_computes_the_same(name, sample, tmp_path):
    model, processor = load_checkpoint(ROOT / name, attn_implementation="eager")
    pixel_values = processor.rescale_and_normalize(sample["test"].images[:4])
    with torch.no_grad():
        expected = model.eval()(pixel_values, output_attentions=True)
    (tmp_path / "pixels.json").write_text(json.dumps(pixel_values.flatten(1).tolist()))
    results = node(
        f"""
import {{ readFileSync }} from "node:fs";
import {{ Vit, parseSafetensors }} from {str(WEB / "vit.js")!r};
const file = readFileSync({str(ROOT / name / "model.safetensors")!r});
const config = JSON.parse(readFileSync({str(ROOT / name / "config.json")!r}));
const buffer = file.buffer.slice(file.byteOffset, file.byteOffset + file.length);
const vit = new Vit(config, parseSafetensors(buffer));
const images = JSON.parse(readFileSync({str(tmp_path / "pixels.json")!r}));
console.log(JSON.stringify(images.map((pixels) => vit.forward(pixels))));
""",
        tmp_path,
    )
    for index, result in enumerate(results):
        np.testing.assert_allclose(result["logits"], expected.logits[index], atol=1e-3, rtol=1e-4)
        np.testing.assert_allclose(result["probabilities"], expected.logits[index].softmax(-1), atol=1e-4)
        np.testing.assert_allclose(result["digitScore"], digit_score(expected.logits[index]), atol=1e-3, rtol=1e-4)
        for layer, maps in zip(expected.attentions, result["attentions"], strict=True):
            np.testing.assert_allclose(maps, layer[index], atol=1e-4)


# Pen strokes on the pad of 280x280 pixels.
DIGITS = {
    "0": [[(140 + 55 * math.sin(t / 8), 140 - 85 * math.cos(t / 8)) for t in range(0, 52, 3)]],
    "1": [[(150, 50), (140, 230)]],
    "2": [
        [(140 + 45 * math.cos(t / 10), 95 - 45 * math.sin(t / 10)) for t in range(28, -12, -2)]
        + [(85, 225), (205, 225)]
    ],
    "4": [[(170, 240), (170, 40), (70, 160), (220, 160)]],
    "7": [[(70, 60), (205, 60), (120, 235)]],
}  # fmt: skip


def drawings() -> list[np.ndarray]:
    """Strokes of many sizes and positions, dots, a hairline, a line across, noisy paper, blank images."""
    draw = np.random.default_rng(0)
    images = [np.zeros((280, 280), np.uint8), np.full((50, 70), 90, np.uint8)]
    for width, height, thickness in [
        (280, 280, 22),
        (280, 280, 9),
        (100, 300, 6),
        (33, 20, 2),
        (28, 28, 2),
        (640, 480, 40),
    ]:
        for _ in range(3):
            image = PIL.Image.new("L", (width, height))
            points = [(int(x), int(y)) for x, y in draw.integers(2, (width - 2, height - 2), (5, 2))]
            PIL.ImageDraw.Draw(image).line(points, fill=int(draw.integers(120, 256)), width=thickness, joint="curve")
            images.append(np.asarray(image))
    noisy = images[-1] // 2 + draw.integers(20, 40, images[-1].shape, dtype=np.uint8)
    dot = np.zeros((60, 60), np.uint8)
    dot[3, 50] = 255
    hairline = np.zeros((300, 300), np.uint8)
    hairline[10:290, 7] = 200
    blob = np.asarray(PIL.Image.fromarray(dot[:8, 46:54]).resize((96, 96)))
    across = np.zeros((120, 200), np.uint8)
    across[55:61] = 255
    speck = np.zeros((300, 300), np.uint8)
    speck[140:145, 100:105] = 255
    rows, columns = np.mgrid[-60:60, -70:70]
    blur = (180 * np.clip(1.2 - np.hypot(rows, columns) / 25, 0, 1)).astype(np.uint8)
    return [*images, noisy, dot, hairline, blob, across, speck, blur]


def sketch(digits: str, ink: int, paper: int, thickness: int = 22) -> np.ndarray:
    """Digits side by side, each on 280x280 pixels."""
    image = PIL.Image.new("L", (280 * len(digits), 280), paper)
    for index, digit in enumerate(digits):
        for stroke in DIGITS[digit]:
            points = [(280 * index + x, y) for x, y in stroke]
            PIL.ImageDraw.Draw(image).line(points, fill=ink, width=thickness, joint="curve")
    return np.asarray(image)


def with_lines(levels: np.ndarray, ink: int, width: int = 5, **shapes: tuple) -> np.ndarray:
    image = PIL.Image.fromarray(levels)
    for shape, place in shapes.items():
        color = {"outline" if shape in ("rectangle", "ellipse") else "fill": ink}
        getattr(PIL.ImageDraw.Draw(image), shape)(place[:4], *place[4:], **color, width=width)
    return np.asarray(image)


def small_drawings() -> list[np.ndarray]:
    """Few pixels, and pixels that were repeated."""
    digit = sketch("2", 255, 0)
    few = [np.asarray(PIL.Image.fromarray(digit[20:250, 60:230]).resize(size)) for size in ((8, 8), (7, 11), (16, 16))]
    return [*few, *(image.repeat(12, 0).repeat(12, 1) for image in few), few[0].repeat(3, 0)]


def photographs() -> dict[str, np.ndarray]:
    """Digits on paper as a camera sees them: shading, noise, JPEG. Each in gray, uint8."""
    draw = np.random.default_rng(0)

    def photograph(levels: np.ndarray, quality: int = 60) -> np.ndarray:
        height, width = levels.shape
        shading = np.linspace(1, draw.uniform(0.6, 0.9), width) * np.linspace(1, draw.uniform(0.7, 1), height)[:, None]
        noisy = (levels * shading + draw.normal(0, 4, levels.shape)).clip(0, 255).astype(np.uint8)
        file = io.BytesIO()
        PIL.Image.fromarray(noisy).save(file, "JPEG", quality=quality)
        return np.asarray(PIL.Image.open(file))

    pen = {digit: sketch(digit, int(draw.integers(20, 90)), int(draw.integers(160, 250)), 8) for digit in DIGITS}
    table = np.pad(pen["4"], ((12, 8), (16, 4)), constant_values=25)
    in_cell = pen["2"]
    for line in ((9, 0, 9, 280), (270, 0, 270, 280), (0, 9, 280, 9), (0, 268, 280, 268)):  # to the border
        in_cell = with_lines(in_cell, 50, line=line)
    soft_shadow = 1 - 0.1 * (1 + np.cos(np.arange(280) / 26) * np.cos(np.arange(280)[:, None] / 26)) / 2
    far = np.pad(sketch("7", 40, 220), ((310, 400), (500, 120)), constant_values=220)
    return {
        **{f"a {digit} on paper": photograph(levels) for digit, levels in pen.items()},
        "a dark border": photograph(table),
        "a sheet on a table": photograph(np.pad(pen["7"][35:260, 45:230], 40, constant_values=40)),
        "a board on a wall": photograph(np.pad(sketch("4", 240, 40)[10:270, 30:250], 50, constant_values=220)),
        "cropped to the ink": photograph(pen["2"][46:230, 82:210]),
        "chalk": photograph(sketch("0", 220, 50, 14)),
        "small in a large photograph": photograph(far),
        "a thumbnail": photograph(np.asarray(PIL.Image.fromarray(pen["0"]).resize((41, 37))), quality=95),
        "in a box": photograph(with_lines(pen["2"], 50, rectangle=(30, 15, 250, 262))),
        "in a ring": photograph(with_lines(pen["4"], 50, ellipse=(12, 4, 276, 276))),
        "in an open ring": photograph(with_lines(pen["7"], 50, arc=(12, 4, 276, 276, 100, 400))),
        "in a cell": photograph(in_cell),
        "underlined": photograph(with_lines(pen["7"], 50, line=(40, 255, 250, 258))),
        "a line through it": photograph(with_lines(pen["2"], 50, line=(0, 120, 280, 128), width=3)),
        "a box across it": photograph(with_lines(pen["4"], 50, rectangle=(60, 40, 200, 190), width=3)),
        "a darker line through it": photograph(
            with_lines(sketch("2", 160, 230), 20, line=(0, 120, 280, 128), width=3)
        ),
        "a darker box across it": photograph(
            with_lines(sketch("4", 160, 230), 20, rectangle=(60, 40, 200, 190), width=3)
        ),
        "a line of a pixel": 255 - sketch("2", 255, 0, 1),
        "pale ink in a soft shadow": photograph(sketch("7", 195, 230, 10) * soft_shadow, quality=90),
        "two digits": photograph(sketch("27", 60, 210)),
        "paper": photograph(np.full((300, 400), 200)),
    }


@needs_node
def test_framing_computes_the_same(sample, tmp_path):
    """The same pixels, the same reasons, the same notes, for drawings, photographs and an image of MNIST."""
    mnist = sample["test"].images[0].numpy()
    images = [*drawings(), *small_drawings(), *photographs().values(), np.zeros((2, 9), np.uint8), mnist]
    images.append(mnist.repeat(4, 0).repeat(4, 1))
    record = [{"width": i.shape[1], "height": i.shape[0], "data": i.flatten().tolist()} for i in images]
    (tmp_path / "images.json").write_text(json.dumps(record))
    found = node(
        f"""
import {{ readFileSync }} from "node:fs";
import {{ deskew, frameDigit, normalize }} from {str(WEB / "frame.js")!r};
const images = JSON.parse(readFileSync({str(tmp_path / "images.json")!r}));
const found = images.map((image) => frameDigit({{ ...image, data: Uint8Array.from(image.data) }}));
console.log(JSON.stringify(found.map((framing) => ({{
  ...framing, image: Array.from(framing.image), pixels: normalize(framing.image, 0.1307, 0.3081),
  digit: framing.digit && {{ ...framing.digit, mask: Array.from(framing.digit.mask.data) }},
  upright: Array.from(deskew(framing.image)),
}}))));
""",
        tmp_path,
    )
    processor = load_checkpoint(TINY)[1]
    for image, got in zip(images, found, strict=True):
        expected = frame_digit(image)
        np.testing.assert_array_equal(got["image"], expected.image.flatten())
        pixels = processor(image, do_frame=True, return_tensors="pt").pixel_values
        np.testing.assert_allclose(got["pixels"], pixels.flatten(), rtol=0, atol=1e-6)
        np.testing.assert_array_equal(got["upright"], deskew(expected.image).flatten())
        assert (got["digit"] is None) == (expected.digit is None)
        if expected.digit is not None:
            np.testing.assert_array_equal(got["digit"]["mask"], expected.digit.flatten())
        if np.isfinite(expected.plausibility):
            assert got["plausibility"] == pytest.approx(expected.plausibility)
        for name in ("problem", "is_framed", "is_dark_on_light", "has_others"):
            first, *others = name.split("_")
            assert got[first + "".join(map(str.capitalize, others))] == getattr(expected, name), (name, image.shape)


@needs_node
def test_colors_become_the_same_gray(tmp_path):
    """A color, where ink is as bright as its paper; luma, where it shows the digit or no color does; grays."""
    generator = np.random.default_rng(0)
    digit = sketch("2", 1, 0)[..., None]
    pens = (((200, 0, 0), (0, 102, 0)), ((9, 20, 99), 230))
    images = [paper + (np.array(ink) - paper) * digit for ink, paper in pens]
    images += [generator.normal((200, 180, 150), 6, (90, 120, 3)), np.full((50, 40, 3), 77), sketch("4", 20, 240)]
    images = [np.uint8(np.clip(image, 0, 255)) for image in images]
    pictures = [PIL.Image.fromarray(image).convert("RGBA") for image in images]
    record = [{"width": i.width, "height": i.height, "data": np.asarray(i).flatten().tolist()} for i in pictures]
    (tmp_path / "images.json").write_text(json.dumps(record))
    found = node(
        f"""
import {{ readFileSync }} from "node:fs";
import {{ toGray }} from {str(WEB / "frame.js")!r};
const images = JSON.parse(readFileSync({str(tmp_path / "images.json")!r}));
console.log(JSON.stringify(images.map((image) => Array.from(toGray(image).data))));
""",
        tmp_path,
    )
    processor = load_checkpoint(TINY)[1]
    grays = [processor.process_image(image) for image in images]
    is_luma = [np.array_equal(gray, image.convert("L")) for gray, image in zip(grays, pictures, strict=True)]
    assert is_luma == [False, True, True, True, True]
    for gray, got in zip(grays, found, strict=True):
        np.testing.assert_array_equal(got, gray.flatten())


@needs_node
def test_digits_are_deskewed_to_the_same_pixels(sample, tmp_path):
    """MNIST's digits, noise, dots and lines, whose moments have every value there is."""
    draw = np.random.default_rng(0)
    noise = draw.integers(0, 256, (50, 28, 28)) * (draw.random((50, 28, 28)) < draw.random((50, 1, 1)) ** 3)
    lines = np.zeros((4, 28, 28))
    lines[0, 5, 6] = lines[1, 9] = lines[2, :, 3] = lines[3, range(28), range(28)] = 255
    images = np.concatenate([sample["test"].images[:300].numpy(), noise, lines]).astype(np.uint8)
    (tmp_path / "images.json").write_text(json.dumps(images.reshape(len(images), -1).tolist()))
    found = node(
        f"""
import {{ readFileSync }} from "node:fs";
import {{ deskew }} from {str(WEB / "frame.js")!r};
const images = JSON.parse(readFileSync({str(tmp_path / "images.json")!r}));
console.log(JSON.stringify(images.map((image) => Array.from(deskew(Uint8Array.from(image))))));
""",
        tmp_path,
    )
    np.testing.assert_array_equal(found, [deskew(image).flatten() for image in images])


def test_the_images_that_framing_is_compared_on_are_of_all_kinds():
    found = {name: frame_digit(image) for name, image in photographs().items()}
    assert found.pop("paper").problem == "the image is blank"
    assert all(framing.problem is None and framing.image.max() == 255 for framing in found.values())
    assert [name for name, framing in found.items() if framing.has_others] == ["two digits"]
    assert [name for name, framing in found.items() if not framing.is_dark_on_light] == ["a board on a wall", "chalk"]
    problems = {frame_digit(image).problem for image in drawings()}
    assert problems == {
        None, "the image is blank", "there are only specks", "there is only a dot", "there is only a line",
    }  # fmt: skip


class Page:
    """The page in Chromium, through chromedriver."""

    def __init__(self, driver, address: str):
        self.driver, self.address = driver, address

    def open(self, width: int = 1280, height: int = 900, scheme: str = "light", checkpoint: str = "tiny"):
        self.look(width, height, scheme)
        self.driver.get(self.address)
        self.find(f"input[value={checkpoint}]").click()
        self.wait(lambda: len(self.find_all("#maps .map")) == (3 * 4 if checkpoint == "small" else 2 * 2))
        self.wait(lambda: self.find("#status").text == "")
        self.settle()
        return self

    def look(self, width: int, height: int, scheme: str, motion: str = "no-preference"):
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1.5, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = {"prefers-color-scheme": scheme, "prefers-reduced-motion": motion}
        media = {"features": [{"name": name, "value": value} for name, value in features.items()]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)

    def find(self, selector: str):
        return self.driver.find_element("css selector", selector)

    def find_all(self, selector: str) -> list:
        return self.driver.find_elements("css selector", selector)

    def run(self, code: str, *arguments):
        return self.driver.execute_script(code, *arguments)

    def wait(self, condition):
        from selenium.webdriver.support.wait import WebDriverWait

        WebDriverWait(self.driver, 60, poll_frequency=0.02).until(lambda _: condition())

    def draw(self, strokes, kind: str = "mouse"):
        from selenium.webdriver.common.actions.action_builder import ActionBuilder
        from selenium.webdriver.common.actions.pointer_input import PointerInput

        pad = self.find("#pad")
        scale = pad.rect["width"] / 280
        actions = ActionBuilder(self.driver, mouse=PointerInput(kind, kind), duration=0)
        for stroke in strokes:
            for index, (x, y) in enumerate(stroke):
                at = {"x": round((x - 140) * scale), "y": round((y - 140) * scale)}
                actions.pointer_action.move_to(pad, **at)
                if index == 0:
                    actions.pointer_action.pointer_down()
            actions.pointer_action.pointer_up()
        actions.perform()
        self.settle()

    def point_at(self, element):
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver, duration=0).move_to_element(element).perform()
        self.settle()

    def settle(self):
        """Wait until the page shows the last stroke."""
        self.driver.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")

    @property
    def prediction(self) -> str:
        return self.find("#prediction").text

    @property
    def probabilities(self) -> list[float]:
        shares = self.run("return [...document.querySelectorAll('.percent')].map((item) => item.textContent)")
        return [float(share.removesuffix(" %")) / 100 for share in shares]

    def pixels(self, canvas: str) -> np.ndarray:
        """The pixels of a canvas: red, green, blue, opacity."""
        code = "return document.querySelector(arguments[0]).toDataURL()"
        return np.asarray(PIL.Image.open(io.BytesIO(decode(self.run(code, canvas)))).convert("RGBA"))

    @property
    def drawing(self) -> np.ndarray:
        """Gray levels of the pad."""
        return self.pixels("#pad")[..., 0]

    @property
    def shares(self) -> np.ndarray:
        """Shares by which the maps' cells are colored, of shape (maps, tokens)."""
        code = """return [...document.querySelectorAll("#maps .map")].map((map) =>
            [...map.querySelectorAll(".cell")].map((cell) => Number(cell.style.getPropertyValue("--level")) ** 2))"""
        return np.array(self.run(code))


def decode(address: str) -> bytes:
    """The content of a data: address."""
    return base64.b64decode(address.partition(",")[2])


@functools.cache
def load(checkpoint: str):
    return load_checkpoint(ROOT / f"vit-mnist-{checkpoint}", attn_implementation="eager")


def read(checkpoint: str, gray: np.ndarray):
    """The model's output for an image, with attentions, and its processor's framed bytes."""
    model, processor = load(checkpoint)
    pixels = processor(gray, do_frame=True, return_tensors="pt").pixel_values
    with torch.no_grad():
        output = model.eval()(pixels, output_attentions=True)
    framed = frame_digit(gray).image
    return output, (deskew(framed) if processor.do_deskew else framed).flatten()


def answer(checkpoint: str, logits: torch.Tensor) -> str:
    """What the page says for the logits of one image."""
    is_rejected = digit_score(logits) < load(checkpoint)[0].config.digit_score_threshold
    return "not a digit" if is_rejected else str(logits.argmax().item())


def serve(folder, handler=http.server.SimpleHTTPRequestHandler) -> http.server.ThreadingHTTPServer:
    """A server of a folder on a free port."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture(scope="module")
def server():
    """Serves the repository as `python -m http.server` does, without paths that contain `server.missing`, after
    `server.gate` is open for paths that contain `server.slow`, and with `server.config` in place of the config.json of
    each checkpoint."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            del self.headers["If-Modified-Since"]  # in whole seconds, in which a test can replace a file twice
            if server.slow is not None and server.slow in self.path:
                server.gate.wait(60)
            super().do_GET()

        def end_headers(self):
            self.send_header("Cache-Control", "no-store")  # or a file that is missing would come from the cache
            super().end_headers()

        def translate_path(self, path):
            if server.missing is not None and server.missing in path:
                return "/nowhere"
            is_replaced = server.config is not None and path.endswith("/config.json")
            return str(server.config) if is_replaced else super().translate_path(path)

    server = serve(ROOT, Handler)
    server.missing = server.config = server.slow = None
    server.gate = threading.Event()
    yield server
    server.shutdown()
    server.server_close()


def start_chromium(folder, *flags):
    """A browser with a new profile in `folder`. Skips without Chromium."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not (browser and driver):
        pytest.skip("needs Chromium and chromedriver on the PATH")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (
        "headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "no-first-run",
        "disable-background-networking", "disable-component-update", "disable-sync", f"user-data-dir={folder}", *flags,
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))


@pytest.fixture(scope="module")
def camera(tmp_path_factory) -> np.ndarray:
    """What the browser's camera sees: gray levels of 320x240 pixels."""
    return np.pad(sketch("4", 50, 200, 14)[20:260], ((0, 0), (20, 20)), constant_values=200)


@pytest.fixture(scope="module")
def chromium(server, camera, tmp_path_factory):
    folder = tmp_path_factory.mktemp("chromium")
    chroma = bytes([128]) * (2 * camera.size // 4)
    video = b"YUV4MPEG2 W320 H240 F30:1 Ip A1:1 C420jpeg\nFRAME\n" + camera.tobytes() + chroma
    (folder / "camera.y4m").write_bytes(video)
    driver = start_chromium(
        folder / "profile", "use-fake-device-for-media-stream", "use-fake-ui-for-media-stream",
        f"use-file-for-fake-video-capture={folder / 'camera.y4m'}",
    )  # fmt: skip
    yield Page(driver, f"http://127.0.0.1:{server.server_port}/demo/web/")
    driver.quit()


@pytest.fixture
def page(chromium):
    """The page. Afterwards: it made no request to another host, and the console is empty."""
    chromium.driver.get_log("browser")
    yield chromium
    requested = chromium.run("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    own = (chromium.address.removesuffix("demo/web/"), "data:")
    assert requested and all(name.startswith(own) for name in requested)
    assert chromium.driver.get_log("browser") == []


@pytest.mark.parametrize("checkpoint", ["tiny", "best", "small"])
def test_drawn_digits_are_recognized(page, checkpoint):
    """With the probabilities that the package computes for the same drawing. The network view gets the same digit, for
    tiny in place of the large network."""
    followed = "tiny" if checkpoint == "small" else checkpoint
    page.open(checkpoint=checkpoint)
    page.wait(page.find("#follow").is_displayed)
    assert page.find("#follow").text.endswith("the tiny network" if checkpoint == "small" else "the network")
    for digit, strokes in DIGITS.items():
        page.find("#clear").click()
        page.draw(strokes)
        logits = read(checkpoint, page.drawing)[0].logits[0]
        assert page.prediction == answer(checkpoint, logits) and logits.argmax() == int(digit)
        np.testing.assert_allclose(page.probabilities, logits.softmax(-1), atol=6e-4)  # rounded to 0.1 %
        link = page.find("#follow")
        name, image = re.fullmatch(r".*/network\.html#model=(\w+)&image=([\w-]+)", link.get_attribute("href")).groups()
        assert name == followed and base64.urlsafe_b64decode(image + "==") == read(followed, page.drawing)[1].tobytes()
    link.click()
    page.wait(lambda: page.find_all("input[name=model]:checked"))
    assert page.find("input[name=model]:checked").get_attribute("value") == followed
    assert not page.find("#problem").is_displayed()


@pytest.mark.parametrize("checkpoint", ["tiny", "small"])
def test_the_attention_of_each_token_is_the_models(page, checkpoint):
    """Tokens are pointed at, clicked and reached by keys. The colors have one scale for all maps."""
    from selenium.webdriver.common.keys import Keys

    page.open(checkpoint=checkpoint)
    assert page.shares.max() == 0 and "draw a digit" in page.find("#maps .map").get_attribute("aria-label")
    page.draw(DIGITS["7"])
    attentions = torch.cat(read(checkpoint, page.drawing)[0].attentions, 1)[0].numpy()  # (maps, from, to)

    def check(token: int, name: str):
        page.settle()
        np.testing.assert_allclose(page.shares, attentions[:, token], atol=2e-4)
        assert page.find("#from").text == name
        numbers = [map.text.split() for map in page.find_all("#maps .map")]
        for shown, expected in zip(numbers, attentions[:, token], strict=True):
            assert shown[0] == "CLS" and shown[2] == "%"
            np.testing.assert_allclose([int(shown[1]), *map(int, shown[3:])], 100 * expected, atol=0.52)

    check(0, "CLS")
    page.point_at(page.find("#picker [data-token='6']"))
    check(6, "patch 6 (row 2, column 2)")
    page.point_at(page.find("#maps .map [data-token='11']"))
    check(11, "patch 11 (row 3, column 3)")
    page.point_at(page.find("#pad"))
    check(0, "CLS")
    page.find("#picker [data-token='16']").click()
    page.point_at(page.find("#pad"))
    check(16, "patch 16 (row 4, column 4)")
    page.driver.switch_to.active_element.send_keys(Keys.ARROW_UP, Keys.ARROW_LEFT)
    check(11, "patch 11 (row 3, column 3)")
    page.driver.switch_to.active_element.send_keys(Keys.ARROW_UP * 4)
    check(0, "CLS")

    shares, order = page.shares.ravel(), page.shares.ravel().argsort()
    code = """const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
        return [...document.querySelectorAll("#maps .cell")].map((cell) => {
            canvas.fillStyle = getComputedStyle(cell).backgroundColor;
            canvas.fillRect(0, 0, 1, 1);
            return canvas.getImageData(0, 0, 1, 1).data[2];
        })"""
    page.wait(lambda: page.run("return document.getAnimations().length") == 0)
    blue = np.array(page.run(code))[order]
    assert (np.diff(blue) <= 0).all() and blue[0] > 240 and shares.max() > 0.2 and blue[-1] < 110


def test_the_maps_have_text_alternatives(page):
    page.open()
    page.draw(DIGITS["4"])
    attentions = torch.cat(read("tiny", page.drawing)[0].attentions, 1)[0]
    first = attentions[0, 0]
    label = page.find("#maps .map").get_attribute("aria-label")
    token = first.argmax().item()
    name = "CLS" if token == 0 else f"patch {token} (row {(token + 3) // 4}, column {(token - 1) % 4 + 1})"
    assert label.startswith(f"Layer 1, head 1. CLS attends {round(100 * first[token].item())} % to {name}, ")
    assert label.endswith(f" To CLS {round(100 * first[0].item())} %.")
    assert page.find("#maps .map").get_attribute("role") == "img"
    page.find("#table summary").click()
    page.wait(lambda: page.find_all("#table td"))
    cells = [float(cell.text.removesuffix(" %")) for cell in page.find_all("#table td")]
    np.testing.assert_allclose(np.array(cells).reshape(17, 4), 100 * attentions[:, 0].T, atol=0.06)
    assert page.find("#table caption").text == "Attention from CLS to each token"


def test_no_digit_and_more_than_one_are_said(page):
    page.open()
    note = page.find("#note")
    assert note.text == ""
    top = page.find("#upload").rect["y"]
    for strokes, reason in (
        ([[(140, 140)]], "There is only a dot: draw one digit, larger."),
        ([[(4, 140), (276, 140)]], "There is only a line: draw one digit, larger."),
    ):
        page.find("#clear").click()
        page.draw(strokes)
        assert (page.prediction, note.text) == ("–", reason)
        assert {item.text for item in page.find_all(".percent")} == {"–"} and page.shares.max() == 0
    page.find("#clear").click()
    page.settle()
    assert (page.prediction, note.text) == ("–", "")
    page.draw([[(60, 40), (60, 220)], [(160, 60), (230, 60), (190, 240)]])
    assert frame_digit(page.drawing).has_others and note.text == "More than one digit. Draw one digit, larger."
    assert page.prediction == answer("tiny", read("tiny", page.drawing)[0].logits[0])
    assert page.find("#upload").rect["y"] == top
    page.find("#clear").click()
    page.draw(DIGITS["7"])
    assert (page.prediction, note.text) == ("7", "")


def test_what_is_probably_no_digit_is_not_read(page, server, tmp_path, monkeypatch):
    """By the threshold in the config. The bars stay, and nothing moves. Without a threshold, everything is read."""
    record = json.loads((ROOT / "vit-mnist-small" / "config.json").read_text())
    scribble = [[(60, 60), (220, 80), (60, 140), (220, 160), (70, 220), (150, 40), (140, 240)]]
    monkeypatch.setattr(server, "config", tmp_path / "config.json")
    shown = {}
    for threshold in (1e9, None):
        server.config.write_text(json.dumps(record | {"digit_score_threshold": threshold}))
        page.open(checkpoint="small")
        before = [page.find(name).rect for name in ("#pad", "#clear", "#maps")]
        page.draw(scribble)
        shown[threshold] = page.prediction, page.probabilities, len(page.find_all("#probabilities .best"))
        assert [page.find(name).rect for name in ("#pad", "#clear", "#maps")] == before
        page.find("#clear").click()
        page.settle()
        assert page.prediction == "–"
    page.draw(scribble)
    logits = read("small", page.drawing)[0].logits[0]
    score = digit_score(logits).item()
    assert shown[1e9] == ("not a digit", shown[None][1], 0) and shown[None][0] == str(logits.argmax().item())
    for threshold, is_read in ((score - 0.01, True), (score + 0.01, False)):
        server.config.write_text(json.dumps(record | {"digit_score_threshold": threshold}))
        page.open(checkpoint="small")
        page.draw(scribble)
        assert page.prediction == (shown[None][0] if is_read else "not a digit")


def test_networks_are_listed_with_the_results_of_their_trainings(page):
    """The page starts with the one that reads photographs best."""
    page.look(1280, 900, "light")
    page.driver.get(page.address)
    page.wait(lambda: len(page.find_all("#maps .map")) == 3 * 4)
    assert page.find("input[name=checkpoint]:checked").get_attribute("value") == "small"
    page.wait(lambda: page.find("#networks").text.count("%") == 3)
    for name, label in zip(("tiny", "best", "small"), page.find_all("#networks label"), strict=True):
        results = json.loads((ROOT / f"vit-mnist-{name}" / "all_results.json").read_text())
        facts = f"{results['parameters']:,} parameters, {100 * results['test_accuracy']:.2f} % on MNIST test"
        assert label.text.split(maxsplit=1) == [name, facts]


def test_undo_eraser_and_width(page):
    page.open()
    assert not page.find("#undo").is_enabled()
    page.draw(DIGITS["1"])
    one = page.drawing
    page.draw([[(40, 40), (40, 200)]])
    page.find("#clear").click()
    assert page.drawing.max() == 0
    page.find("#undo").click()
    assert page.drawing[120, 40] == 255
    page.find("#undo").click()
    page.settle()
    np.testing.assert_array_equal(page.drawing, one)
    assert page.prediction == "1"

    page.run("document.getElementById('erase').click()")
    page.draw([[(100, 140), (200, 140)]])
    erased = page.drawing
    assert erased[130:150, 100:200].max() == 0 and erased[80].max() == 255 and erased[200].max() == 255
    page.run("document.getElementById('draw').click()")
    change = "arguments[0].value = 40; arguments[0].dispatchEvent(new Event('input'))"
    page.run(change, page.find("#width"))
    page.draw([[(60, 40), (60, 240)]])
    assert abs((page.drawing[140, :100] > 127).sum() - 40) <= 1 and abs((one[140] > 127).sum() - 22) <= 1
    for _ in range(3):
        page.find("#undo").click()
    page.settle()
    assert page.prediction == "–" and page.drawing.max() == 0 and not page.find("#undo").is_enabled()


def photograph_file(folder, name: str = "a 2 on paper"):
    path = folder / "photo.png"
    PIL.Image.fromarray(photographs()[name]).save(path)
    return path


def wait_for_picture(page, gray: np.ndarray):
    """Wait until the page shows a picture, and compare its answer with the package's."""
    output, framed = read("small", gray)
    expected = output.logits[0]
    page.wait(lambda: page.prediction == answer("small", expected))
    page.settle()
    np.testing.assert_allclose(page.probabilities, expected.softmax(-1), atol=6e-4)
    np.testing.assert_array_equal(page.pixels("#step-upright canvas")[..., 3].flatten(), framed)


@pytest.mark.parametrize("ink", [0, 40, 245, 255])
def test_ink_on_transparent_paper_is_seen(page, tmp_path, ink):
    pixels = np.full((280, 280, 4), ink, np.uint8)
    pixels[..., 3] = sketch("2", 255, 0)
    PIL.Image.fromarray(pixels).save(tmp_path / "ink.png")
    page.open(checkpoint="small")
    page.find("#file").send_keys(str(tmp_path / "ink.png"))
    wait_for_picture(page, to_grayscale(pixels, 255))
    assert page.prediction == "2"


@pytest.mark.parametrize("way", ["upload", "drop", "paste", "paste button"])
def test_a_photograph_from_a_file_is_read_as_the_package_reads_it(page, tmp_path, way):
    """And its framing is shown: the picture, the ink with a box around it, the frame, the deskewed frame."""
    page.open(checkpoint="small")
    page.draw(DIGITS["1"])
    path, gray = photograph_file(tmp_path), photographs()["a 2 on paper"]
    if way == "upload":
        page.find("#file").send_keys(str(path))
    elif way == "drop":
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            at = {"type": kind, "x": 600, "y": 500, "data": data}
            page.driver.execute_cdp_cmd("Input.dispatchDragEvent", at)
    else:
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.keys import Keys

        permissions = ["clipboardReadWrite", "clipboardSanitizedWrite"]
        page.driver.execute_cdp_cmd("Browser.grantPermissions", {"permissions": permissions})
        copy = """const done = arguments[1];
            fetch(arguments[0]).then((file) => file.blob())
              .then((image) => navigator.clipboard.write([new ClipboardItem({"image/png": image})]))
              .then(() => done(null), (error) => done(error.message))"""
        address = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
        assert page.driver.execute_async_script(copy, address) is None
        if way == "paste":
            ActionChains(page.driver).key_down(Keys.CONTROL).send_keys("v").key_up(Keys.CONTROL).perform()
        else:
            page.find("#paste").click()
    wait_for_picture(page, gray)
    np.testing.assert_array_equal(page.pixels("#step-frame canvas")[..., 3], frame_digit(gray).image)
    picture, found = (page.pixels(f"#step-{name} canvas")[..., 0] for name in ("picture", "ink"))
    ys, xs = np.nonzero(frame_digit(gray).digit)
    rows, columns = np.nonzero(found != picture)
    scale = len(picture) / frame_digit(gray).digit.shape[0]
    box = np.array([ys.min(), ys.max() + 1, xs.min(), xs.max() + 1]) * scale
    np.testing.assert_allclose([rows.min(), rows.max() + 1, columns.min(), columns.max() + 1], box, atol=6)
    page.find("#undo").click()
    page.settle()
    assert page.prediction == "1"


def test_the_camera_takes_a_picture(page, camera):
    page.open(checkpoint="small")
    page.find("#camera").click()
    page.wait(lambda: page.run("return document.getElementById('video').videoWidth") == 320)
    page.find("#shoot").click()
    page.wait(lambda: not page.find("#camera-dialog").is_displayed())
    page.wait(lambda: page.prediction == "4")
    assert page.run("return document.getElementById('video').srcObject") is None  # the camera is off
    pad = page.drawing
    assert pad[40:240].std() > 20 and not page.find("#problem").is_displayed()


@pytest.mark.parametrize("name", ["notes.txt", "damaged.png"])
def test_what_is_no_picture_is_said(page, tmp_path, name):
    page.open()
    page.draw(DIGITS["1"])
    (tmp_path / name).write_bytes(b"\x89PNG\r\n\x1a\n no picture")
    page.find("#file").send_keys(str(tmp_path / name))
    page.wait(page.find("#problem").is_displayed)
    assert page.find("#problem").text == f"“{name}” cannot be read as a picture. Try a PNG, JPEG or WebP file."
    assert page.prediction == "1"
    page.find("#file").send_keys(str(photograph_file(tmp_path)))
    page.wait(lambda: not page.find("#problem").is_displayed())


def test_examples(page, sample):
    """Digits of the bundled sample, photographs that the page draws, and a letter, all as the package reads them."""
    page.open(checkpoint="small")
    buttons = page.find_all(".example")
    assert len(buttons) == 13
    labels = sample["test"].labels.tolist()
    for digit in range(10):
        image = sample["test"].images[labels.index(digit)].numpy()
        source = page.run("return arguments[0].firstChild.toDataURL()", buttons[digit])
        np.testing.assert_array_equal(np.asarray(PIL.Image.open(io.BytesIO(decode(source))))[..., 3], image)
        buttons[digit].click()
        wait_for_picture(page, image)
        assert page.find("#step-ink").text == "framed already"
    for index, digit in ((10, "5"), (11, "3")):
        colors = decode(page.run("return arguments[0].firstChild.toDataURL()", buttons[index]))
        buttons[index].click()
        wait_for_picture(page, np.asarray(PIL.Image.open(io.BytesIO(colors)).convert("RGB").convert("L")))
        assert page.prediction == digit
    buttons[12].click()
    page.wait(lambda: page.prediction == "not a digit")
    assert page.prediction == answer("small", read("small", page.drawing)[0].logits[0])


def test_it_explains_itself_with_the_numbers_of_the_network(page):
    page.open()
    assert page.find("#now-logits").text == ""
    page.draw(DIGITS["7"])
    text = page.find(".how").text
    for fact in (
        "16 patches of 7×7",
        "49 pixels of a patch",
        "a token of 8 numbers",
        "17 tokens",
        "2 layers, 2 heads",
    ):
        assert fact in text
    output = read("tiny", page.drawing)[0]
    logits = output.logits[0]
    now = page.find("#now-logits").text
    assert f"the logit of 7 is the largest: {logits.max():.1f}, or {100 * logits.softmax(-1).max():.1f} %" in now
    assert f"The digit score is {digit_score(logits):.1f}." in now
    last = output.attentions[-1][0, :, 0]  # (heads, to)
    head, token = divmod(last.argmax().item(), 17)
    place = f"patch {token} (row {(token + 3) // 4}, column {(token - 1) % 4 + 1})" if token else "itself"
    expected = f"in layer 2, CLS gives {round(100 * last.max().item())} % of head {head + 1} to {place}."
    assert expected in page.find("#now-attention").text
    page.find("input[value=small]").click()
    page.wait(lambda: "token of 64 numbers" in page.find(".how").text)


def test_touch_on_a_phone(page):
    """Pad, answer, bars and all maps are in view together. A tap on a patch shows its attention."""
    page.open(width=390, height=844, scheme="dark", checkpoint="small")
    page.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    page.draw(DIGITS["4"], kind="touch")
    assert page.prediction == "4"
    in_view = "const box = arguments[0].getBoundingClientRect(); return box.top >= 0 && box.bottom <= innerHeight"
    for selector in ("#pad", "#prediction", "#clear", "#probabilities", "#maps"):  # without scrolling
        assert page.run(in_view, page.find(selector)), selector
    page.find("#picker [data-token='7']").click()
    page.settle()
    attentions = torch.cat(read("small", page.drawing)[0].attentions, 1)[0]
    np.testing.assert_allclose(page.shares, attentions[:, 7], atol=2e-4)
    page.run("scrollTo(0, document.documentElement.scrollHeight)")
    page.settle()
    assert page.run(in_view, page.find("#prediction"))
    page.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})


def test_keyboard(page):
    """The focus has the page's color, though CSS inverts the pad's own colors."""
    from selenium.webdriver.common.keys import Keys

    page.open()
    page.run("document.body.focus()")
    page.find("#pad").send_keys(Keys.ARROW_UP * 9, Keys.SPACE, Keys.ARROW_DOWN * 18, Keys.SPACE, Keys.ARROW_LEFT * 5)
    page.settle()
    assert page.prediction == "1"
    drawing = page.drawing
    assert drawing[60:220, 132:148].min() == 255 and drawing[:, :120].max() == 0  # the lifted pen draws nothing
    style = """const {outlineStyle, outlineColor, filter} = getComputedStyle(arguments[0]);
        return [outlineStyle, outlineColor, filter]"""
    assert page.run(style, page.find(".pad")) == ["solid", "rgb(194, 65, 12)", "none"]
    assert page.run(style, page.find("#pad"))[0] == "none"
    page.driver.switch_to.active_element.send_keys(Keys.DELETE)
    page.settle()
    assert page.prediction == "–" and page.drawing.max() == 0
    page.driver.switch_to.active_element.send_keys(Keys.CONTROL + "z")
    page.settle()
    assert page.prediction == "1"
    page.find("input[value=tiny]").send_keys(Keys.ARROW_DOWN * 2)
    page.wait(lambda: len(page.find_all("#maps .map")) == 3 * 4)


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_fits_the_window_and_follows_the_color_scheme(page, width):
    paper = {}
    for scheme in ("light", "dark"):
        page.open(width=width, scheme=scheme, checkpoint="small")
        assert page.run("return document.documentElement.scrollWidth <= innerWidth")
        color = page.run("return getComputedStyle(document.body).backgroundColor")
        paper[scheme] = [int(level) for level in color.removeprefix("rgb(").removesuffix(")").split(", ")]
    assert min(paper["light"]) > 200 and max(paper["dark"]) < 60
    page.look(width, 900, "dark", motion="reduce")
    assert page.run("return getComputedStyle(document.querySelector('.cell')).transitionDuration") == "0s"


def test_a_failed_switch_switches_back(chromium, server, monkeypatch):
    chromium.open()
    chromium.draw(DIGITS["7"])
    probabilities = chromium.probabilities
    monkeypatch.setattr(server, "missing", "vit-mnist-small/model.safetensors")
    chromium.find("input[value=small]").click()
    problem = chromium.find("#problem")
    chromium.wait(problem.is_displayed)
    assert "The small network cannot be loaded" in problem.text and "404" in problem.text
    assert problem.text.endswith("The page still uses tiny.")
    assert chromium.find("input[name=checkpoint]:checked").get_attribute("value") == "tiny"
    assert chromium.probabilities == probabilities
    monkeypatch.setattr(server, "missing", None)
    chromium.find("input[value=small]").click()
    chromium.wait(lambda: not problem.is_displayed())
    chromium.wait(lambda: len(chromium.find_all("#maps .map")) == 3 * 4)
    assert chromium.find("input[name=checkpoint]:checked").get_attribute("value") == "small"


def test_a_page_without_a_network_says_so(chromium, server, monkeypatch):
    monkeypatch.setattr(server, "missing", "vit-mnist-small/config.json")
    chromium.driver.get(chromium.address)
    chromium.wait(chromium.find("#problem").is_displayed)
    assert chromium.find("#problem").text.endswith("Choose a network to try again.")
    assert not chromium.find_all("input[name=checkpoint]:checked")
    monkeypatch.setattr(server, "missing", "attention.js")
    chromium.driver.get(chromium.address)
    chromium.wait(chromium.find("#not-loaded").is_displayed)
    assert not chromium.find("#from-file").is_displayed()


def test_a_slow_network_is_loading_and_drawing_goes_on(page, server, monkeypatch):
    monkeypatch.setattr(server, "slow", "model.safetensors")
    server.gate.clear()
    page.driver.get(page.address)
    page.wait(lambda: page.find("#status").text == "Loading small …")
    page.draw(DIGITS["7"])
    assert not any(problem.is_displayed() for problem in page.find_all(".problem")) and page.prediction == "–"
    server.gate.set()
    page.wait(lambda: page.prediction == "7")
    assert page.find("#status").text == ""


def test_a_page_that_was_opened_from_a_file_says_how_to_serve_it(chromium):
    chromium.driver.get((WEB / "index.html").as_uri())
    chromium.wait(chromium.find("#from-file").is_displayed)
    advice = "Start python -m http.server in the repository and open http://localhost:8000/demo/web/."
    assert chromium.find("#from-file").text.endswith(advice)
    assert not chromium.find("#not-loaded").is_displayed()


def test_a_space_stands_alone(chromium, tmp_path):
    """The exported folder, served alone, reads a drawing with each of its networks."""
    run_export(ExportArguments(format="space", output=str(tmp_path)))
    chromium.driver.get_log("browser")
    server = serve(tmp_path)
    chromium.address, address = f"http://127.0.0.1:{server.server_port}/", chromium.address
    try:
        for checkpoint in ("tiny", "best", "small"):
            chromium.open(checkpoint=checkpoint)
            chromium.draw(DIGITS["7"])
            assert chromium.prediction == "7"
        assert chromium.find("#networks").text.count("% on MNIST test") == 3
        assert chromium.driver.get_log("browser") == []
        requested = chromium.run("return performance.getEntriesByType('resource').map((entry) => entry.name)")
        assert all(name.startswith((chromium.address, "data:")) for name in requested)
    finally:
        chromium.address = address
        server.shutdown()
        server.server_close()


def test_the_pictures_of_the_documentation(chromium, request):
    """Drawn with --screenshot docs/demo.png, which writes docs/demo-dark.png, too."""
    path = request.config.getoption("--screenshot")
    if path is None:
        pytest.skip("needs --screenshot FILE")
    for scheme, name in (("light", path.name), ("dark", f"{path.stem}-dark{path.suffix}")):
        chromium.driver.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
        chromium.open(width=1040, height=1000, scheme=scheme, checkpoint="tiny")
        chromium.draw(DIGITS["2"])
        chromium.point_at(chromium.find("#picker [data-token='0']"))
        chromium.run("scrollTo(0, 0)")
        chromium.wait(lambda: chromium.run("return document.getAnimations().length") == 0)
        with PIL.Image.open(io.BytesIO(chromium.driver.get_screenshot_as_png())) as picture:
            picture.convert("RGB").save(path.with_name(name), optimize=True)
