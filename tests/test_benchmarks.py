"""The benchmarks run as their README says, and corrupt images by the amounts they print."""

import argparse
import importlib
import io
import json
import re
import shutil
import subprocess
import sys

import datasets
import matplotlib
import numpy as np
import PIL.Image
import pyarrow.parquet
import pytest
import scipy.ndimage
import torch

from modeling_vit_mnist.checkpoints.folder import load_checkpoint, save_checkpoint
from modeling_vit_mnist.cli.errors import UsageError

from .conftest import ROOT, SAMPLE, TINY


@pytest.fixture(autouse=True)
def scripts_folder(monkeypatch):
    """The folder of a script is on its path."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


@pytest.fixture
def robustness():
    return importlib.import_module("robustness")


def test_robustness_prints_three_levels_each_of_images_that_are_framed(run_script):
    done = run_script("benchmarks/robustness.py", "--dataset_name", SAMPLE, "--num_images", 50)
    assert done.code == 0, done.err
    rows = [line for line in done.out.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 7 and all(row.count("|") == 5 for row in rows)
    assert "50 test images of mnist-5k" in done.out
    accuracies = {row.split("|")[1].strip(): [*map(float, re.findall(r": ([\d.]+)", row))] for row in rows[2:]}
    assert min(accuracies["contrast"] + accuracies["inversion"]) > 80  # unframed, as low as 10


@pytest.fixture
def accuracy(monkeypatch):
    """`accuracy.py`, whose runs reach their seed in percent instead of training. Returns what it prints, by flags."""
    module = importlib.import_module("accuracy")

    def train(seed, folder, flags):
        folder.mkdir(parents=True)
        results = json.loads((TINY / "all_results.json").read_text()) | {"test_accuracy": seed / 100, "wall": 1.0}
        record = json.loads((TINY / "run.json").read_text())
        record["training"] |= {"seed": seed, "learning_rate": float(flags[1]) if flags else 0.05}
        (folder / "run.json").write_text(json.dumps(record))
        (folder / "all_results.json").write_text(json.dumps(results))
        shutil.copy(TINY / "model.safetensors", folder)
        return results

    monkeypatch.setattr(module, "run", train)

    def main(*flags):
        monkeypatch.setattr(sys, "argv", ["accuracy.py", *map(str, flags)])
        module.main()

    return main


def test_accuracy_prints_mean_and_deviation(accuracy, capsys):
    accuracy("--seeds", 1, 2, 4)
    assert "| **mean ± std, n = 3** |" in (out := capsys.readouterr().out) and "| **2.33 ± 1.53** |" in out
    accuracy("--seeds", 4)  # one run has no deviation
    assert "| **n = 1** |" in (out := capsys.readouterr().out) and "| **4.00** |" in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seeds", 0, 0], "Each seed counts once"),
        (["--seed", 3], "--seed is set for each run: pass --seeds"),
        (["--output-dir=x"], "--output_dir is set for each run: pass --keep"),
        (["--record", "{folder}", "--seeds", 0], "--record needs two seeds or more"),
        (["--record", "{folder}", "--learning_rate", 0.1], "holds another run, with another learning_rate"),
        (["--record", "/nowhere"], "/nowhere holds no finished run"),
    ],
)
def test_accuracy_records_only_seeds_of_the_same_run(accuracy, tmp_path, flags, message):
    for name in ("run.json", "all_results.json", "model.safetensors"):
        shutil.copy(TINY / name, tmp_path)
    with pytest.raises(UsageError, match=message):
        accuracy(*(str(flag).format(folder=tmp_path) for flag in flags))
    assert not (tmp_path / "seeds.json").exists()
    accuracy("--record", tmp_path, "--seeds", 1, 2)
    assert json.loads((tmp_path / "seeds.json").read_text())["test"] == [1, 2]


def test_accuracy_measures_new_runs_that_succeed(tmp_path, monkeypatch):
    run = importlib.import_module("accuracy").run
    (tmp_path / "seed-0").mkdir()
    with pytest.raises(UsageError, match="seed-0 exists"):
        run(0, tmp_path / "seed-0", [])
    monkeypatch.setattr(subprocess, "run", lambda command, **kwargs: subprocess.CompletedProcess(command, 2))
    with pytest.raises(ChildProcessError, match="The run of seed 0 failed with exit code 2"):
        run(0, tmp_path / "new", [])


@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        ("training", ["--methods", "bare", "stock", "--images", "100"], "stock trains on all images"),
        ("training", ["--rounds", "0"], "must be an integer of at least 1, got '0'"),
        ("training", ["--seconds", "nan"], "--seconds must be positive, got nan"),
        ("inference", ["--rounds", "-1"], "must be an integer of at least 1, got '-1'"),
        ("robustness", ["--record", "--model", "{folder}"], "holds no finished run"),
        ("no_digit", ["--handwriting", "/nowhere"], "/nowhere is no folder"),
        ("robustness", ["--record", "--dataset_name", str(SAMPLE)], "Not to be recorded: "),
        ("no_digit", ["--seed", "-1"], "must be an integer of at least 0, got '-1'"),
        ("no_digit", ["--samples", "0"], "must be an integer of at least 1, got '0'"),
        ("no_digit", ["--fashion", "/nowhere", "--dataset_name", str(SAMPLE)], "No dataset folder '/nowhere'"),
        ("handwriting", ["/nowhere"], "/nowhere is no folder"),
        ("handwriting", ["{folder}"], "No image at"),
        ("handwriting", ["{folder}", "--json", "{folder}/x.json"], "would change the input"),
        ("handwriting", ["{folder}", "--picture", "x.jpg"], "x.jpg must end in .png"),
    ],
)
def test_wrong_usage_exits_with_code_2(run_script, tmp_path, script, flags, message):
    done = run_script(f"benchmarks/{script}.py", *(flag.format(folder=tmp_path) for flag in flags))
    assert done.code == 2 and done.out == "" and message in done.err


def test_streamed_images_are_as_many_as_asked_for(tmp_path):
    """None of them are held out for validation or test."""
    training, methods = (importlib.import_module(name) for name in ("training", "training_methods"))
    args = argparse.Namespace(dataset_name=training.write_dataset(tmp_path, str(SAMPLE), 4500), measure="streaming")
    assert len(methods.load(args)["train"]) == 4500


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


@pytest.fixture
def handwriting(run_script, sample, tmp_path):
    """Digits of the sample, dark on light and enlarged, named by a function; and the benchmark's results on them."""
    folder = tmp_path / "digits"
    labels = sample["test"].labels[:12].tolist()

    def write(name):
        for number, (image, label) in enumerate(zip(sample["test"].images, labels, strict=False)):
            path = folder / name(number, label)
            path.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(255 - image.numpy()).resize((140, 140)).save(path)
        return folder

    def measure(*flags):
        flags = ["--json", tmp_path / "results.json", "--picture", tmp_path / "failures.png", *flags]
        done = run_script("benchmarks/handwriting.py", folder, *flags)
        assert done.code == 0, done.err
        assert PIL.Image.open(tmp_path / "failures.png").width > 1000
        return done.out, json.loads((tmp_path / "results.json").read_text())

    return write, measure, labels


@pytest.mark.parametrize(
    "name", ["{label}/{number:02}.png", "{label}_{number:02}.png", "by hand/{label}-{number:02}.png"]
)
def test_handwriting_reads_labels_from_folders_or_first_characters(handwriting, name):
    write, measure, labels = handwriting
    write(lambda number, label: name.format(number=number, label=label))
    out, (result,) = measure("--model", TINY)
    assert sorted(answer["label"] for answer in result["answers"]) == sorted(map(str, labels))
    correct = [answer["label"] == answer["prediction"] for answer in result["answers"]]
    assert result["overall"]["accuracy"] == np.mean(correct) > 0.7
    assert "kind:" not in out and f"| **all** | 12 | {100 * np.mean(correct):.1f} |" in out


def test_handwriting_refuses_images_inside_and_outside_folders_of_classes(handwriting, run_script):
    """Numbers of files in such folders are no labels, and folders of people may have the names of classes."""
    write, _, _ = handwriting
    folder = write(lambda number, label: f"{label}/{number:02}.png" if number else "7_.png")
    done = run_script("benchmarks/handwriting.py", folder, "--model", TINY)
    assert done.code == 2 and done.out == "" and "put all images into folders of classes, or none" in done.err


def test_handwriting_frames_for_a_checkpoint_that_inverts(handwriting, run_script, tmp_path):
    write, measure, _ = handwriting
    write(lambda number, label: f"{label}_{number:02}.png")
    model, processor = load_checkpoint(TINY)
    processor.do_invert = "auto"
    save_checkpoint(tmp_path / "inverts", model, processor, card="", records={})
    (plain,), (inverts,) = (measure("--model", name)[1] for name in (TINY, tmp_path / "inverts"))
    assert plain["answers"] == inverts["answers"]


def test_photographs_of_each_kind_are_made_and_read(run_script, tmp_path):
    photographs = importlib.import_module("photographs")
    command = ["benchmarks/photographs.py", tmp_path / "all", "--num_images", 2, "--dataset_name", SAMPLE]
    done = run_script(*command)
    assert done.code == 0 and f"Wrote {2 * len(photographs.KINDS)} images" in done.out, done.err
    again = run_script(*command)
    assert again.code == 2 and "choose a new folder" in again.err
    kind = photographs.KINDS[-2]
    run_script(command[0], tmp_path / "one", *command[2:], "--kinds", kind)
    files = [*(tmp_path / "one").glob("*.png")]
    assert len(files) == 2
    assert all(file.read_bytes() == (tmp_path / "all" / file.name).read_bytes() for file in files)
    results, model = tmp_path / "read.json", ROOT / "vit-mnist-small"
    read = run_script("benchmarks/handwriting.py", tmp_path / "all", "--model", model, "--json", results)
    assert read.code == 0, read.err
    (result,) = json.loads(results.read_text())
    assert result["kind"].keys() == set(photographs.KINDS) and result["overall"]["accuracy"] > 0.85


def test_handwriting_reads_labels_kinds_and_sources_from_an_index(handwriting):
    """A wrong label, and an image without a digit, of which nothing is predicted."""
    write, measure, labels = handwriting
    folder = write(lambda number, label: f"x{number:02}.png")
    PIL.Image.new("L", (50, 50), 255).save(folder / "blank.png")
    rows = [["file", "label", "kind", "source"]]
    rows += [[f"x{number:02}.png", label, "a|b", "me"] for number, label in enumerate(labels)]
    rows += [["blank.png", 3, "blank", ""], ["blank.png", "-", "blank", ""]]
    (folder / "index.csv").write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
    out, results = measure()
    assert [result["model"].rpartition("vit-mnist-")[2] for result in results] == ["tiny", "best", "small"]
    for result in results:
        assert [answer["prediction"] for answer in result["answers"][-2:]] == ["-", "-"]
        assert result["kind"]["blank"] == {"n": 2, "accuracy": 0.5, "wrong_and_sure": 0.0, "no_digit": 1.0}
        assert result["source"].keys() == {"me"} and result["source"]["me"] == result["kind"]["a|b"]
        assert result["overall"]["n"] == 14 and result["overall"]["no_digit"] == 2 / 14
    assert out.count("| kind: blank | 2 | 50.0 | 0.0 | 100.0 |  |") == 3 and "kind: a\\|b" in out


def test_handwriting_counts_wrong_and_sure_answers():
    module = importlib.import_module("handwriting")
    labels, answers = np.array([*"01234"]), np.array([*"0193-"])
    measured = module.measure(labels, answers, np.array([0.99, 0.3, 0.95, 0.99, 0.99]))
    assert measured == {"n": 5, "accuracy": 3 / 5, "wrong_and_sure": 1 / 5, "no_digit": 1 / 5}


def test_handwriting_measures_reliability_and_what_the_threshold_rejects(handwriting, tmp_path):
    write, measure, _ = handwriting
    write(lambda number, label: f"{(label + (number < 3)) % 10}_{number:02}.png")  # three labels are wrong
    model, processor = load_checkpoint(TINY)
    model.config.digit_score_threshold = 8.0
    save_checkpoint(tmp_path / "model", model, processor, card="", records={})
    out, (result,) = measure("--model", tmp_path / "model")
    for name, is_correct in (("wrong", False), ("correct", True)):
        scores = [row["digit_score"] for row in result["answers"] if (row["label"] == row["prediction"]) == is_correct]
        assert result["rejected"][name] == {"n": len(scores), "rejected": sum(score < 8 for score in scores)}
    wrong, correct = (result["rejected"][name] for name in ("wrong", "correct"))
    assert wrong["n"] >= 3 and wrong["n"] + correct["n"] == 12 and 0 < correct["rejected"] < correct["n"]
    says = [f"{count['rejected']} of {count['n']}" for count in (wrong, correct)]
    assert f"The digit_score_threshold 8 rejects {says[0]} wrong and {says[1]} correct answers." in out
    assert sum(row["n"] for row in result["reliability"]) == 12


def test_handwriting_compares_probability_and_accuracy():
    module = importlib.import_module("handwriting")
    is_correct = np.array([True, False, True, True, False])
    rows = module.reliability(is_correct, np.array([0.4, 0.95, 0.99, 0.995, 0.91]))
    assert [(row["above"], row["up_to"], row["n"]) for row in rows] == [(0, 0.5, 1), (0.9, 0.99, 3), (0.99, 1, 1)]
    assert [row["accuracy"] for row in rows] == pytest.approx([1, 1 / 3, 1])
    assert [row["probability"] for row in rows] == pytest.approx([0.4, 0.95, 0.995])


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (None, "The label 'x' of"),
        ("file,label\n", "names no image"),
        ("file,class\nx.png,1\n", "Row 1 of"),
        ("file,label\nx.png,1\ny.png,2\n", "names y.png, which is no file"),
        ("file,label\nx.png,ten\n", "The label 'ten' of"),
        ("file,label,label\nx.png,1,2\n", "has two columns of the same name: file, label, label"),
    ],
)
def test_handwriting_refuses_labels_that_it_cannot_read(run_script, tmp_path, index, message):
    PIL.Image.new("L", (28, 28)).save(tmp_path / "x.png")
    if index:
        (tmp_path / "index.csv").write_text(index)
    done = run_script("benchmarks/handwriting.py", tmp_path, "--model", TINY)
    assert done.code == 2 and done.out == "" and message in done.err.splitlines()[-1]


def test_no_digit_prints_areas_and_what_is_rejected(handwriting, run_script, tmp_path):
    """For two kinds of digits. Digits in place of Fashion-MNIST are not told from digits."""
    write, _, _ = handwriting
    folder = write(lambda number, label: f"{label}_{number:02}.png")
    model, processor = load_checkpoint(ROOT / "vit-mnist-small")
    model.config.digit_score_threshold = 3.0
    save_checkpoint(tmp_path / "model", model, processor, card="", records={})
    shuffled = datasets.load_dataset(str(SAMPLE)).shuffle(seed=0)  # the first digits of the sample are 1s and 4s
    shuffled.save_to_disk(tmp_path / "shuffled")
    flags = ["--dataset_name", SAMPLE, "--fashion", tmp_path / "shuffled", "--handwriting", folder, "--samples", 30]
    done = run_script("benchmarks/no_digit.py", "--model", tmp_path / "model", *flags)
    assert done.code == 0 and "model, test split, digit_score_threshold 3\n" in done.out, done.err
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.out.splitlines() if "|" in line]
    table = {row[0]: row[1:] for row in rows[2:]}
    assert list(table) == [
        "MNIST", "people's digits", "Fashion-MNIST", "printed letters", "scribbles", "two digits", "blank paper",
    ]  # fmt: skip
    assert [row[0] for row in table.values()] == ["1,000", "12", *["30"] * 5]
    for name in ("printed letters", "scribbles", "two digits"):
        assert float(table[name][1]) > 0.9 and float(table[name][4]) > 10 * float(table["MNIST"][4]) >= 0, name
    assert 0.25 < float(table["Fashion-MNIST"][1]) < 0.75
    assert min(map(float, table["blank paper"][1:3])) > 0.99 and float(table["blank paper"][3]) > 80


def test_no_digit_counts_what_is_below_the_threshold(capsys):
    module = importlib.import_module("no_digit")
    digits = {"MNIST": np.array([3.0, 4.0, 1.0, 9.0])}
    module.print_table(digits, {"letters": np.array([2.0, 0.5, 5.0, 1.0, module.LOWEST])}, 2.0)
    first, second = capsys.readouterr().out.splitlines()[2:]
    assert first == "| MNIST | 4 |  | 0.0 | 25.0 |"
    area = (4 + 4 + 2.5 + 5) / 20  # letters below each digit, a tie counts half
    assert second == f"| letters | 5 | {area:.3f} | 20.0 | 60.0 |"


@pytest.mark.parametrize(
    "script", ["accuracy", "training", "inference", "robustness", "handwriting", "no_digit", "faults", "scaling"]
)
def test_benchmarks_explain_themselves(script, run_script):
    done = run_script(f"benchmarks/{script}.py", "--help")
    assert done.code == 0 and "--" in done.out, done.err


def test_digits_of_fonts_are_drawn_or_nothing_is(run_script, tmp_path):
    """Of DejaVu Sans in place of every font, and with one font missing or torn."""
    fonts, target = tmp_path / "fonts", tmp_path / "data"
    fonts.mkdir()
    card = (ROOT / "data" / "font-digits" / "README.md").read_text("utf-8")
    for name in re.findall(r"^\| ([\w-]+) \| (?:train|test) \|", card, flags=re.MULTILINE):
        (fonts / f"{name}.ttf").symlink_to(matplotlib.get_data_path() + "/fonts/ttf/DejaVuSans.ttf")
    flags = [fonts, "--output_dir", target]
    (fonts / "caveat.ttf").rename(tmp_path / "away.ttf")
    done = run_script("benchmarks/font_digits.py", *flags)
    assert done.code == 2 and "no file of the font caveat, such as caveat.woff" in done.err and not target.exists()
    (fonts / "caveat.ttf").write_bytes(b"torn")
    done = run_script("benchmarks/font_digits.py", *flags)
    assert done.code == 2 and "Cannot read the font" in done.err and not target.exists()
    (fonts / "caveat.ttf").unlink()
    (tmp_path / "away.ttf").rename(fonts / "caveat.ttf")
    done = run_script("benchmarks/font_digits.py", *flags)
    assert done.code == 0 and "1,540 images" in done.out and "620 images" in done.out, done.err
    table = pyarrow.parquet.read_table(target / "test-00000-of-00001.parquet")
    images = [np.asarray(PIL.Image.open(io.BytesIO(cell["bytes"]))) for cell in table["image"].to_pylist()[:10]]
    assert table["label"].to_pylist()[:11] == [*range(10), 0]
    for image in images:
        rows, columns = image.any(1).nonzero()[0], image.any(0).nonzero()[0]
        assert image.shape == (64, 64) and max(np.ptp(rows), np.ptp(columns)) + 1 in (51, 52)
    holes = [scipy.ndimage.label(~image, np.ones((3, 3)))[1] - 1 for image in images]
    assert holes == [1, 0, 0, 0, 1, 0, 1, 0, 2, 1]
