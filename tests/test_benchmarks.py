"""The benchmarks run as the README says, and spoil images by as much as they claim."""

import importlib.util
import re
import subprocess
import sys

import numpy as np
import pytest
import scipy.ndimage
import torch

from .conftest import ROOT, SAMPLE


@pytest.fixture
def robustness():
    spec = importlib.util.spec_from_file_location("robustness", ROOT / "benchmarks" / "robustness.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_robustness_prints_three_strengths_each(run_script):
    done = run_script("benchmarks/robustness.py", "--dataset_name", SAMPLE)
    assert done.code == 0, done.err
    rows = [line for line in done.out.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 7 and all(row.count("|") == 5 for row in rows)
    assert "1,000 test images of mnist-5k" in done.out


def test_blur_is_scipys(robustness, sample):
    images = sample["test"].images[:5].double() / 255
    got = robustness.blur(images.float(), 1.0)
    for image, blurred in zip(images.numpy(), got, strict=True):
        expected = scipy.ndimage.gaussian_filter(image, 1.0, mode="constant", truncate=3)
        np.testing.assert_allclose(blurred, expected, atol=1e-5)


def test_shifts_are_of_the_length_asked(robustness):
    images = torch.zeros(50, 28, 28)
    images[:, 13:15, 13:15] = 1
    moved = robustness.warp(images, shift=4).double().numpy()
    distances = [np.hypot(*np.subtract(scipy.ndimage.center_of_mass(image), 13.5)) for image in moved]
    np.testing.assert_allclose(distances, 4, atol=0.1)


def test_noise_and_inversion(robustness):
    grey = torch.full((20, 28, 28), 0.5)
    assert robustness.add_noise(grey, 0.1).std().item() == pytest.approx(0.1, rel=0.05)
    _, invert = robustness.SPOILERS["inversion"]
    assert torch.equal(invert(torch.tensor([0.0, 1.0]), 1.0), torch.tensor([1.0, 0.0]))


def test_ways_to_train_take_turns():
    """Two processes, which do not end by themselves."""
    command = [
        sys.executable, "benchmarks/training.py", "--dataset_name", str(SAMPLE), "--ways", "bare", "original",
        "--rounds", "3", "--seconds", "0.5", "--batch_size", "32", "--warmup", "5",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    bare, original = [line.split("|") for line in done.stdout.splitlines() if line.startswith(("| bare", "| orig"))]
    speeds = [float(row[4].split()[0].replace(",", "")) for row in (bare, original)]
    assert bare[5].strip() == "1.00 (1.00 to 1.00)"
    low, high = (float(number) for number in re.findall(r"\((.*) to (.*)\)", original[5])[0])
    assert 0 < low <= high and speeds[1] / speeds[0] == pytest.approx(float(original[5].split()[0]), rel=0.5)
    assert "n = 3 rounds of 0.5 s" in done.stdout


@pytest.mark.parametrize("script", ["accuracy.py", "training.py", "inference.py", "robustness.py"])
def test_benchmarks_explain_themselves(script, run_script, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])  # where Python puts a script's folder
    done = run_script(f"benchmarks/{script}", "--help")
    assert done.code == 0 and "--" in done.out, done.err
