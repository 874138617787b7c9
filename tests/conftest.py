"""All tests run offline, with caches of their own and one thread, so that results are the same everywhere."""

import os
import runpy
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

CACHE = tempfile.TemporaryDirectory(prefix="vit-mnist-tests-")
# pytest-xdist starts its workers with the environment as changed here, so the folder moves to another variable.
MNIST = os.environ.pop("VIT_MNIST_DATASET", os.environ.get("VIT_MNIST_TEST_DATASET"))
os.environ["VIT_MNIST_TEST_DATASET"] = MNIST or ""
os.environ |= {
    "HF_HOME": CACHE.name,
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "ACCELERATE_USE_CPU": "true",
}

import pytest  # noqa: E402
import setuptools  # noqa: E402, F401 - torch.compile needs it imported before distutils
import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import TrainerCallback  # noqa: E402

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "data" / "mnist-5k"
TINY = ROOT / "vit-mnist-tiny"
# Flags of a training run of a second.
QUICK = [
    f"--recipe={ROOT / 'configs' / 'adam.yaml'}",
    f"--dataset_name={SAMPLE}",
    "--max_train_samples=400",
    "--max_eval_samples=100",
    "--num_train_epochs=4",
    "--per_device_train_batch_size=100",
    "--use_cpu=True",
    "--disable_tqdm=True",
]


def pytest_addoption(parser):
    parser.addoption("--screenshot", type=Path, help="file for the browser's picture of the demo: docs/demo.png")


@dataclass
class Finished:
    """Exit code, output and error lines of a script."""

    code: int
    out: str
    err: str


@pytest.fixture
def run_script(capfd, monkeypatch):
    """Run a script of the repository in this process, without the seconds that its imports take."""

    def run(name: str, *arguments) -> Finished:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        monkeypatch.syspath_prepend((ROOT / name).parent)  # as Python does for a script
        try:
            runpy.run_path(str(ROOT / name), run_name="__main__")
            code = 0
        except SystemExit as stopped:
            code = stopped.code
        return Finished(code or 0, *capfd.readouterr())

    return run


@pytest.fixture(autouse=True)
def no_runs(tmp_path_factory, monkeypatch):
    """Without --model, commands show the bundled checkpoint, whatever was trained in this repository."""
    from modeling_vit_mnist.checkpoints import folder

    monkeypatch.setattr(folder, "RUNS", tmp_path_factory.getbasetemp() / "no runs")


@pytest.fixture(scope="session")
def mnist() -> str:
    """Folder of the full MNIST, named by VIT_MNIST_DATASET."""
    if not MNIST or not Path(MNIST).is_dir():
        pytest.skip("needs the full MNIST: set VIT_MNIST_DATASET to its folder")
    return str(Path(MNIST).resolve())


@pytest.fixture(scope="session")
def sample():
    """The splits of the bundled sample, decoded."""
    from modeling_vit_mnist import VitMnistImageProcessor
    from modeling_vit_mnist.data.arguments import DataArguments
    from modeling_vit_mnist.data.splits import load_images

    return load_images(DataArguments(dataset_name=str(SAMPLE)), VitMnistImageProcessor())


def arguments(folder, *more):
    """Arguments of `train` for a quick run in `folder`, with further flags."""
    from modeling_vit_mnist.training.arguments import parse_arguments

    return parse_arguments([*QUICK, f"--output_dir={folder}", *more])


def weights(folder) -> dict[str, torch.Tensor]:
    """The saved weights in a checkpoint folder."""
    return load_file(Path(folder) / "model.safetensors")


class Stop(Exception):
    """Raised by `stop_after`."""


def stop_after(epochs: float, monkeypatch) -> None:
    """Make training raise [`Stop`] right after it has written the checkpoint of an epoch."""
    from modeling_vit_mnist.training import trainer

    class Killer(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            if state.epoch >= epochs:
                raise Stop

    monkeypatch.setattr(trainer, "EpochReportCallback", Killer)
