"""
Accuracy of checkpoints on a folder of digits as people draw, scan and photograph them, each framed as MNIST's.

    python benchmarks/handwriting.py FOLDER
    python benchmarks/handwriting.py FOLDER --model vit-mnist-tiny --picture failures.png --json results.json

Prints for each model a Markdown table, its reliability (accuracy by probability of the answer), and how many answers
the checkpoint's digit_score_threshold rejects. `index.csv` in the folder has the columns file and label and, if known,
kind and source. Without it, labels are the names of the folders that hold the images or, where these are no classes of
the model, the first characters of the files' names. The label "-" stands for an image without a digit.
"""

import argparse
import csv
import itertools
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from modeling_vit_mnist import digit_score
from modeling_vit_mnist.checkpoints.folder import load_checkpoint
from modeling_vit_mnist.cli.errors import UsageError, printable, run_script
from modeling_vit_mnist.cli.files import replacing
from modeling_vit_mnist.image_processing_vit_mnist import open_image
from modeling_vit_mnist.inference.classes import class_names
from modeling_vit_mnist.inference.images import find_images, lack_digit, read_images
from modeling_vit_mnist.inference.predict import check_output, choose_device, predict
from modeling_vit_mnist.training.metrics import expected_calibration_error

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]
BUNDLED = [str(ROOT / name) for name in ("vit-mnist-tiny", "vit-mnist-best", "vit-mnist-small")]
NONE = "-"  # no digit, as a label and as an answer
SURE = 0.9
LEVELS = (0, 0.5, 0.7, SURE, 0.99, 1)  # of probability, between which reliability is measured
MAX_DRAWN = 40  # failures of one model in the picture


@dataclass
class Sample:
    """A file, its label, and what `index.csv` says of it."""

    file: Path
    label: str
    kind: str = ""
    source: str = ""


def read_samples(folder: Path, classes: list[str]) -> list[Sample]:
    """The images of a folder with their labels. Raises [`UsageError`] for a label that is no class."""
    index = folder / "index.csv"
    if index.exists():
        samples = _read_index(index)
    else:
        files = find_images([str(folder)])
        in_class = {file: file.parent != folder and file.parent.name in (*classes, NONE) for file in files}
        if len({*in_class.values()}) > 1:
            one, other = (next(file for file in files if in_class[file] == kind) for kind in (True, False))
            raise UsageError(
                f"The folder of {one} is named by a class, that of {other} is not: put all images into folders of "
                f"classes, or none."
            )
        samples = [Sample(file, file.parent.name if in_class[file] else file.name[0]) for file in files]
    for sample in samples:
        if sample.label not in (*classes, NONE):
            raise UsageError(
                f"The label {sample.label!r} of {sample.file} is no class of the model ({', '.join(classes)}). Write "
                f"index.csv with the columns file and label, or name folders or files by the class."
            )
    return samples


def _read_index(index: Path) -> list[Sample]:
    try:
        with index.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.DictReader(text)
            rows = [*reader]
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(f"Cannot read {index}: {error}.") from error
    if not rows:
        raise UsageError(f"{index} names no image.")
    columns = reader.fieldnames or []
    if len({*columns}) < len(columns):
        raise UsageError(f"{index} has two columns of the same name: {', '.join(columns)}.")
    samples = []
    for number, row in enumerate(rows, 1):
        file, label, kind, source = ((row.get(name) or "").strip() for name in ("file", "label", "kind", "source"))
        if not file or not label:
            raise UsageError(f"Row {number} of {index} lacks a file or a label: it needs the columns file and label.")
        if not (index.parent / file).is_file():
            raise UsageError(f"Row {number} of {index} names {file}, which is no file.")
        samples.append(Sample(index.parent / file, label, kind, source))
    if again := len(samples) - len({sample.file.resolve() for sample in samples}):
        logger.warning("%d rows of %s name an image that another row names: each row counts.", again, index)
    return samples


def measure(labels: np.ndarray, answers: np.ndarray, probabilities: np.ndarray) -> dict:
    """Number of images, and fractions: correct answers, wrong ones with a probability over [`SURE`], and none.

    Args:
        labels, answers (`np.ndarray` of shape `(n,)`): Names of classes, or [`NONE`].
        probabilities (`np.ndarray` of shape `(n,)`): Of the answers."""
    is_correct, is_answered = labels == answers, answers != NONE
    return {
        "n": len(labels),
        "accuracy": float(is_correct.mean()),
        "wrong_and_sure": float((~is_correct & is_answered & (probabilities > SURE)).mean()),
        "no_digit": float((~is_answered).mean()),
    }


def reliability(is_correct: np.ndarray, probabilities: np.ndarray) -> list[dict]:
    """Number, mean probability and accuracy of the answers between two [`LEVELS`], the higher one included. Both
    arguments have the shape `(n,)`."""
    rows, probabilities = [], np.minimum(probabilities, 1)  # a softmax in float32 can round up
    for above, up_to in itertools.pairwise(LEVELS):
        chosen = (probabilities > above) & (probabilities <= up_to)
        if chosen.any():
            means = {"probability": float(probabilities[chosen].mean()), "accuracy": float(is_correct[chosen].mean())}
            rows.append({"above": above, "up_to": up_to, "n": int(chosen.sum()), **means})
    return rows


def evaluate(model, processor, samples: list[Sample], images: torch.Tensor) -> dict:
    """What the tables print, and the answer to each image."""
    names = class_names(model)
    logits = predict(model, processor, images, describe=lambda row: str(samples[row].file))
    probabilities, scores = logits.softmax(-1).numpy(), digit_score(logits).numpy()
    is_answered = ~lack_digit(images, processor).numpy()
    labels = np.array([sample.label for sample in samples])
    answers = np.where(is_answered, np.array(names)[probabilities.argmax(1)], NONE)
    confidence = probabilities.max(1)
    result = {"overall": measure(labels, answers, confidence)}
    for column in ("kind", "source"):
        groups = np.array([getattr(sample, column) for sample in samples])
        result[column] = {
            str(group): measure(*(values[groups == group] for values in (labels, answers, confidence)))
            for group in np.unique(groups[groups != ""])
        }
    numbers = np.array([names.index(label) if label in names else -1 for label in labels])
    error = expected_calibration_error(probabilities[is_answered], numbers[is_answered]) if is_answered.any() else None
    result["overall"]["expected_calibration_error"] = error
    is_correct = labels == answers
    result["reliability"] = reliability(is_correct[is_answered], confidence[is_answered])
    threshold = model.config.digit_score_threshold
    if threshold is not None:
        parts = {"wrong": is_answered & ~is_correct, "correct": is_answered & is_correct}
        counts = {
            name: {"n": int(part.sum()), "rejected": int((part & (scores < threshold)).sum())}
            for name, part in parts.items()
        }
        result["rejected"] = {"threshold": threshold} | counts
    result["answers"] = [
        {
            "file": str(sample.file), "label": sample.label, "prediction": str(answer),
            "probability": float(sure) if answer != NONE else None,
            "digit_score": float(score) if answer != NONE else None,
        }
        for sample, answer, sure, score in zip(samples, answers, confidence, scores, strict=True)
    ]  # fmt: skip
    return result


def print_table(result: dict) -> None:
    print("| images | n | accuracy, % | wrong and sure, % | no digit found, % | calibration error, % |")
    print("|---|---|---|---|---|---|")
    rows = [("**all**", result["overall"])]
    rows += [(f"{column}: {group}", row) for column in ("kind", "source") for group, row in result[column].items()]
    for name, row in rows:
        shares = [f"{100 * row[share]:.1f}" for share in ("accuracy", "wrong_and_sure", "no_digit")]
        error = row.get("expected_calibration_error")
        cells = [name.replace("|", "\\|"), f"{row['n']:,}", *shares, "" if error is None else f"{100 * error:.1f}"]
        print(printable(f"| {' | '.join(cells)} |"))
    print("\n| probability of the answer, % | n | mean, % | accuracy, % |\n|---|---|---|---|")
    for row in result["reliability"]:
        cells = [f"{100 * row['above']:g} to {100 * row['up_to']:g}", f"{row['n']:,}"]
        cells += [f"{100 * row[name]:.1f}" for name in ("probability", "accuracy")]
        print(f"| {' | '.join(cells)} |")
    if rejected := result.get("rejected"):
        shares = [f"{rejected[name]['rejected']:,} of {rejected[name]['n']:,} {name}" for name in ("wrong", "correct")]
        print(f"\nThe digit_score_threshold {rejected['threshold']:g} rejects {' and '.join(shares)} answers.")


def failures(result: dict, images: torch.Tensor) -> list[tuple]:
    """The failures as `plot_failures` takes them, first those whose wrong answer is most probable."""
    answers = result["answers"]
    wrong = [number for number, answer in enumerate(answers) if answer["prediction"] != answer["label"]]
    wrong.sort(key=lambda number: -(answers[number]["probability"] or 0))
    rows = []
    for number in wrong[:MAX_DRAWN]:
        answer = answers[number]
        file = Path(answer["file"])
        confidence = "no digit found" if answer["probability"] is None else f"{answer['probability']:.1%}"
        text = f"{answer['prediction']}, not {answer['label']}"
        rows.append((file.name, open_image(file), images[number], text, confidence))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("folder", type=Path, help="Folder of the images.")
    parser.add_argument("--model", nargs="+", default=BUNDLED, help="Checkpoint folders or Hub ids.")
    parser.add_argument("--picture", type=Path, help="Also draw the failures to this .png file.")
    parser.add_argument("--json", type=Path, help="Also write the results and all answers to this .json file.")
    parser.add_argument("--skip_bad_images", action="store_true", help="Skip images that cannot be read.")
    args = parser.parse_args()
    if not args.folder.is_dir():
        raise UsageError(f"{args.folder} is no folder.")
    for path, suffix in ((args.picture, ".png"), (args.json, ".json")):
        if path and path.suffix != suffix:
            raise UsageError(f"{path} must end in {suffix}.")
        if path:
            check_output(path, [args.folder])
    results, parts = [], {}
    for name in args.model:
        model, processor = load_checkpoint(name)
        model.to(choose_device())
        processor.do_frame, processor.do_invert, processor.do_center = True, False, False
        samples = read_samples(args.folder, class_names(model))
        images, read, _ = read_images([sample.file for sample in samples], processor, args.skip_bad_images)
        samples = [sample for sample in samples if sample.file in read]
        result = evaluate(model, processor, samples, images)
        print(f"{printable(Path(name).name)}\n")
        print_table(result)
        print()
        results.append({"model": name} | result)
        if args.picture:
            wrong = sum(answer["prediction"] != answer["label"] for answer in result["answers"])
            shown = f", {MAX_DRAWN} of them shown" if wrong > MAX_DRAWN else ""
            title = f"{Path(name).name}: {wrong:,} of {len(samples):,} images wrong{shown}"
            parts[title] = failures(result, images)
    if args.json:
        with replacing(args.json) as staging:
            staging.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        print(f"Wrote {printable(str(args.json))}")
    if args.picture:
        from modeling_vit_mnist.inference.plots import plot_failures

        plot_failures(parts, args.picture)
        print(f"Wrote {printable(str(args.picture))}")


if __name__ == "__main__":
    run_script(main)
