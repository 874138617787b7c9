"""
Test accuracy and end-to-end time of a recipe: mean and standard deviation over seeds, each run in its own process.

    python benchmarks/accuracy.py                            # configs/tiny.yaml, seeds 0, 1, 2
    python benchmarks/accuracy.py --seeds 0 1 2 3 4 --learning_rate 0.01   # further flags go to run_train.py

Prints a Markdown table. Each run selects its checkpoint on validation and measures test once. --record needs several
seeds, and a checkpoint of the same run but for its seed.
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

from modeling_vit_mnist.checkpoints.card import add_measurement, read_run
from modeling_vit_mnist.cli.errors import UsageError, run_script

ROOT = Path(__file__).resolve().parents[1]
SEED = ("training", "seed")


def refuse_existing(folder: Path) -> None:
    """A run that is there already would be shown again, or resumed, with a wrong time."""
    if folder.exists():
        raise UsageError(f"{folder} exists: choose another --keep.")


def run(seed: int, folder: Path, flags: list[str]) -> dict:
    """The results of one training run, and the wall-clock seconds of its whole process."""
    command = [sys.executable, str(ROOT / "run_train.py"), "--seed", str(seed), "--output_dir", str(folder), *flags]
    refuse_existing(folder)
    started = time.perf_counter()
    if code := subprocess.run(command, stdout=sys.stderr).returncode:
        raise ChildProcessError(f"The run of seed {seed} failed with exit code {code}.")
    return json.loads((folder / "all_results.json").read_text()) | {"wall": time.perf_counter() - started}


def differences(one: dict, other: dict) -> list[str]:
    """What differs between the descriptions of two runs, but for their seeds."""
    parts = {*one, *other}
    names = {(part, name) for part in parts for run in (one, other) for name in run.get(part, {})} - {SEED}
    return sorted(name for part, name in names if one.get(part, {}).get(name) != other.get(part, {}).get(name))


def summarize(values: list[float], digits: int) -> str:
    """Mean and standard deviation, which one value does not have."""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1], allow_abbrev=False)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--keep", type=Path, help="Keep the runs in this folder.")
    parser.add_argument("--record", type=Path, help="Write the mean to this checkpoint folder and its card.")
    args, flags = parser.parse_known_args()
    if len(set(args.seeds)) < len(args.seeds):
        raise UsageError(f"Each seed counts once, got {args.seeds}.")
    for own, instead in (("seed", "seeds"), ("output_dir", "keep")):
        if any(flag.partition("=")[0].replace("-", "_") == f"__{own}" for flag in flags):
            raise UsageError(f"--{own} is set for each run: pass --{instead}.")
    recorded = read_run(args.record)[0] if args.record else None
    if recorded and len(args.seeds) < 2:
        raise UsageError("--record needs two seeds or more: the card shows their standard deviation.")

    results = []
    with tempfile.TemporaryDirectory() as scratch:
        folders = {seed: (args.keep or Path(scratch)) / f"seed-{seed}" for seed in args.seeds}
        for folder in folders.values():
            refuse_existing(folder)
        for seed, folder in folders.items():
            results.append(run(seed, folder, flags))
            if recorded and (names := differences(read_run(folder)[0], recorded)):
                raise UsageError(
                    f"Not to be recorded: {args.record} holds another run, with another {', '.join(names)}."
                )

    print("| seed | validation, % | test, % | best epoch | training, s | end to end, s |")
    print("|---|---|---|---|---|---|")
    for seed, result in zip(args.seeds, results, strict=True):
        print(
            f"| {seed} | {100 * result['eval_accuracy']:.2f} | {100 * result['test_accuracy']:.2f} "
            f"| {result['best_epoch']:g} | {result['train_runtime']:.0f} | {result['wall']:.0f} |"
        )
    head = f"mean ± std, n = {len(results)}" if len(results) > 1 else "n = 1"
    validation, test = ([100 * result[f"{split}_accuracy"] for result in results] for split in ("eval", "test"))
    training, whole = (summarize([result[name] for result in results], 0) for name in ("train_runtime", "wall"))
    print(f"| **{head}** | {summarize(validation, 2)} | **{summarize(test, 2)}** | | {training} | {whole} |")
    if args.record:
        add_measurement(args.record, "seeds", {
            "n": len(results), "seeds": args.seeds, "test": [round(value, 2) for value in test],
            "test_mean": statistics.mean(test), "test_std": statistics.stdev(test),
            "test_lowest": min(test), "test_highest": max(test),
        })  # fmt: skip
    first = results[0]
    print(f"\n{first['parameters']:,} parameters; {first['dataset']}; {first['device']}; {describe_machine()}.")


if __name__ == "__main__":
    run_script(main)
