"""The benchmarks run as their README says, and corrupt images by the amounts they print."""

import importlib
import re
import subprocess
import sys

import numpy as np
import pytest
import scipy.ndimage
import torch

from .conftest import ROOT, SAMPLE


@pytest.fixture(autouse=True)
def scripts_folder(monkeypatch):
    """The folder of a script is on its path."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


@pytest.fixture
def robustness():
    return importlib.import_module("robustness")


def test_robustness_prints_three_levels_each(run_script):
    done = run_script("benchmarks/robustness.py", "--dataset_name", SAMPLE)
    assert done.code == 0, done.err
    rows = [line for line in done.out.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 7 and all(row.count("|") == 5 for row in rows)
    assert "1,000 test images of mnist-5k" in done.out


def test_blur_matches_scipy(robustness, sample):
    images = sample["test"].images[:5].double() / 255
    got = robustness.blur(images.float(), 1.0)
    for image, blurred in zip(images.numpy(), got, strict=True):
        expected = scipy.ndimage.gaussian_filter(image, 1.0, mode="constant", truncate=3)
        np.testing.assert_allclose(blurred, expected, atol=1e-5)


def test_shifts_have_the_requested_length(robustness):
    images = torch.zeros(50, 28, 28)
    images[:, 13:15, 13:15] = 1
    moved = robustness.warp(images, shift=4).double().numpy()
    distances = [np.hypot(*np.subtract(scipy.ndimage.center_of_mass(image), 13.5)) for image in moved]
    np.testing.assert_allclose(distances, 4, atol=0.1)


def test_noise_and_inversion(robustness):
    gray = torch.full((20, 28, 28), 0.5)
    assert robustness.add_noise(gray, 0.1).std().item() == pytest.approx(0.1, rel=0.05)
    _, invert = robustness.CORRUPTIONS["inversion"]
    assert torch.equal(invert(torch.tensor([0.0, 1.0]), 1.0), torch.tensor([1.0, 0.0]))


def test_training_methods_run_round_robin():
    """In two processes, which do not end by themselves."""
    command = [
        sys.executable, "benchmarks/training.py", "--dataset_name", str(SAMPLE), "--methods", "bare", "original",
        "--rounds", "3", "--seconds", "0.3", "--batch_size", "32", "--warmup", "5",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    rows = [line.split("|") for line in done.stdout.splitlines() if line.startswith(("| bare", "| orig"))]
    speeds = [[float(number.replace(",", "")) for number in re.findall(r"[\d,]+", row[4])] for row in rows]
    for median, low, high in speeds:
        assert 0 < low <= median <= high
    assert rows[0][5].strip() == "1.00 (1.00 to 1.00)"
    median, low, high = (float(number) for number in re.findall(r"[\d.]+", rows[1][5]))
    (_, slow, fast), (_, slow_original, fast_original) = speeds
    assert slow_original / fast - 0.02 <= low <= median <= high <= fast_original / slow + 0.02
    assert "n = 3 rounds of 0.3 s" in done.stdout


@pytest.mark.parametrize("script", ["accuracy.py", "training.py", "inference.py", "robustness.py"])
def test_benchmarks_explain_themselves(script, run_script):
    done = run_script(f"benchmarks/{script}", "--help")
    assert done.code == 0 and "--" in done.out, done.err
