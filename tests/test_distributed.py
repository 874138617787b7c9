"""`accelerate launch` with two CPU processes: one run, every image once, and the same result as one process."""

import json
import os
import platform
import re
import subprocess
import sys

import pytest

from .conftest import ROOT, SAMPLE


CONFIG = ROOT / "configs" / "accelerate" / "two_cpu_processes.yaml"
# Runs the script named first, and shows what this package logs for those who ask, and each process's device.
TALKATIVE = """
import logging, os, runpy, sys, accelerate
logging.basicConfig()
logging.getLogger("modeling_vit_mnist").setLevel("INFO")
sys.argv.pop(0)
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
print(f"device {accelerate.PartialState().device}.", flush=True)
"""
SHARED = "Averaging gradients through shared memory."


def launch(folder, *arguments, two: bool) -> tuple[dict, list[dict], subprocess.CompletedProcess]:
    command = (
        [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIG)] if two else [sys.executable]
    )
    talkative = folder.with_suffix(".py")
    talkative.write_text(TALKATIVE)
    environment = {name: value for name, value in os.environ.items() if name != "ACCELERATE_USE_CPU"}
    done = subprocess.run(
        [
            *command, str(talkative), str(ROOT / "run_train.py"), "--dataset_name", str(SAMPLE), "--output_dir",
            str(folder), "--num_train_epochs", "3", "--learning_rate", "0.01", "--disable_tqdm", "True", *arguments,
        ],
        cwd=folder.parent, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads((folder / "all_results.json").read_text())
    return results, json.loads((folder / "history.json").read_text())["log_history"], done


@pytest.mark.skipif(sys.platform == "win32", reason="gloo needs a POSIX system here")
def test_two_processes_are_one_run(tmp_path):
    one, history, done = launch(tmp_path / "one", "--per_device_train_batch_size", "100", two=False)
    assert SHARED not in done.stderr
    two, history_two, done = launch(tmp_path / "two", "--per_device_train_batch_size", "50", two=True)
    out = done.stdout
    can_share = (sys.platform, platform.machine()) == ("linux", "x86_64") and len(os.sched_getaffinity(0)) > 1
    assert done.stderr.count(SHARED) == int(can_share)
    assert out.count("Total parameters: 1,850") == 1 and out.count("Test accuracy") == 1
    assert two["device"].startswith("2 processes")
    assert out.count("device cpu.") == 2  # not cpu:0, to which torch copies what is on cpu
    # 3,667 images in global batches of 100: 37 steps an epoch, 111 in all, in both.
    assert history[-1]["step"] == history_two[-1]["step"] == 111
    assert two["test_samples"] == 1000 and sum(map(sum, two["test_confusion_matrix"])) == 1000
    # The processes shuffle as one process does, so the losses are those of the same batches up to the last one, which
    # is filled up to be shared.
    losses = [[entry["loss"] for entry in h if "loss" in entry] for h in (history, history_two)]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert two["test_accuracy"] == pytest.approx(one["test_accuracy"], abs=0.05)
    assert len(re.findall("Epoch", out)) == 3
