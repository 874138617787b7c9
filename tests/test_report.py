"""The report of a run: one page that needs no other file, whatever the names in it are."""

import base64
import json
import re
import shutil
import sys
from html.parser import HTMLParser

import numpy as np
import PIL.Image
import pytest

from modeling_vit_mnist.checkpoints.folder import load_checkpoint
from modeling_vit_mnist.commands import train
from modeling_vit_mnist.data.arguments import DATASET_VARIABLE
from modeling_vit_mnist.inference import report
from modeling_vit_mnist.inference.report import FIGURES

from .conftest import QUICK, SAMPLE, weights

SHOWN = [figure for view, figure in FIGURES.items() if view != "framing"]  # of images that are not framed
EVIL = ["<script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "&amp;", "3", "4", "5", "6", "7", "8", "9"]


@pytest.fixture(scope="module")
def names():
    """Classes whose names are HTML, without slashes, which no folder has."""
    return [name.replace("/", "") for name in EVIL]


@pytest.fixture(scope="module")
def run(tmp_path_factory, names):
    """A short run with `--report`, on class folders with evil names."""
    data, folder = tmp_path_factory.mktemp("<b>data"), tmp_path_factory.mktemp("<i>run")
    rng = np.random.default_rng(0)
    for name in names:
        for split, count in (("train", 24), ("test", 6)):
            (data / split / name).mkdir(parents=True)
            for number in range(count):
                image = PIL.Image.fromarray(rng.integers(0, 255, (28, 28), dtype=np.uint8))
                image.save(data / split / name / f"{number}.png")
    flags = [*QUICK, f"--dataset_name={data}", f"--output_dir={folder}", "--num_train_epochs=1", "--max_shear=6"]
    flags += ["--per_device_train_batch_size=50", "--report"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["run_train.py", *flags])
        train()
    return folder, data, flags


@pytest.fixture(scope="module")
def page(run):
    return (run[0] / "report.html").read_text("utf-8")


@pytest.fixture
def one_figure(monkeypatch):
    """Reports with the mistakes alone, which take less time."""
    monkeypatch.setattr(report, "FIGURES", {"mistakes": FIGURES["mistakes"]})


class Reader(HTMLParser):
    """The tags, attributes and text of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.attributes, self.text = set(), [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


def test_the_page_holds_the_figures_of_the_run(run, page):
    folder, _, _ = run
    results = json.loads((folder / "all_results.json").read_text())
    record = json.loads((folder / "run.json").read_text())
    assert f"<td>{results['test_accuracy']:.2%}</td>" in page and f"<td>{results['eval_accuracy']:.2%}</td>" in page
    assert results["weights"] in page and results["versions"]["torch"] in page and results["device"] in page
    for part in ("training", "augmentation"):
        for name in record[part]:
            assert f'<th scope="row">{name}</th>' in page
    assert "&lt;b&gt;data" in page and "other images than those" not in page
    assert [title for title, *_ in SHOWN] == re.findall("<h2>(.*?)</h2>", page)[3:]
    assert "Not shown" not in page


def test_the_page_holds_its_images_and_loads_nothing(page):
    images = re.findall(r'(?:src|srcset)="data:image/(png|svg\+xml);base64,([^"]+)"', page)
    assert len(images) == 2 * len(SHOWN) and page.count("<img ") == len(SHOWN) == page.count(' alt="')
    for kind, content in images:
        head = base64.b64decode(content)[:200]
        assert head.startswith(b"\x89PNG") if kind == "png" else b"<?xml" in head
    for name, value in Reader(page).attributes:
        assert not name.startswith("on") and name != "href"
        assert name not in ("src", "srcset") or value.startswith("data:image/")
    assert not re.search(r"https?://|@import|url\(", page)


def test_names_are_shown_as_text(page, names):
    read = Reader(page)
    assert all(name in read.text for name in names)
    assert read.tags <= {
        "html", "meta", "title", "style", "h1", "h2", "p", "table", "tr", "th", "td", "details", "summary", "picture",
        "source", "img",
    }  # fmt: skip


def test_the_folder_remains_that_of_its_run(run, page, run_script):
    """The same command finds it finished. Other weights delete the report, which does not describe them."""
    folder, _, flags = run
    before = weights(folder)
    copy = shutil.copytree(folder, folder.parent / "copy")
    flags = [flag for flag in flags if flag != "--report" and "output_dir" not in flag] + [f"--output_dir={copy}"]
    done = run_script("run_train.py", *flags)
    assert done.code == 0 and "This run has already finished" in done.out, done.err
    assert (copy / "report.html").read_text("utf-8") == page
    done = run_script("run_train.py", *flags, "--overwrite", "--seed=1")
    assert done.code == 0 and not (copy / "report.html").exists(), done.err
    assert any((weights(copy)[name] != value).any() for name, value in before.items())


def test_a_report_is_not_pushed(run):
    from modeling_vit_mnist.checkpoints.hub import _files_to_push

    assert "report.html" not in _files_to_push(run[0], allow_sample=True)


def test_the_view_writes_the_same_page(run, page, run_script, one_figure, tmp_path):
    folder, data, _ = run
    done = run_script(
        "run_visualize.py", "report", "--model", folder, "--dataset_name", data, "--output_dir", tmp_path,
        "--max_eval_samples", "100",
    )  # fmt: skip
    assert done.code == 0 and f"Wrote {tmp_path / 'report.html'}" in done.out, done.err
    assert (tmp_path / "report.html").read_text("utf-8").removesuffix("\n</html>\n") in re.sub(
        r"<h2>Training</h2>.*?(?=<h2>Mistakes</h2>)", "", page, flags=re.DOTALL
    )


def test_other_images_than_the_runs_are_named(run_script, one_figure, tmp_path):
    done = run_script(
        "run_visualize.py", "report", "--model", "vit-mnist-tiny", "--dataset_name", SAMPLE, "--split", "validation",
        "--output_dir", tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.err
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "The figures of images show 333 validation images of mnist-5k." in page
    assert "These are other images than those of the results below." in page


def test_that_the_hub_is_out_of_reach_is_said_once(run_script, monkeypatch, tmp_path, caplog):
    monkeypatch.delenv(DATASET_VARIABLE, raising=False)
    monkeypatch.setattr(report, "FIGURES", {view: FIGURES[view] for view in ("mistakes", "framing")})
    done = run_script("run_visualize.py", "report", "--model", "vit-mnist-tiny", "--output_dir", tmp_path)
    assert done.code == 0 and caplog.text.count("The Hub cannot be reached") == 1, done.err


def test_fewer_images_of_the_same_name_are_other_images(run, run_script, one_figure, tmp_path):
    folder, data, _ = run
    fewer = shutil.copytree(data, tmp_path / data.name)
    shutil.rmtree(fewer / "test" / "3")
    done = run_script(
        "run_visualize.py", "report", "--model", folder, "--dataset_name", fewer, "--output_dir", tmp_path
    )
    assert done.code == 0, done.err
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "show 54 test images of" in page and "These are other images than those of the results below." in page


def test_a_folder_without_a_finished_run_has_no_report(run_script, run, tmp_path):
    model, processor = load_checkpoint(run[0])
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    done = run_script("run_visualize.py", "report", "--model", tmp_path / "model", "--output_dir", tmp_path)
    assert done.code == 2 and "holds no finished run" in done.err and not (tmp_path / "report.html").exists()


def test_what_a_report_needs_is_said_before_training(run_script, tmp_path, monkeypatch):
    done = run_script("run_train.py", *QUICK, f"--output_dir={tmp_path}", "--report", "--streaming")
    assert done.code == 2 and "drop --report or --streaming" in done.err
    monkeypatch.setitem(sys.modules, "modeling_vit_mnist.inference.report", None)
    done = run_script("run_train.py", *QUICK, f"--output_dir={tmp_path}", "--report")
    assert done.code == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_opens_without_a_complaint(run, scheme, tmp_path):
    """In Chromium: every image is decoded, nothing is requested, nothing runs, nothing is wider than a phone."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not (browser and driver):
        pytest.skip("needs Chromium and chromedriver on the PATH")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", f"user-data-dir={tmp_path}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        media = [{"name": "prefers-color-scheme", "value": scheme}]
        chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
        size = {"width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": True}
        chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        shutil.copy(run[0] / "report.html", tmp_path / "report.html")
        chrome.get((tmp_path / "report.html").as_uri())
        images = chrome.execute_script(
            "return [...document.images].map((i) => [i.complete && i.naturalWidth > 100, i.currentSrc])"
        )
        sources = {source for _, source in images}
        assert len(sources) == len(images) == len(SHOWN) and all(is_shown for is_shown, _ in images)
        page = (tmp_path / "report.html").read_text("utf-8")
        assert all(f'{"srcset" if scheme == "dark" else "src"}="{source}"' in page for source in sources)
        assert chrome.execute_script("return document.documentElement.scrollWidth") <= 360
        requested = chrome.execute_script("return performance.getEntriesByType('resource').map((e) => e.name)")
        assert all(name.startswith("data:") for name in requested)
        assert chrome.get_log("browser") == []
    finally:
        chrome.quit()
