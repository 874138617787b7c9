"""The view of the whole network: its numbers in Node against the package, and the page in Chromium."""

import base64
import functools
import http.server
import json
import re
import threading

import numpy as np
import pytest
import torch

from modeling_vit_mnist import VitMnistConfig, VitMnistForImageClassification, VitMnistImageProcessor
from modeling_vit_mnist.checkpoints.folder import load_checkpoint, save_checkpoint
from modeling_vit_mnist.checkpoints.space import export_space
from modeling_vit_mnist.deskewing_vit_mnist import deskew

from .conftest import ROOT
from .test_web import WEB, camera, chromium, needs_node, node, page, server  # noqa: F401 - fixtures

CHECKPOINTS = ["tiny", "best"]
# Reads a checkpoint in Node; prints what `run(vit)` returns.
PROGRAM = """
import {{ readFileSync }} from "node:fs";
import {{ Vit, parseSafetensors }} from {web}/vit.js";
import {{ explain, isParameter, offset, valueOf }} from {web}/terms.js";
import {{ makeStages }} from {web}/stages.js";
const folder = {folder!r};
const input = JSON.parse(readFileSync({input!r}));
const file = readFileSync(folder + "/model.safetensors");
const buffer = file.buffer.slice(file.byteOffset, file.byteOffset + file.length);
const vit = new Vit(JSON.parse(readFileSync(folder + "/config.json")), parseSafetensors(buffer));
{code}
"""


def run_network(name: str, code: str, data, tmp_path):
    """What JavaScript prints that has a network as `vit` and this data as `input`."""
    (tmp_path / "input.json").write_text(json.dumps(data))
    names = {"web": f'"{WEB}', "folder": str(ROOT / f"vit-mnist-{name}"), "input": str(tmp_path / "input.json")}
    return node(PROGRAM.format(code=code, **names), tmp_path)


def load_double(name: str):
    """In float64, as JavaScript computes."""
    model, processor = load_checkpoint(ROOT / f"vit-mnist-{name}", attn_implementation="eager")
    return model.eval().double(), processor


def first_of_each_class(sample) -> np.ndarray:
    split = sample["test"]
    labels = [int(label) for label in split.labels]
    return split.images[[labels.index(label) for label in range(10)]].numpy()


def encode(image: np.ndarray) -> str:
    return base64.urlsafe_b64encode(image.tobytes()).decode().rstrip("=")


def record_modules(model, pixel_values) -> dict[str, torch.Tensor]:
    """What each module returns, and what `attn.proj` and `norm2` get, for one image."""
    found = {}

    def keep(name, value):
        found[name] = (value[0] if isinstance(value, tuple) else value)[0]

    hooks = []
    for name, module in model.named_modules():
        hooks.append(module.register_forward_hook(lambda _, __, output, name=name: keep(name, output)))
        if name.endswith(("attn.proj", "norm2")):
            hooks.append(module.register_forward_pre_hook(lambda _, inputs, name=name: keep(f"{name} input", inputs)))
    with torch.no_grad():
        outputs = model(pixel_values, output_attentions=True)
    for hook in hooks:
        hook.remove()
    found["attentions"] = torch.stack(outputs.attentions)[:, 0]
    found["head"] = outputs.logits
    return found


def expected_values(model, pixel_values) -> dict[str, torch.Tensor]:
    """Python's numbers under the names of vit.js."""
    found = record_modules(model, pixel_values)
    values = {"pixel_values": pixel_values[0, 0], "vit.norm": found["vit.norm"][:1], "head": found["head"]}
    values["probabilities"] = found["head"].softmax(-1)
    values |= {name: found[name] for name in ("vit.patch_embed", "vit.pos_drop")}
    for layer in range(2):
        block = f"vit.blocks.{layer}"
        parts = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.act", "mlp.fc2")
        values |= {f"{block}.{part}": found[f"{block}.{part}"] for part in parts}
        values[block] = found[block]
        values[f"{block}.attn.attended"] = found[f"{block}.attn.proj input"]
        values[f"{block}.hidden_states"] = found[f"{block}.norm2 input"]
        values[f"{block}.attn.probabilities"] = found["attentions"][layer]
        query, key, _ = found[f"{block}.attn.qkv"].view(17, 3, 2, 4).permute(1, 2, 0, 3)
        values[f"{block}.attn.scores"] = query @ key.transpose(1, 2) / 2
    return values


@needs_node
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_every_intermediate_number_is_that_of_the_model(name, sample, tmp_path):
    model, processor = load_double(name)
    pixel_values = processor.rescale_and_normalize(torch.from_numpy(first_of_each_class(sample))).double()
    code = "console.log(JSON.stringify(input.map((pixels) => vit.trace(pixels).values)));"
    traces = run_network(name, code, pixel_values.flatten(1).tolist(), tmp_path)
    for image, values in zip(pixel_values, traces, strict=True):
        expected = expected_values(model, image[None])
        assert values.keys() == expected.keys()
        for key, value in values.items():
            np.testing.assert_allclose(value, expected[key], rtol=0, atol=1e-5, err_msg=key)


@needs_node
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_terms_of_every_number_add_up_to_it(name, sample, tmp_path):
    """Each term is the product of its factors, which are numbers of the network; together they use all weights."""
    _, processor = load_double(name)
    pixels = processor.rescale_and_normalize(torch.from_numpy(first_of_each_class(sample)[3:4])).flatten()
    code = """
const { values } = vit.trace(input);
const used = new Set();
const wrong = [];
let count = 0;
const close = (one, two) => Math.abs(one - two) < 1e-9;
function check(name, value, index) {
  if (Array.isArray(value)) return value.forEach((inner, i) => check(name, inner, [...index, i]));
  count++;
  const { terms } = explain(vit, values, name, index);
  let isRight = close(terms.reduce((sum, term) => sum + term.value, 0), value);
  for (const { value, factors } of terms) {
    isRight &&= close(factors.reduce((product, factor) => product * factor.value, 1), value);
    for (const { name, index, value, label } of factors.filter((factor) => factor.name)) {
      isRight &&= label !== undefined || value === valueOf(vit, values, name, index);
      if (isParameter(vit, name)) used.add(`${name} ${offset(vit.tensors[name].shape, index)}`);
    }
  }
  if (!isRight) wrong.push([name, index]);
}
for (const [name, value] of Object.entries(values)) if (name !== "pixel_values") check(name, value, []);
console.log(JSON.stringify({ count, wrong, used: used.size }));
"""
    tokens = 17 * 8
    numbers = 16 * 8 + tokens + 2 * (10 * tokens + 2 * 2 * 17 * 17 + 2 * 17 * 16) + 8 + 10 + 10
    found = run_network(name, code, pixels.tolist(), tmp_path)
    assert found == {"count": numbers, "wrong": [], "used": 1850}


@needs_node
def test_every_number_has_a_place_on_the_page(sample, tmp_path):
    code = """
const { values } = vit.trace(input);
const shown = new Set();
function visit(node) {
  for (const inner of node.row ?? node.stack ?? node.grid ?? []) visit(inner);
  if (!node.at) return;
  for (let row = 0; row < node.rows; row++)
    for (let column = 0; column < node.columns; column++) shown.add(JSON.stringify(node.at(row, column)));
}
const stages = makeStages(vit, { mean: 0.1307, std: 0.3081 });
for (const { content } of stages) visit(content);
const range = (length) => Array.from({ length }, (_, i) => i);
const indices = (shape) => shape.reduce((all, size) => all.flatMap((at) => range(size).map((i) => [...at, i])), [[]]);
const shapeOf = (value) => (Array.isArray(value) ? [value.length, ...shapeOf(value[0])] : []);
const shapes = [...Object.entries(vit.tensors).map(([name, { shape }]) => [name, shape]),
  ...Object.entries(values).map(([name, value]) => [name, shapeOf(value)])];
const all = shapes.flatMap(([name, shape]) => indices(shape).map((index) => JSON.stringify([name, index])));
const isParameterOf = (text) => isParameter(vit, JSON.parse(text)[0]);
console.log(JSON.stringify({
  missing: all.filter((number) => !shown.has(number)),
  unknown: [...shown].filter((number) => !all.includes(number)),
  parameters: [...shown].filter(isParameterOf).length,
  stages: stages.length,
}));
"""
    found = run_network("tiny", code, [0.0] * 784, tmp_path)
    assert found == {"missing": [], "unknown": [], "parameters": 1850, "stages": 16}


@needs_node
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_changed_weight_gives_the_logits_of_the_changed_model(name, sample, tmp_path):
    """For one weight of each tensor."""
    model, processor = load_double(name)
    pixel_values = processor.rescale_and_normalize(torch.from_numpy(first_of_each_class(sample)[7:8])).double()
    draw = np.random.default_rng(0)
    edits = [
        (parameter, int(draw.integers(tensor.numel())), float(np.float32(draw.normal(0, 3))))
        for parameter, tensor in model.named_parameters()
    ]
    code = """
console.log(JSON.stringify(input.edits.map(([name, at, value]) => {
  const { data } = vit.tensors[name];
  const trained = data[at];
  data[at] = value;
  const { logits } = vit.forward(input.pixels);
  data[at] = trained;
  return logits;
})));
"""
    found = run_network(name, code, {"edits": edits, "pixels": pixel_values.flatten().tolist()}, tmp_path)
    with torch.no_grad():
        unchanged = model(pixel_values).logits[0]
        for (parameter, at, value), logits in zip(edits, found, strict=True):
            flat = model.get_parameter(parameter).view(-1)
            trained = flat[at].item()
            flat[at] = value
            np.testing.assert_allclose(logits, model(pixel_values).logits[0], rtol=0, atol=1e-5, err_msg=parameter)
            flat[at] = trained
            assert not np.allclose(logits, unchanged, atol=1e-3), parameter


@needs_node
def test_links_carry_the_drawing(sample, tmp_path):
    images = first_of_each_class(sample)
    (tmp_path / "images.json").write_text(json.dumps(images.reshape(10, -1).tolist()))
    found = node(
        f"""
import {{ readFileSync }} from "node:fs";
import {{ decodeLink, encodeLink }} from {str(WEB / "link.js")!r};
import {{ EXAMPLES }} from {str(WEB / "digits.js")!r};
const images = JSON.parse(readFileSync({str(tmp_path / "images.json")!r}));
const links = images.map((image, i) => encodeLink({{ model: "best", image: Uint8Array.from(image), step: i }}));
const decoded = links.map((link) => decodeLink("#" + link));
for (const carried of decoded) carried.image = Array.from(carried.image);
console.log(JSON.stringify({{ links, decoded, EXAMPLES }}));
""",
        tmp_path,
    )
    for step, (image, link, decoded) in enumerate(zip(images, found["links"], found["decoded"], strict=True)):
        assert link == f"model=best&image={encode(image)}" + (f"&step={step}" if step else "")
        expected = {"model": "best", "image": image.flatten().tolist(), "step": step or None, "problems": []}
        assert decoded == expected
    assert found["EXAMPLES"] == [{"label": label, "image": encode(image)} for label, image in enumerate(images)]


# ---- in Chromium


class NetworkPage:
    def __init__(self, base):
        self.base, self.driver = base, base.driver
        self.find, self.find_all, self.run, self.wait = base.find, base.find_all, base.run, base.wait

    def open(self, link: str = "", width: int = 1280, height: int = 900, scheme: str = "light", scale: float = 1):
        metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
        media = [{"name": name, "value": value} for name, value in features.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
        self.driver.get("about:blank")  # else only the part behind # changes
        self.driver.get(self.base.address + "network.html" + link)
        self.wait(lambda: self.find("#prediction").text not in ("", "…"))
        return self

    def text(self, selector: str) -> str:
        return self.find(selector).text

    @property
    def probabilities(self) -> list[float]:
        label = self.find("#shares").get_attribute("aria-label")
        return [float(share) / 100 for share in re.findall(r"\d: ([\d.]+) %", label)]

    def point(self, stage: int, index: int, row: int, column: int, click: bool = False):
        """Move the mouse to a cell of a map of a stage; both count from 1."""
        from selenium.webdriver.common.action_chains import ActionChains

        canvas = self.find(f"#stages > :nth-child({stage})").find_elements("css selector", ".map canvas")[index - 1]
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
        width, height = canvas.rect["width"], canvas.rect["height"]
        rows, columns = self.driver.execute_script("return [arguments[0].height, arguments[0].width]", canvas)
        at = [round((column + 0.5) * width / columns - width / 2), round((row + 0.5) * height / rows - height / 2)]
        actions = ActionChains(self.driver, duration=5).move_to_element_with_offset(canvas, *at)
        (actions.click() if click else actions).perform()

    @property
    def reading(self) -> float:
        return number(self.text("#reading"))


def number(text: str) -> float:
    return float(text.split(":")[-1].replace("−", "-"))


@pytest.fixture
def view(page):  # noqa: F811
    return NetworkPage(page)


def logits_of(name: str, image: np.ndarray, edit=None) -> torch.Tensor:
    """For an image as the network gets it, framed and, if the checkpoint does that, deskewed."""
    model, processor = load_double(name)
    with torch.no_grad():
        if edit:
            parameter, at, value = edit
            model.get_parameter(parameter)[at] = value
        return model(processor.rescale_and_normalize(torch.from_numpy(image)[None]).double()).logits[0]


def test_opens_without_a_link(view):
    view.open()
    assert view.text("#prediction") == "5" and not view.find("#problem").is_displayed()
    counts = [int(item.text.split()[0].replace(",", "")) for item in view.find_all("#counter li")]
    assert sum(counts[:-1]) == counts[-1] == 1850
    assert len(view.find_all("#stages > section")) == 16
    view.find("#examples button:nth-child(8)").click()
    assert view.text("#prediction") == "7"
    assert view.find("header a").get_attribute("href").endswith("/index.html")


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_link_shows_its_drawing(view, sample, name):
    image = first_of_each_class(sample)[6]
    if name == "best":
        image = deskew(image)
    view.open(f"#model={name}&image={encode(image)}&step=14")
    expected = logits_of(name, image).softmax(-1)
    assert view.find(f"input[value={name}]").is_selected()
    assert view.text("#prediction") == "6" and view.text("#position") == "14 of 16"
    np.testing.assert_allclose(view.probabilities, expected, atol=6e-4)  # rounded to 0.1 %
    assert not view.find("#problem").is_displayed()


def test_the_network_can_be_changed(view, sample):
    """best gets the digit upright; small is too large."""
    view.open()
    view.find("input[value=small]").click()
    view.wait(lambda: "small has 105,546 parameters" in view.text("#problem"))
    assert view.find("input[value=tiny]").is_selected() and view.text("#prediction") == "5"
    view.find("input[value=best]").click()
    image = deskew(first_of_each_class(sample)[5])
    view.wait(lambda: f"model=best&image={encode(image)}" in view.driver.current_url)
    np.testing.assert_allclose(view.probabilities, logits_of("best", image).softmax(-1), atol=6e-4)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_steps_by_keyboard(view, scheme, request):
    """With --screenshot docs/network.png, the attention of the first block becomes this picture, or its dark twin."""
    from selenium.webdriver.common.keys import Keys

    picture = request.config.getoption("--screenshot")
    view.open(scheme=scheme, scale=1.25 if picture else 1)

    def press(key):
        view.driver.switch_to.active_element.send_keys(key)

    readings = set()
    for step in range(1, 17):
        press(Keys.ARROW_RIGHT)
        current = view.find_all(".stage.current")
        assert len(current) == 1 and current[0].text.startswith(f"{step}. ")
        sentences = current[0].find_element("css selector", ".sentences").text
        assert sentences.count(". ") >= 1 and re.search(r"\d", sentences)
        assert view.text("#position") == f"{step} of 16"
        assert view.driver.current_url.endswith(f"&step={step}")
        in_view = "const top = arguments[0].getBoundingClientRect().top; return top >= 0 && top < innerHeight"
        assert view.driver.execute_script(in_view, current[0])
        readings.add(view.text("#reading"))
        if step == 6 and picture:
            view.driver.save_screenshot(picture.with_stem(picture.stem + ("-dark" if scheme == "dark" else "")))
    assert len(readings) == 16  # each step shows a number of its own
    press(Keys.ARROW_RIGHT)
    assert view.text("#position") == "16 of 16" and not view.find("#next").is_enabled()
    press(Keys.ARROW_LEFT)
    assert view.text("#position") == "15 of 16"


def test_hovering_a_number_shows_what_it_was_made_of(view, sample):
    """The values are Python's, and the terms add up to them as far as they are rounded."""
    view.open()
    model, processor = load_double("tiny")
    pixel_values = processor.rescale_and_normalize(torch.from_numpy(first_of_each_class(sample)[5:6])).double()
    values = expected_values(model, pixel_values)
    # stage, map, cell, what it shows
    for stage, index, (row, column), name, at in [
        (2, 17, (9, 5), "vit.patch_embed", (9, 5)),
        (3, 4, (0, 3), "vit.pos_drop", (0, 3)),
        (5, 7, (4, 1), "vit.blocks.0.attn.qkv", (4, 9)),
        (6, 3, (2, 16), "vit.blocks.0.attn.scores", (0, 2, 16)),
        (6, 6, (12, 1), "vit.blocks.0.attn.attended", (12, 1)),
        (13, 13, (16, 7), "vit.blocks.1", (16, 7)),
        (15, 4, (0, 5), "head", (0, 5)),
    ]:
        view.point(stage, index, row, column)
        assert view.text("#details code") == f"{name}[{', '.join(map(str, at))}]"
        expected = values[name][at].item()
        np.testing.assert_allclose(view.reading, expected, rtol=1e-3, atol=6e-4)
        terms = [number(cell.text) for cell in view.find_all(".terms tbody td:nth-child(3)")]
        np.testing.assert_allclose(sum(terms), expected, atol=0.003 * len(terms))
        assert terms == sorted(terms, key=abs, reverse=True) and view.find_all(".related")


def test_numbers_are_reached_by_keyboard_and_terms_are_followed(view):
    from selenium.webdriver.common.keys import Keys

    view.open()
    canvas = view.find_all("#stages > :nth-child(2) .map canvas")[-1]
    view.driver.execute_script("arguments[0].focus({focusVisible: true})", canvas)
    canvas.send_keys(Keys.ARROW_DOWN * 9, Keys.ARROW_RIGHT * 6, Keys.ARROW_LEFT)
    assert view.text("#details code") == "vit.patch_embed[9, 5]"
    assert view.text("#position") == "16 steps"
    canvas.send_keys(Keys.ENTER)
    view.find(".terms .weight").click()
    assert view.text("#details code").startswith("vit.patch_embed.proj.weight[5, 0, ")
    assert view.find("#details input[type=range]").is_displayed()
    view.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert view.text("#reading") == "Point at a number"


def test_a_changed_weight_changes_the_answer(view, sample):
    """To what Python answers with the same change; everything comes back with a reset."""
    view.open()
    image = first_of_each_class(sample)[5]
    before = view.probabilities
    pictures = "return [...document.querySelectorAll('#stages canvas')].map((canvas) => canvas.toDataURL())"
    drawn = view.run(pictures)
    view.point(15, 2, 6, 5, click=True)
    assert view.text("#details code") == "head.weight[5, 6]"
    field = view.find("#details input[type=number]")
    for value in (-3, 1.5, 100):
        view.driver.execute_script("arguments[0].value = ''", field)
        field.send_keys(str(value))
        expected = logits_of("tiny", image, ("head.weight", (5, 6), value)).softmax(-1)
        assert view.text("#prediction") == str(expected.argmax().item()) == "8"
        np.testing.assert_allclose(view.probabilities, expected, atol=6e-4)
    slider = view.find("#details input[type=range]")
    view.driver.execute_script("arguments[0].value = -4; arguments[0].dispatchEvent(new Event('input'))", slider)
    expected = logits_of("tiny", image, ("head.weight", (5, 6), -4)).softmax(-1)
    np.testing.assert_allclose(view.probabilities, expected, atol=6e-4)
    assert view.text("#edits span") == "1 weight changed"
    view.find("#reset").click()
    assert view.probabilities == before and not view.find("#edits").is_displayed()
    assert view.run(pictures) == drawn

    view.point(2, 1, 3, 3, click=True)  # a weight of the first filter changes all stages behind it
    field = view.find("#details input[type=number]")
    view.driver.execute_script("arguments[0].value = ''", field)
    field.send_keys("4")
    changed = [old != new for old, new in zip(drawn, view.run(pictures), strict=True)]
    names = view.run(
        "return [...document.querySelectorAll('#stages canvas')].map((canvas) => canvas.ariaLabel ?? 'legend')"
    )
    for title in ("tokens after", "after GELU", "CLS after each stage", "attention, from row to column"):
        assert all(change for name, change in zip(names, changed, strict=True) if name.startswith(title)), title


@pytest.mark.parametrize(
    "link, sentence",
    [
        ("#", None),
        ("#model=huge", "none of tiny, best, small"),
        ("#model=constructor&image=AAAA", "has 3 bytes instead of 784"),
        ("#image=%25%F0%9F%98%80", "not base64url"),
        ("#image=" + "A" * 5000, "bytes instead of 784"),
        ("#step=-1", "not a number"),
        ("#step=999", None),
        ("#%00&&==&image", "0 bytes"),
        ("#model=small", "small has 105,546 parameters: too many"),
    ],
)
def test_malformed_links_are_explained(view, link, sentence):
    view.open(link)
    problem = view.find("#problem")
    assert (sentence in problem.text) if sentence else (not problem.is_displayed() or "example" in problem.text)
    assert view.text("#prediction") == "5" and view.find("input[value=tiny]").is_selected()


def test_a_changed_address_is_followed_and_links_are_copied(view, sample):
    view.open()
    grant = {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    view.driver.execute_cdp_cmd("Browser.grantPermissions", grant)
    image = first_of_each_class(sample)[2]
    view.run(f"location.hash = '#model=tiny&image={encode(image)}&step=3'")
    view.wait(lambda: view.text("#prediction") == "2")
    view.find("#copy").click()
    view.wait(lambda: view.text("#copied") != "")
    copied = view.driver.execute_async_script(
        "navigator.clipboard.readText().then(arguments[0], (error) => arguments[0](String(error)))"
    )
    assert copied.endswith(f"network.html#model=tiny&image={encode(image)}&step=3")


@pytest.mark.parametrize("width", [320, 390, 768, 1024, 1280])
def test_fits_the_window_and_follows_the_color_scheme(view, width):
    paper = {}
    for scheme in ("light", "dark"):
        view.open(width=width, height=844, scheme=scheme)
        assert view.run("return document.documentElement.scrollWidth <= innerWidth")
        cut = view.run(
            "const right = (element) => element.getBoundingClientRect().right;"
            "return [...document.querySelectorAll('.map, .bars')]"
            ".filter((map) => right(map) > right(map.closest('.stage'))).map((map) => map.outerHTML)"
        )
        assert cut == []
        color = view.run("return getComputedStyle(document.body).backgroundColor")
        paper[scheme] = [int(level) for level in color.removeprefix("rgb(").removesuffix(")").split(", ")]
    assert min(paper["light"]) > 200 and max(paper["dark"]) < 60


def test_a_tap_on_a_phone_opens_a_sheet(view):
    view.open(width=390, height=844)
    sheet = view.find("#inspector")
    assert not sheet.is_displayed()
    canvas = view.find_all("#stages > :nth-child(4) .map canvas")[-1]
    view.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    view.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    canvas.click()
    assert sheet.is_displayed() and view.text("#details code").startswith("vit.blocks.0.norm1[")
    assert sheet.rect["height"] <= 0.45 * 844
    view.find("#close").click()
    assert not sheet.is_displayed()
    view.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})


def test_missing_weights_are_reported(chromium, server):  # noqa: F811
    """The next network takes their place; without any, the page says so until one can be loaded."""
    server.missing = "vit-mnist-tiny/model.safetensors"
    view = NetworkPage(chromium).open("#model=tiny")
    problem = view.text("#problem")
    assert "tiny cannot be loaded" in problem and "404" in problem and "This is the network best." in problem
    assert view.find("input[value=best]").is_selected()
    view.find("input[value=tiny]").click()
    view.wait(lambda: "The page still shows best." in view.text("#problem"))
    assert view.find("input[value=best]").is_selected()
    server.missing = "model.safetensors"
    view.driver.refresh()
    view.wait(lambda: "cannot be loaded" in view.text("#problem"))
    server.missing = None
    view.find("input[value=tiny]").click()
    view.wait(lambda: view.text("#prediction") == "5")
    assert not view.find("#problem").is_displayed()


def test_other_networks_are_shown(chromium, tmp_path):  # noqa: F811
    """A Space of another network than the bundled ones, of other sizes and classes, without biases of queries."""
    folder, space = tmp_path / "vit-mnist-own", tmp_path / "space"
    config = VitMnistConfig(
        hidden_size=12, num_attention_heads=3, num_hidden_layers=1, intermediate_size=20, patch_size=14,
        qkv_bias=False, id2label={0: "even", 1: "odd"}, label2id={"even": 0, "odd": 1},
    )  # fmt: skip
    torch.manual_seed(0)
    model = VitMnistForImageClassification(config)
    save_checkpoint(folder, model, VitMnistImageProcessor(do_frame=True), card="---\nlicense: mit\n---\n", records={})
    space.mkdir()
    export_space(space, [str(folder)])
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=space)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as own:
        threading.Thread(target=own.serve_forever, daemon=True).start()
        chromium.driver.get(f"http://127.0.0.1:{own.server_port}/network.html")
        chromium.wait(lambda: chromium.find("#prediction").text in ("even", "odd"))
        assert chromium.find("#total").text == f"{model.num_parameters():,}"
        assert len(chromium.find_all("#stages > section")) == 6 + 5
        assert not chromium.find("#problem").is_displayed()
        own.shutdown()
