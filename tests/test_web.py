"""The demo page: its network and framing in Node against the package, and the whole page in Chromium."""

import functools
import http.server
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

from modeling_vit_mnist.checkpoints.folder import load_checkpoint

from .conftest import ROOT, TINY

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="needs Node to run JavaScript")
WEB = ROOT / "demo" / "web"
# Pillow before 13 resampled tall images in another order, which rounds to a neighboring level.
ORDER_SLACK = 0 if int(PIL.__version__.split(".")[0]) >= 13 else 2


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
        for layer, maps in zip(expected.attentions, result["attentions"], strict=True):
            np.testing.assert_allclose(maps, layer[index], atol=1e-4)


def drawings() -> list[np.ndarray]:
    """Strokes of many sizes and positions, a dot, a hairline, noisy paper, blank images."""
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
    return [*images, noisy, dot, hairline]


@needs_node
def test_framing_matches_the_processor(tmp_path):
    processor = load_checkpoint(TINY)[1]
    images = drawings()
    record = [{"width": i.shape[1], "height": i.shape[0], "data": i.flatten().tolist()} for i in images]
    (tmp_path / "drawings.json").write_text(json.dumps(record))
    framed = node(
        f"""
import {{ readFileSync }} from "node:fs";
import {{ frameAsMnist, normalize }} from {str(WEB / "frame.js")!r};
const images = JSON.parse(readFileSync({str(tmp_path / "drawings.json")!r}));
const framed = images.map(frameAsMnist);
console.log(JSON.stringify({{
  bytes: framed.map((bytes) => Array.from(bytes)),
  pixels: framed.map((bytes) => normalize(bytes, 0.1307, 0.3081)),
}}));
""",
        tmp_path,
    )
    for image, got, pixels in zip(images, framed["bytes"], framed["pixels"], strict=True):
        options = {"do_center": True, "return_tensors": "pt"}
        expected = processor(image, do_rescale=False, do_normalize=False, **options).pixel_values[0, 0]
        off = np.abs(np.subtract(got, expected.flatten())).max()
        assert off <= ORDER_SLACK, image.shape
        np.testing.assert_allclose(
            pixels, processor(image, **options).pixel_values.flatten(), rtol=0, atol=1e-6 + off / 78
        )


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
            lambda: len(self.find_all("#attention canvas")) == {"tiny": 1 + 2 * 2, "small": 1 + 3 * 4}[checkpoint]
        )
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
    """Serves the repository as `python -m http.server` does, without paths that contain `server.missing`."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def translate_path(self, path):
            gone = server.missing is not None and server.missing in path
            return "/nowhere" if gone else super().translate_path(path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=ROOT))
    server.missing = None
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


@pytest.mark.parametrize("checkpoint", ["tiny", "small"])
def test_drawn_digits_are_recognized(page, checkpoint, request):
    """With the probabilities that the package computes for the same drawing."""
    model, processor = load_checkpoint(ROOT / f"vit-mnist-{checkpoint}")
    page.open(checkpoint=checkpoint)
    for digit, strokes in DIGITS.items():
        page.find("#clear").click()
        page.draw(strokes)
        assert page.prediction == digit
        with torch.no_grad():
            logits = model.eval()(**processor(page.drawing, do_center=True, return_tensors="pt")).logits[0]
        np.testing.assert_allclose(page.probabilities, logits.softmax(-1), atol=6e-4)  # rounded to 0.1 %
    if checkpoint == "tiny" and request.config.getoption("--screenshot"):
        page.find("#clear").click()
        page.draw(DIGITS["2"])
        page.driver.save_screenshot(request.config.getoption("--screenshot"))


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
    press(Keys.ARROW_DOWN)
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
