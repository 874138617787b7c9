"""Two CPU processes under `accelerate launch`: the weights of one process, and one end for both. Two nodes."""

import json
import os
import re
import socket
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
    "--fisher_batch_size=256", "--damping=0.003", "--final_damping=0.003", "--load_best_model_at_end=False",
    "--max_eval_samples=101",
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
def launch(log, *command, options=("--main_process_port=0",), folder=None) -> Iterator[subprocess.Popen]:
    """Start two processes on a free port, and end them when the block ends."""
    config = ROOT / "configs" / "accelerate" / "two_cpu_processes.yaml"
    environment = {name: value for name, value in os.environ.items() if name != "ACCELERATE_USE_CPU"}
    with log.open("w") as file:
        launcher = subprocess.Popen(
            [
                sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), *options,
                *map(str, command),
            ],
            env=environment | {"PYTHONPATH": str(ROOT)}, stdout=file, stderr=subprocess.STDOUT, cwd=folder,
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
    assert last < 0.8 * first
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


def wait_for_checkpoint(folder, log, *launchers) -> None:
    deadline = time.monotonic() + 600
    while not list(folder.glob("checkpoint-*")):
        assert all(launcher.poll() is None for launcher in launchers), log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


@pytest.mark.parametrize("victim", ["launcher", "process 1"])
def test_a_killed_process_ends_the_others(tmp_path, victim):
    """If it is the launcher, nobody else would end the processes that it has started."""
    folder, log = tmp_path / "run", tmp_path / "log"
    with launch(log, ROOT / "run_train.py", *flags(folder, 50, "--num_train_epochs=1000000")) as launcher:
        wait_for_checkpoint(folder, log, launcher)
        processes = psutil.Process(launcher.pid).children(recursive=True)
        ranks = {process.environ().get("RANK"): process for process in processes}
        (launcher if victim == "launcher" else ranks["1"]).kill()
        _, alive = psutil.wait_procs([ranks["0"], ranks["1"]], timeout=30)
        for process in alive:
            process.kill()
        assert not alive
        assert launcher.wait(timeout=120) != 0
    if victim == "launcher":
        # Whichever notices it first. The other one may notice only that this one has gone.
        line = r"error: The launcher of process [01] has ended\. Run the same command again to go on\."
        assert re.search(line, log.read_text()), log.read_text()


def test_a_process_that_dies_without_a_launcher_ends_the_other(tmp_path):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [
        sys.executable, str(ROOT / "run_train.py"), *flags(tmp_path / "run", 50, "--num_train_epochs=1000000"),
    ]  # fmt: skip
    logs = [tmp_path / "0", tmp_path / "1"]
    ranks = []
    for rank, log in enumerate(logs):
        with log.open("w") as file:
            environment = os.environ | shared | {"RANK": str(rank), "PYTHONPATH": str(ROOT)}
            ranks.append(subprocess.Popen(command, env=environment, stdout=file, stderr=file))
    try:
        wait_for_checkpoint(tmp_path / "run", logs[0], *ranks)
        ranks[1].kill()
        assert ranks[0].wait(timeout=30) == 1
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    assert "Stopped: another process of this run has ended. Run the same" in logs[0].read_text()


def test_two_nodes_need_no_shared_disk(tmp_path):
    """Each in a folder of its own. Cut off by SIGTERM, continued and finished: as the first one finds it."""
    nodes = [tmp_path / name for name in ("first", "second")]

    def run(*more, interrupted=False) -> list[str]:
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            port = server.getsockname()[1]
        options = [
            ("--num_machines=2", f"--machine_rank={rank}", "--main_process_ip=127.0.0.1",
             f"--main_process_port={port}", "--rdzv_backend=static")
            for rank in (0, 1)
        ]  # fmt: skip
        command = [ROOT / "run_train.py", *flags("run", 50, *NATURAL, *more)]
        logs = [node.with_suffix(".log") for node in nodes]
        with (
            launch(logs[0], *command, options=options[0], folder=nodes[0]) as first,
            launch(logs[1], *command, options=options[1], folder=nodes[1]) as second,
        ):
            if interrupted:
                wait_for_checkpoint(nodes[0] / "run", logs[0], first, second)
                first.terminate()
                second.terminate()
            codes = {first.wait(timeout=300), second.wait(timeout=300)}
        said = [log.read_text() for log in logs]
        assert (codes == {0}) != interrupted, said
        return said

    for node in nodes:
        node.mkdir()
    best = "--load_best_model_at_end=yes"
    stopped, _ = run(best, "--num_train_epochs=30", interrupted=True)
    assert "Stopped by SIGTERM. A checkpoint of step" in stopped
    resumed, other = run(best, "--num_train_epochs=30")
    assert "Resuming from run/checkpoint-" in resumed and "accuracy" not in other
    assert not list(nodes[1].iterdir())  # all is saved by the first one
    results = json.loads((nodes[0] / "run" / "all_results.json").read_text())
    model, processor = load_checkpoint(nodes[0] / "run")
    test = load_images(DataArguments(dataset_name=str(SAMPLE), max_eval_samples=101), processor, ["test"])["test"]
    logits = model(processor.rescale_and_normalize(test.images)).logits
    loss = torch.nn.functional.cross_entropy(logits, test.labels).item()
    assert results["best_epoch"] < 30 and results["test_loss"] == pytest.approx(loss, rel=1e-5)
    finished, _ = run(best, "--num_train_epochs=30")
    assert "already finished" in finished

    whole = tmp_path / "whole"
    with launch(
        tmp_path / "log", ROOT / "run_train.py", *flags(whole, 50, *NATURAL, best, "--num_train_epochs=30")
    ) as one:
        assert one.wait(timeout=300) == 0, (tmp_path / "log").read_text()
    assert (whole / "model.safetensors").read_bytes() == (nodes[0] / "run" / "model.safetensors").read_bytes()
