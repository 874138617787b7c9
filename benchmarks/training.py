"""
Training speed of several methods to train the same network: images per second, peak memory, ratios.

    python benchmarks/training.py --methods package eager natural bare original   # batch 256
    OMP_NUM_THREADS=1 python benchmarks/training.py --own_batch_sizes   # at each method's own default, one thread
    python benchmarks/training.py --methods two package stock original --own_batch_sizes   # all cores of two
    OMP_NUM_THREADS=1 python benchmarks/training.py --methods package independent two   # processes
    python benchmarks/training.py --methods package streaming --images 6000 60000 600000 --seconds 30   # scaling

package      `run_train.py` with configs/adam.yaml, compiled, without validation and checkpoints
eager        `package` with --compile_training no
natural      `package` with configs/tiny.yaml: augmentation and the natural gradient
streaming    `package` with --streaming
two          `package` in two processes with DDP, one batch per process
independent  `package` in two processes that do not communicate, one batch per process: the upper bound of `two`
bare         a plain PyTorch loop over normalized images in memory, same network, Adam, not compiled
stock        Hugging Face's example: Trainer, `with_transform`, `ViTImageProcessor`, transformers' ViT of the same size
original     a DataLoader that converts and normalizes each image, same network, Adam, not compiled

Each method runs in a process of its own. All processes start first. Then they run round robin, for a few seconds each,
while the others sleep. The speed of a shared machine changes from minute to minute, so ratios compare neighboring
turns. A stream decodes up to 50,000 images in its first step, so its turns must be longer than its epochs.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
from report import compare, describe_machine, positive
from tqdm import tqdm

from modeling_vit_mnist.cli.errors import UsageError, run_script

ROOT = Path(__file__).resolve().parents[1]
METHODS = ("package", "eager", "natural", "streaming", "two", "independent", "bare", "stock", "original")
BATCH_SIZE = 256
OWN_BATCH_SIZES = {"stock": 8, "original": 64}  # 8 is TrainingArguments' default; the others have BATCH_SIZE
LAUNCH = ["-m", "accelerate.commands.launch", f"--config_file={ROOT / 'configs/accelerate/two_cpu_processes.yaml'}"]


class Worker:
    """The running processes of one method: one, two, or a launcher and its two."""

    def __init__(self, method: str, number: int, command: list[str], folder: Path):
        self.method, self.number, self.folder = method, number, folder
        self.ranks = range(2 if method in ("two", "independent") else 1)
        self.errors = folder / f"errors-{number}"
        command = [*command, f"--measure={method}", f"--number={number}", f"--folder={folder}"]
        with self.errors.open("w") as errors:
            self.processes = [
                subprocess.Popen([*command, f"--rank={rank}"], stdout=subprocess.DEVNULL, stderr=errors)
                for rank in (self.ranks if method == "independent" else [0])
            ]

    def check(self) -> None:
        """Exit with the last error lines if a process has ended."""
        if any(process.poll() is not None for process in self.processes):
            sys.exit(f"{self.method} failed:\n{self.errors.read_text()[-2000:]}")

    def steps_per_second(self, begin: float, seconds: float) -> float:
        """Speed of all its processes in a turn, which lasts longer if one of them has begun fewer than three steps."""
        while True:
            time.sleep(seconds)
            self.check()
            files = [np.memmap(self.folder / f"{self.number}-{rank}", np.float64, mode="r") for rank in self.ranks]
            starts = [times[times > begin] for times in files]
            if all(len(times) > 2 for times in starts):
                return sum((len(times) - 1) / (times[-1] - times[0]) for times in starts)

    def kill(self) -> None:
        for process in self.processes:
            with suppress(psutil.NoSuchProcess):
                for child in [*psutil.Process(process.pid).children(recursive=True), process]:
                    child.kill()
            process.wait()


def run_rounds(args: argparse.Namespace, folder: Path, workers: list[Worker]) -> dict[tuple, dict]:
    """Start the `workers`. For every method and number of images: speeds, one per round, peak memory, batch size."""
    cases = [(method, images) for images in args.images or [None] for method in args.methods]
    state = np.memmap(folder / "state", np.int64, mode="w+", shape=(1 + len(cases), 2))  # see training_methods.Turns
    state[0, 1] = os.getpid()
    results = {}
    for number, (method, images) in enumerate(cases):
        batch_size = OWN_BATCH_SIZES.get(method, args.batch_size) if args.own_batch_sizes else args.batch_size
        print(f"starting {method}, batch {batch_size}", file=sys.stderr)
        command = [sys.executable, *(LAUNCH if method == "two" else []), __file__, *sys.argv[1:]]
        command.append(f"--batch_size={batch_size}")
        command += ["--images", str(images)] if images else []
        if method == "streaming" and images:
            command += ["--dataset_name", write_dataset(folder / str(images), args.dataset_name, images)]
        state[0, 0] = number
        workers.append(Worker(method, number, command, folder))
        while not state[1 + number, workers[-1].ranks].all():
            workers[-1].check()
            time.sleep(0.1)
        results[method, images] = {"speeds": [], "batch_size": batch_size}

    for number in tqdm(list(range(len(cases))) * args.rounds, desc="round robin", unit="turn"):
        state[0, 0] = number
        begin = time.monotonic() + args.seconds / 10  # the first tenth fills the caches
        result = results[cases[number]]
        result["speeds"].append(result["batch_size"] * workers[number].steps_per_second(begin, args.seconds))
    for number, result in enumerate(results.values()):
        result["peak"] = state[1 + number].max() / 2**10  # MiB on Linux
    return results


def write_dataset(folder: Path, name: str, num_images: int) -> str:
    """Write a dataset whose training images are those of `name`, repeated up to `num_images`; one file per repeat."""
    import datasets

    train = datasets.load_dataset(name, split="train")
    for number, start in enumerate(range(0, num_images, len(train))):
        part = train.select(range(min(len(train), num_images - start)))
        part.to_parquet(folder / f"train-{number:03}.parquet")
    for split in ("validation", "test"):  # otherwise held out from the training images
        train.select(range(min(1000, len(train)))).to_parquet(folder / f"{split}-000.parquet")
    return str(folder)


def print_tables(args: argparse.Namespace, results: dict[tuple, dict]) -> None:
    first = "bare" if "bare" in args.methods else args.methods[0]
    print(f"| method | images | batch | images/s, median (lowest to highest) | against `{first}` | peak memory, MiB |")
    print("|---|---|---|---|---|---|")
    for (method, images), result in results.items():
        speeds = result["speeds"]
        print(
            f"| {method} | {f'{images:,}' if images else 'all'} | {result['batch_size']} | "
            f"{statistics.median(speeds):,.0f} ({min(speeds):,.0f} to {max(speeds):,.0f}) | "
            f"{compare(speeds, results[first, images]['speeds'])} | {result['peak']:,.0f} |"
        )
    for ours in ("package", "two") if not args.images else ():
        for method in args.methods:
            if ours in args.methods and method != ours:
                ratio = compare(results[ours, None]["speeds"], results[method, None]["speeds"])
                print(f"\n`{ours}` against `{method}`: {ratio}.")
    print(f"\nn = {args.rounds} rounds of {args.seconds:g} s; {describe_machine()}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1], epilog="Further flags go to run_train.py.")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument(
        "--dataset_name", help="Folder or Hub id.", default=os.environ.get("VIT_MNIST_DATASET", "ylecun/mnist")
    )
    parser.add_argument("--batch_size", type=positive, default=BATCH_SIZE, help="Images per step of a process.")
    parser.add_argument("--own_batch_sizes", action="store_true", help=f"Use these batch sizes: {OWN_BATCH_SIZES}.")
    parser.add_argument("--warmup", type=positive, default=40, help="Steps of each process before the first round.")
    parser.add_argument("--seconds", type=float, default=4.0, help="Length of a turn.")
    parser.add_argument("--rounds", type=positive, default=10, help="Turns of each method.")
    parser.add_argument("--images", type=positive, nargs="+", help="Numbers of training images. Default: all.")
    for name, kind in (("measure", str), ("folder", str), ("number", int), ("rank", int)):  # passed to the workers
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    args, flags = parser.parse_known_args()
    if not args.seconds > 0:
        raise UsageError(f"--seconds must be positive, got {args.seconds:g}.")
    if args.images and "stock" in args.methods:
        raise UsageError("stock trains on all images: leave it out of --methods, or --images.")
    if args.measure:
        import training_methods as methods

        methods.METHODS[args.measure](args, methods.Turns(args), flags)  # until it is killed
    with tempfile.TemporaryDirectory() as folder:
        workers = []
        try:
            print_tables(args, run_rounds(args, Path(folder), workers))
        finally:
            for worker in workers:
                worker.kill()


if __name__ == "__main__":
    run_script(main)
