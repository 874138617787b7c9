"""Faults: signals, kills, torn files and full disks. `benchmarks/faults.py` tries more of each."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from transformers import TrainerCallback

from modeling_vit_mnist.cli import files
from modeling_vit_mnist.cli.errors import UsageError
from modeling_vit_mnist.training import train as module
from modeling_vit_mnist.training import trainer as trainer_module
from modeling_vit_mnist.training.train import train

from .conftest import QUICK, ROOT, arguments, weights

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of a POSIX system")
LAST = "--load_best_model_at_end=no"  # the weights after the last step, which every step decides
TINY = [f"--recipe={ROOT / 'configs' / 'tiny.yaml'}", "--num_train_epochs=4", "--warmup_steps=3"]
NATURAL = [*TINY, "--fisher_update_interval=4", "--fisher_batch_size=100", "--max_train_samples=400"]


def send_signal(monkeypatch, number: int, step: int) -> None:
    """Send a signal to this process in a step of training, once."""
    report = trainer_module.EpochReportCallback

    class Sender(report):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == step - 1:
                os.kill(os.getpid(), number)
                monkeypatch.setattr(trainer_module, "EpochReportCallback", report)

    monkeypatch.setattr(trainer_module, "EpochReportCallback", Sender)


@pytest.mark.parametrize(
    ("flags", "steps"),
    [
        ([LAST], (1, 6, 8, 16)),  # in mid-epoch, at the end of an epoch, and at that of the run
        ([], (7,)),
        ([LAST, *NATURAL], (2, 6)),  # before and after the warmup
        ([LAST, "--streaming", "--max_translate=2", "--elastic_std=1"], (6,)),
        ([LAST, "--per_device_train_batch_size=30", "--gradient_accumulation_steps=3", "--hidden_dropout_prob=0.1"],
         (8,)),
        ([LAST, "--eval_strategy=steps", "--eval_steps=3", "--save_strategy=steps", "--save_steps=3"], (6, 8)),
        ([LAST, "--dataloader_num_workers=1", "--max_rotation=9", "--lr_scheduler_type=reduce_lr_on_plateau"], (6,)),
    ],
    ids=str,
)  # fmt: skip
def test_a_signal_saves_a_checkpoint_from_which_the_run_ends_as_if_undisturbed(
    flags, steps, tmp_path, monkeypatch, capfd
):
    results = train(*arguments(tmp_path / "whole", *flags))
    whole = (tmp_path / "whole" / "model.safetensors").read_bytes()
    for step in steps:
        number, folder = (signal.SIGTERM, signal.SIGINT)[step % 2], tmp_path / str(step)
        send_signal(monkeypatch, number, step)
        with pytest.raises(SystemExit) as stopped:
            train(*arguments(folder, *flags))
        assert stopped.value.code == 128 + number
        says = rf"^Stopped by {number.name}\. A checkpoint of step {step} of \d+ is saved\. Run the same command again"
        assert re.search(says, capfd.readouterr().err, re.MULTILINE)
        assert (folder / f"checkpoint-{step}" / "manifest.json").is_file()
        assert not (folder / "all_results.json").exists()
        again = train(*arguments(folder, *flags))
        assert f"Resuming from {folder / f'checkpoint-{step}'}" in capfd.readouterr().out
        assert (folder / "model.safetensors").read_bytes() == whole
        assert again["train_loss"] == pytest.approx(results["train_loss"], rel=1e-6)
        assert again["best_epoch"] == results["best_epoch"]
        measured = [
            {entry["step"]: entry["eval_accuracy"] for entry in json.loads(path.read_text())["log_history"]
             if "eval_accuracy" in entry}
            for path in (tmp_path / "whole" / "history.json", folder / "history.json")
        ]  # fmt: skip
        assert measured[0] == measured[1]  # no evaluation is missing, and none is added
        assert not list(folder.glob("checkpoint-*"))


def test_a_signal_between_steps_of_a_run_ends_it_at_once(tmp_path, monkeypatch, capfd):
    """While data are loaded and while the result is measured."""
    for name, is_trained in (("load_data", False), ("measure", True)):
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
            patch.setattr(module, name, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
            train(*arguments(tmp_path / name))
        assert stopped.value.code == 143
        assert "Stopped by SIGTERM. Run the same command again to go on." in capfd.readouterr().err
        assert (tmp_path / name / "checkpoint-16").exists() == is_trained
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        train(*arguments(tmp_path / name))


def test_a_second_signal_stops_at_once(tmp_path):
    folder = tmp_path / "run"
    code = "import sys, time, torch; from modeling_vit_mnist.commands import run, train\n"
    code += "from modeling_vit_mnist.training.trainer import VitMnistTrainer as T\n"
    code += "T.training_step = lambda *_, **__: [print('step', flush=True), [time.sleep(0.1) for _ in range(1000)]]\n"
    command = [sys.executable, "-c", f"{code}run(train)", *QUICK, f"--output_dir={folder}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        while process.stdout.readline() != "step\n":
            assert process.poll() is None, process.stderr.read()
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)  # of a terminal and a launcher: the same one
        time.sleep(1)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
        assert "Stopped at once by a second SIGINT." in process.stderr.read()
    train(*arguments(folder))
    assert not list(folder.glob(".*"))


def test_a_run_that_ends_too_early_is_not_finished(tmp_path, monkeypatch):
    class Stopper(TrainerCallback):
        def on_epoch_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.epoch == 2

    monkeypatch.setattr(trainer_module, "EpochReportCallback", Stopper)
    with pytest.raises(RuntimeError, match="Training ended at step 8 of 16"):
        train(*arguments(tmp_path))
    assert not (tmp_path / "model.safetensors").exists() and (tmp_path / "checkpoint-8").exists()
    with pytest.raises(UsageError, match="SIGTERM and Ctrl-C save a checkpoint without it"):
        arguments(tmp_path, "--enable_jit_checkpoint")


@pytest.mark.parametrize("failing", ["optimizer.pt", "model.safetensors", "manifest.json"])
def test_a_full_disk_is_named_and_costs_no_checkpoint(tmp_path, monkeypatch, failing):
    """torch and safetensors report it in words of their own, if at all."""
    is_full = []

    def full(*args, **kwargs):
        is_full.append(True)
        raise RuntimeError("[enforce fail at inline_container.cc:858]")

    class Full:
        def __enter__(self):
            raise OSError(28, "No space left on device")

        def __exit__(self, *exception):
            pass

    class Fill(TrainerCallback):
        def on_epoch_end(self, args, state, control, **kwargs):
            if state.epoch == 2:
                owner, name = {
                    "optimizer.pt": (torch, "save"),
                    "model.safetensors": (trainer_module.VitMnistTrainer, "_save"),
                    "manifest.json": (trainer_module, "write_manifest"),
                }[failing]
                patch.setattr(owner, name, full)
                patch.setattr(files.tempfile, "TemporaryFile", lambda *_, **__: Full())

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, "EpochReportCallback", Fill)
        with pytest.raises(OSError, match="Cannot save to the disk: No space left on device") as raised:
            train(*arguments(tmp_path / "run"))
    assert raised.value.errno == 28 and "run the same command again" in str(raised.value)
    assert is_full and {path.name for path in (tmp_path / "run").iterdir()} == {"checkpoint-4", "unfinished_run.json"}
    train(*arguments(tmp_path / "run"))
    train(*arguments(tmp_path / "whole"))
    a, b = weights(tmp_path / "run"), weights(tmp_path / "whole")
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.skipif(sys.platform != "linux", reason="the benchmark is for Linux")
def test_the_benchmark_of_faults_loses_nothing():
    """Its short form."""
    counts = ["--kills=8", "--torn=4", "--full_disks=1", "--signals=2"]
    command = [sys.executable, "benchmarks/faults.py", *counts]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    rows = [row for row in rows if not row[0].startswith("-")]
    assert done.returncode == 0 and rows, done.stdout + done.stderr
    assert sum(int(tried) for _, tried, *_ in rows) >= 8 + 4 + 2  # a container may allow no disk of one's own
    assert all(tried == survived and lost == "0" for _, tried, survived, lost in rows)
