"""
Test accuracy and end-to-end time of a recipe: mean and standard deviation over seeds, each run in its own process.

    python benchmarks/accuracy.py                            # configs/tiny.yaml, seeds 0, 1, 2
    python benchmarks/accuracy.py --seeds 0 1 2 3 4 --learning_rate 0.01   # further flags go to run_train.py

Prints a Markdown table. Each run selects its checkpoint on validation and measures test once.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from report import describe_machine

ROOT = Path(__file__).resolve().parents[1]


def run(seed: int, folder: Path, flags: list[str]) -> dict:
    """The results of one training run, and the wall-clock seconds of its whole process."""
    command = [sys.executable, str(ROOT / "run_train.py"), "--seed", str(seed), "--output_dir", str(folder), *flags]
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=sys.stderr)
    return json.loads((folder / "all_results.json").read_text()) | {"wall": time.perf_counter() - started}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--keep", type=Path, help="Keep the runs in this folder.")
    parser.add_argument("--record", type=Path, help="Write the mean to this checkpoint folder and its card.")
    args, flags = parser.parse_known_args()

    with tempfile.TemporaryDirectory() as scratch:
        results = [run(seed, (args.keep or Path(scratch)) / f"seed-{seed}", flags) for seed in args.seeds]

    print("| seed | validation, % | test, % | best epoch | training, s | end to end, s |")
    print("|---|---|---|---|---|---|")
    for seed, result in zip(args.seeds, results, strict=True):
        print(
            f"| {seed} | {100 * result['eval_accuracy']:.2f} | {100 * result['test_accuracy']:.2f} "
            f"| {result['best_epoch']:g} | {result['train_runtime']:.0f} | {result['wall']:.0f} |"
        )
    columns = {
        "validation": [100 * result["eval_accuracy"] for result in results],
        "test": [100 * result["test_accuracy"] for result in results],
        "training": [result["train_runtime"] for result in results],
        "whole": [result["wall"] for result in results],
    }
    summary = {
        name: f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values) if len(values) > 1 else 0:.{digits}f}"
        for (name, values), digits in zip(columns.items(), (2, 2, 0, 0), strict=True)
    }
    print(
        f"| **mean ± std, n = {len(results)}** | {summary['validation']} | **{summary['test']}** | "
        f"| {summary['training']} | {summary['whole']} |"
    )
    if args.record:
        from modeling_vit_mnist.checkpoints.card import add_measurement

        test = columns["test"]
        add_measurement(args.record, "seeds", {
            "n": len(results), "seeds": args.seeds, "test": [round(value, 2) for value in test],
            "test_mean": statistics.mean(test), "test_std": statistics.stdev(test) if len(test) > 1 else 0.0,
            "test_lowest": min(test), "test_highest": max(test),
        })  # fmt: skip
    first = results[0]
    print(f"\n{first['parameters']:,} parameters; {first['dataset']}; {first['device']}; {describe_machine()}.")


if __name__ == "__main__":
    main()
