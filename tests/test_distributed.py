"""Two CPU processes under `accelerate launch`: the weights of one process, and one end for both."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest
import torch

from modeling_vit_mnist.checkpoints.folder import load_checkpoint
from modeling_vit_mnist.data.arguments import DataArguments
from modeling_vit_mnist.data.splits import load_images
from modeling_vit_mnist.training.arguments import parse_arguments
from modeling_vit_mnist.training.train import train

from .conftest import QUICK, ROOT, SAMPLE, weights

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo needs a POSIX system here")
SGD = ["--optim=sgd", "--learning_rate=0.1", "--warmup_steps=2"]
# 4 steps of the warmup, then 12 of the natural gradient, with two updates of the Fisher matrix. The saved weights are
# those after the last step: weights loaded from a checkpoint would be equal in all processes.
NATURAL = [
    "--optim=natural_gradient", "--learning_rate=0.05", "--warmup_steps=4", "--fisher_update_interval=6",
    "--fisher_batch_size=256", "--load_best_model_at_end=False", "--max_eval_samples=101",
]  # fmt: skip
# The first 2 of 4 epochs are augmented. A worker of each process keeps its copy of the images for the whole run.
WARPED = [*SGD, "--max_translate=2", "--max_rotation=10", "--elastic_std=1", "--augment_until=0.5"]
WORKERS = ["--dataloader_num_workers=1", "--dataloader_persistent_workers=True"]
# Trains with each list of flags, the last one by `run_train.py`, and saves the final weights of every process.
SCRIPT = """
import json, runpy, sys
from safetensors.torch import save_model
from modeling_vit_mnist.training import train as module
from modeling_vit_mnist.checkpoints.folder import load_checkpoint
from modeling_vit_mnist.data.arguments import DataArguments
from modeling_vit_mnist.data.splits import load_images
from modeling_vit_mnist.training.arguments import parse_arguments

def finished_model(trainer, original=module.finished_model):
    model = original(trainer)
    save_model(model, f"{trainer.args.output_dir}.rank{trainer.args.process_index}")
    return model

module.finished_model = finished_model
run_train, *runs = json.loads(sys.argv[1])
for flags in runs[:-1]:
    module.train(*parse_arguments(flags))
sys.argv = [run_train, *runs[-1]]
runpy.run_path(run_train, run_name="__main__")
"""


@contextmanager
def launch(log, *command) -> Iterator[subprocess.Popen]:
    """Start two processes on a free port, and end them when the block ends."""
    config = ROOT / "configs" / "accelerate" / "two_cpu_processes.yaml"
    environment = {name: value for name, value in os.environ.items() if name != "ACCELERATE_USE_CPU"}
    with log.open("w") as file:
        launcher = subprocess.Popen(
            [
                sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config),
                "--main_process_port=0", *map(str, command),
            ],
            env=environment | {"PYTHONPATH": str(ROOT)}, stdout=file, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            yield launcher
        finally:
            if launcher.poll() is None:
                for process in [*psutil.Process(launcher.pid).children(recursive=True), launcher]:
                    process.kill()
                launcher.wait()


def flags(folder, batch_size, *more) -> list[str]:
    return [*QUICK, f"--output_dir={folder}", f"--per_device_train_batch_size={batch_size}", *more]


def losses(folder) -> list[float]:
    history = json.loads((folder / "history.json").read_text())["log_history"]
    assert history[-1]["step"] == 16
    return [entry["loss"] for entry in history if "loss" in entry]


def test_two_processes_train_the_weights_of_one(tmp_path):
    for name, more in (("sgd", SGD), ("warped", WARPED), ("natural", NATURAL)):
        train(*parse_arguments(flags(tmp_path / name, 100, *more)))
    script, log = tmp_path / "script.py", tmp_path / "log"
    script.write_text(SCRIPT)
    two = (("sgd", SGD), ("warped", [*WARPED, *WORKERS]), ("natural", NATURAL))
    runs = [flags(tmp_path / f"{name}-two", 50, *more) for name, more in two]
    with launch(log, script, json.dumps([str(ROOT / "run_train.py"), *runs])) as launcher:
        assert launcher.wait(timeout=600) == 0, log.read_text()
    out = log.read_text()
    assert out.count("Total parameters: 1,850") == out.count("Test accuracy") == 3  # once per run

    # Float noise was 1.2e-7 with SGD, whose steps grow with the gradient, and 2.2e-5 with the natural gradient.
    for name, noise in (("sgd", 1e-6), ("warped", 1e-6), ("natural", 2e-4)):
        one, two = weights(tmp_path / name), weights(tmp_path / f"{name}-two")
        for key in one:
            if key.endswith(
                "qkv.bias"
            ):  # softmax cancels the keys' biases: their gradients are noise, which Adam scales
                one[key][8:16] = two[key][8:16] = 0
            torch.testing.assert_close(two[key], one[key], rtol=0, atol=noise)
        ranks = [(tmp_path / f"{name}-two.rank{rank}").read_bytes() for rank in (0, 1)]
        assert ranks[0] == ranks[1]
        assert losses(tmp_path / f"{name}-two") == pytest.approx(losses(tmp_path / name), rel=1e-3)
    first, *_, last = losses(tmp_path / "natural-two")
    assert last < 0.9 * first
    results = json.loads((tmp_path / "natural-two" / "all_results.json").read_text())
    assert results["device"].startswith("2 processes, each cpu")
    # 101 images are not divisible by two. Each is counted once.
    assert results["test_samples"] == sum(map(sum, results["test_confusion_matrix"])) == 101
    model, processor = load_checkpoint(tmp_path / "natural-two")
    test = load_images(DataArguments(dataset_name=str(SAMPLE), max_eval_samples=101), processor, ["test"])["test"]
    logits = model(processor.rescale_and_normalize(test.images)).logits
    assert results["test_loss"] == pytest.approx(
        torch.nn.functional.cross_entropy(logits, test.labels).item(), rel=1e-5
    )


def test_a_killed_process_ends_the_other(tmp_path):
    folder, log = tmp_path / "run", tmp_path / "log"
    with launch(log, ROOT / "run_train.py", *flags(folder, 50, "--num_train_epochs=1000000")) as launcher:
        deadline = time.monotonic() + 600
        while not list(folder.glob("checkpoint-*")):
            assert launcher.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        processes = psutil.Process(launcher.pid).children(recursive=True)
        ranks = {process.environ().get("RANK"): process for process in processes}
        ranks["1"].kill()
        _, alive = psutil.wait_procs([ranks["0"], ranks["1"]], timeout=120)
        for process in alive:
            process.kill()
        assert not alive
        assert launcher.wait(timeout=120) != 0
