"""Every test runs offline, with caches of its own and in one thread, so that results are the same anywhere."""

import os
import runpy
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path


CACHE = tempfile.TemporaryDirectory(prefix="vit-mnist-tests-")
MNIST = os.environ.pop("VIT_MNIST_DATASET", None)
os.environ |= {
    "HF_HOME": CACHE.name,
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "ACCELERATE_USE_CPU": "true",
}

import pytest  # noqa: E402
import torch  # noqa: E402


torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "data" / "mnist-5k"


def pytest_addoption(parser):
    parser.addoption("--screenshot", type=Path, help="file for the browser's picture of the demo: docs/demo.png")


@dataclass
class Finished:
    """What a script left behind: exit code, output and error lines."""

    code: int
    out: str
    err: str


@pytest.fixture
def run_script(capfd, monkeypatch):
    """Run a script of the repository in this process, which spares it the seconds of its imports."""

    def run(name: str, *arguments) -> Finished:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        try:
            runpy.run_path(str(ROOT / name), run_name="__main__")
            code = 0
        except SystemExit as stopped:
            code = stopped.code
        return Finished(code or 0, *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def mnist() -> str:
    """Folder of the full MNIST, named by VIT_MNIST_DATASET."""
    if MNIST is None or not Path(MNIST).is_dir():
        pytest.skip("needs the full MNIST: set VIT_MNIST_DATASET to its folder")
    return str(Path(MNIST).resolve())


@pytest.fixture(scope="session")
def sample():
    """The kept sample's splits, decoded."""
    from modeling_vit_mnist.arguments import DataArguments
    from modeling_vit_mnist.data import load_digits
    from modeling_vit_mnist.image_processing_vit_mnist import VitMnistImageProcessor

    return load_digits(DataArguments(dataset_name=str(SAMPLE)), VitMnistImageProcessor())
