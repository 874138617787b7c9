"""The demo page: its network and framing in Node against the package, and the whole page in Chromium."""

import functools
import http.server
import io
import json
import math
import shutil
import subprocess
import threading

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest
import torch

from modeling_vit_mnist import digit_score
from modeling_vit_mnist.checkpoints.folder import load_checkpoint
from modeling_vit_mnist.deskewing_vit_mnist import deskew
from modeling_vit_mnist.framing_vit_mnist import frame_digit

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
    return [*images, noisy, dot, hairline, blob, across, speck]


def sketch(digits: str, ink: int, paper: int, thickness: int = 22) -> np.ndarray:
    """Digits side by side, each on 280x280 pixels."""
    image = PIL.Image.new("L", (280 * len(digits), 280), paper)
    for index, digit in enumerate(digits):
        for stroke in DIGITS[digit]:
            points = [(280 * index + x, y) for x, y in stroke]
            PIL.ImageDraw.Draw(image).line(points, fill=ink, width=thickness, joint="curve")
    return np.asarray(image)


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
        "two digits": photograph(sketch("27", 60, 210)),
        "paper": photograph(np.full((300, 400), 200)),
    }


@needs_node
def test_framing_computes_the_same(sample, tmp_path):
    """The same pixels, the same reasons, the same notes, for drawings, photographs and an image of MNIST."""
    images = [*drawings(), *photographs().values(), np.zeros((2, 9), np.uint8), sample["test"].images[0].numpy()]
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
        for name in ("problem", "is_framed", "is_dark_on_light", "has_others"):
            first, *others = name.split("_")
            assert got[first + "".join(map(str.capitalize, others))] == getattr(expected, name), (name, image.shape)


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
    """The demo in Chromium, through chromedriver."""

    def __init__(self, driver, address: str):
        self.driver, self.address = driver, address

    def open(self, width: int = 1024, height: int = 720, scheme: str = "light", checkpoint: str = "tiny"):
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1.5, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        self.driver.get(self.address)
        self.find(f"input[value={checkpoint}]").click()
        self.wait(
            lambda: len(self.find_all("#attention canvas")) == (1 + 3 * 4 if checkpoint == "small" else 1 + 2 * 2)
        )
        self.settle()  # the new maps are transparent until the next frame
        return self

    def find(self, selector: str):
        return self.driver.find_element("css selector", selector)

    def find_all(self, selector: str) -> list:
        return self.driver.find_elements("css selector", selector)

    def run(self, code: str):
        return self.driver.execute_script(code)

    def wait(self, condition):
        from selenium.webdriver.support.wait import WebDriverWait

        WebDriverWait(self.driver, 600, poll_frequency=0.05).until(lambda _: condition())

    def draw(self, strokes, kind: str = "mouse"):
        from selenium.webdriver.common.actions.action_builder import ActionBuilder
        from selenium.webdriver.common.actions.pointer_input import PointerInput

        pad = self.find("#pad")
        scale = pad.rect["width"] / 280
        actions = ActionBuilder(self.driver, mouse=PointerInput(kind, kind), duration=5)
        for stroke in strokes:
            for index, (x, y) in enumerate(stroke):
                at = {"x": round((x - 140) * scale), "y": round((y - 140) * scale)}
                actions.pointer_action.move_to(pad, **at)
                if index == 0:
                    actions.pointer_action.pointer_down()
            actions.pointer_action.pointer_up()
        actions.perform()
        self.settle()

    def settle(self):
        """Wait until the page shows the last stroke."""
        self.driver.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")

    @property
    def prediction(self) -> str:
        return self.find("#prediction").text

    @property
    def probabilities(self) -> list[float]:
        return [float(item.text.removesuffix(" %")) / 100 for item in self.find_all(".percent")]

    @property
    def drawing(self) -> np.ndarray:
        """Gray levels of the pad."""
        red = "Array.from(pad.getContext('2d').getImageData(0, 0, 280, 280).data).filter((_, i) => i % 4 === 0)"
        return np.array(self.run(f"const pad = document.getElementById('pad'); return {red}"), np.uint8).reshape(
            280, 280
        )

    @property
    def maps(self) -> list[str]:
        return self.run("return [...document.querySelectorAll('#attention canvas')].map((map) => map.toDataURL())")


@pytest.fixture(scope="module")
def server():
    """Serves the repository as `python -m http.server` does, without paths that contain `server.missing`, and with
    `server.config` in place of the config.json of each checkpoint."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            del self.headers["If-Modified-Since"]  # in whole seconds, in which a test can replace a file twice
            super().do_GET()

        def translate_path(self, path):
            if server.missing is not None and server.missing in path:
                return "/nowhere"
            is_replaced = server.config is not None and path.endswith("/config.json")
            return str(server.config) if is_replaced else super().translate_path(path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=ROOT))
    server.missing = server.config = None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def chromium(server, tmp_path_factory):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not (browser and driver):
        pytest.skip("needs Chromium and chromedriver on the PATH")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    profile = tmp_path_factory.mktemp("chromium")
    for flag in (
        "headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "no-first-run",
        "disable-background-networking", "disable-component-update", "disable-sync", f"user-data-dir={profile}",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
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
def test_drawn_digits_are_recognized(page, checkpoint, request):
    """With the probabilities that the package computes for the same drawing."""
    model, processor = load_checkpoint(ROOT / f"vit-mnist-{checkpoint}")
    page.open(checkpoint=checkpoint)
    for digit, strokes in DIGITS.items():
        page.find("#clear").click()
        page.draw(strokes)
        with torch.no_grad():
            logits = model.eval()(**processor(page.drawing, do_frame=True, return_tensors="pt")).logits[0]
        threshold = model.config.digit_score_threshold
        is_rejected = threshold is not None and digit_score(logits) < threshold
        assert page.prediction == ("not a digit?" if is_rejected else digit) and logits.argmax() == int(digit)
        np.testing.assert_allclose(page.probabilities, logits.softmax(-1), atol=6e-4)  # rounded to 0.1 %
    if checkpoint == "small" and request.config.getoption("--screenshot"):
        page.find("#clear").click()
        page.draw(DIGITS["2"])
        page.driver.save_screenshot(request.config.getoption("--screenshot"))


def test_no_digit_and_more_than_one_are_said(page):
    page.open()
    note = page.find("#note")
    assert note.text == ""
    top = page.find("fieldset").rect["y"]
    for strokes, reason in (
        ([[(140, 140)]], "there is only a dot"),
        ([[(0, 140), (279, 140)]], "there is only a line"),
    ):
        page.find("#clear").click()
        page.draw(strokes)
        assert (page.prediction, note.text) == ("–", reason)
        assert {item.text for item in page.find_all(".percent")} == {"–"}
    page.find("#clear").click()
    page.settle()
    assert (page.prediction, note.text) == ("–", "")
    page.draw([[(60, 40), (60, 220)], [(160, 60), (230, 60), (190, 240)]])
    assert (page.prediction, note.text) == ("1", "more than one digit: the clearest is read")
    assert page.find("fieldset").rect["y"] == top
    page.find("#clear").click()
    page.draw(DIGITS["7"])
    assert (page.prediction, note.text) == ("7", "")


def test_what_is_probably_no_digit_is_not_read(page, server, tmp_path, monkeypatch):
    """By the threshold in the config. The bars stay, and nothing moves. Without a threshold, everything is read."""
    record = json.loads((ROOT / "vit-mnist-small" / "config.json").read_text())
    model, processor = load_checkpoint(ROOT / "vit-mnist-small")
    scribble = [[(60, 60), (220, 80), (60, 140), (220, 160), (70, 220), (150, 40), (140, 240)]]
    monkeypatch.setattr(server, "config", tmp_path / "config.json")
    shown = {}
    for threshold in (1e9, None):
        server.config.write_text(json.dumps(record | {"digit_score_threshold": threshold}))
        page.open(checkpoint="small")
        before = [page.find(name).rect for name in ("#pad", "#clear", "fieldset")]
        page.draw(scribble)
        shown[threshold] = page.prediction, page.probabilities, len(page.find_all("#probabilities .best"))
        assert [page.find(name).rect for name in ("#pad", "#clear", "fieldset")] == before
        page.find("#clear").click()
        page.settle()
        assert page.prediction == "–"
    with torch.no_grad():
        page.draw(scribble)
        logits = model.eval()(**processor(page.drawing, do_frame=True, return_tensors="pt")).logits[0]
    score = digit_score(logits).item()
    assert shown[1e9] == ("not a digit?", shown[None][1], 0) and shown[None][0] == str(logits.argmax().item())
    for threshold, is_read in ((score - 0.01, True), (score + 0.01, False)):
        server.config.write_text(json.dumps(record | {"digit_score_threshold": threshold}))
        page.open(checkpoint="small")
        page.draw(scribble)
        assert page.prediction == (shown[None][0] if is_read else "not a digit?")


def test_the_page_starts_with_the_network_that_reads_photographs_best(page):
    page.driver.get(page.address)
    page.wait(lambda: len(page.find_all("#attention canvas")) == 1 + 3 * 4)
    assert page.find("input[name=checkpoint]:checked").get_attribute("value") == "small"


def test_attention_follows_the_drawing(page):
    page.open()
    blank = page.maps
    page.draw([DIGITS["7"][0][:2]])
    half, probabilities = page.maps, page.probabilities
    page.draw([DIGITS["7"][0][1:]])
    for before, after in ((blank, half), (half, page.maps)):
        assert all(old != new for old, new in zip(before, after, strict=True))
    assert page.probabilities != probabilities
    page.find("#clear").click()
    page.settle()
    assert page.maps == blank and page.prediction == "–"


def test_touch_on_a_phone(page):
    page.open(width=360, height=740, scheme="dark")
    page.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    page.draw(DIGITS["4"], kind="touch")
    assert page.prediction == "4"
    in_view = "const box = arguments[0].getBoundingClientRect(); return box.top >= 0 && box.bottom <= innerHeight"
    for selector in ("#pad", "#prediction", "#clear"):  # without scrolling
        assert page.driver.execute_script(in_view, page.find(selector)), selector
    page.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})


def test_keyboard(page):
    from selenium.webdriver.common.keys import Keys

    page.open()

    def press(*keys):
        page.driver.switch_to.active_element.send_keys(*keys)

    press(Keys.SHIFT + Keys.TAB)
    press(Keys.SHIFT + Keys.TAB)  # from the network's radio buttons over Clear to the pad
    press(Keys.ARROW_UP * 9, Keys.SPACE, Keys.ARROW_DOWN * 18, Keys.SPACE, Keys.ARROW_LEFT * 5)
    page.settle()
    assert page.prediction == "1"
    drawing = page.drawing
    assert drawing[60:220, 132:148].min() == 255 and drawing[:, :120].max() == 0  # the lifted pen draws nothing
    press(Keys.DELETE)
    page.settle()
    assert page.prediction == "–" and page.drawing.max() == 0
    press(Keys.TAB)
    press(Keys.TAB)
    press(Keys.ARROW_DOWN * 2)
    page.wait(lambda: len(page.maps) == 1 + 3 * 4)


@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_fits_the_window_and_follows_the_color_scheme(page, width):
    paper = {}
    for scheme in ("light", "dark"):
        page.open(width=width, scheme=scheme, checkpoint="small")
        assert page.run("return document.documentElement.scrollWidth <= innerWidth")
        color = page.run("return getComputedStyle(document.body).backgroundColor")
        paper[scheme] = [int(level) for level in color.removeprefix("rgb(").removesuffix(")").split(", ")]
    assert min(paper["light"]) > 200 and max(paper["dark"]) < 60


def test_missing_weights_are_reported(chromium, server):
    chromium.open()
    server.missing = "vit-mnist-small/model.safetensors"
    chromium.find("input[value=small]").click()
    problem = chromium.find("#problem")
    chromium.wait(problem.is_displayed)
    assert "small network cannot be loaded" in problem.text and "404" in problem.text
    server.missing = None
    chromium.find("input[value=tiny]").click()
    chromium.wait(lambda: not problem.is_displayed())
