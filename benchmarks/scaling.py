"""
Predictions of many images by several processes: images/s, peak memory, and a restart after a process was killed.

    python benchmarks/scaling.py                                  # 1,000,000 images, about 300 MB under the folder
    python benchmarks/scaling.py --images 100000 --rounds 3       # one process against two, in turns

The images are MNIST's test images with a little noise, as PNG in parquet files. They are deleted at the end. With
--shift they are also moved by a pixel or two, so that the processor must find and frame each digit. Pass the dataset
by --dataset_name or $VIT_MNIST_DATASET.
"""

import argparse
import io
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL.Image
import psutil
import pyarrow.dataset
import pyarrow.parquet
from report import compare, describe_machine, positive

from modeling_vit_mnist import VitMnistImageProcessor
from modeling_vit_mnist.cli.errors import run_script
from modeling_vit_mnist.data.arguments import DataArguments
from modeling_vit_mnist.data.splits import load_images

ROOT = Path(__file__).resolve().parents[1]
FILES = 100


def make_images(folder: Path, num_images: int, args: argparse.Namespace) -> None:
    """Parquet files of encoded images and labels. Each image is a digit of the test split with noise of up to 3 gray
    levels at the edges of its ink, so that it is framed as before."""
    draw = np.random.default_rng(0)
    digits = load_images(DataArguments(dataset_name=args.dataset_name), VitMnistImageProcessor(), ["test"])["test"]
    images, labels = digits.images.numpy(), digits.labels.tolist()
    folder.mkdir(parents=True)
    for part, numbers in enumerate(np.array_split(np.arange(num_images), FILES)):
        rows = []
        for number in numbers.tolist():
            index = number % len(images)
            image = images[index].copy()
            edges = (image > 3) & (image < 250)
            image[edges] += draw.integers(0, 4, edges.sum(), np.uint8)
            if args.shift:
                image = np.roll(image, (2, -2) if number % 2 else (-2, 1), (0, 1))
            file = io.BytesIO()
            PIL.Image.fromarray(image).save(file, "png")
            rows.append({"image": {"bytes": file.getvalue(), "path": f"{number}.png"}, "label": labels[index]})
        table = pyarrow.Table.from_pylist(rows)
        pyarrow.parquet.write_table(table, folder / f"test-{part:05}-of-{FILES:05}.parquet")


def predict(images: Path, output: Path, processes: int, args: argparse.Namespace, kill_after: float = 0) -> dict:
    """Run the launch, and measure its seconds and the peak memory of each process. With `kill_after`, the last process
    is killed once that fraction of the parts is there."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [
        sys.executable, *(launcher if processes > 1 else []), str(ROOT / "run_inference.py"),
        "--dataset_name", str(images), "--streaming", "--device", "cpu", "--model", args.model,
        "--output", f"{output}/",
    ]  # fmt: skip
    started, peaks, is_killed = time.perf_counter(), {}, False
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    launch = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    root = psutil.Process(launch.pid)
    while launch.poll() is None:
        time.sleep(0.2)
        try:
            workers = root.children() or [root]
            for process in workers:
                peaks[process.pid] = max(peaks.get(process.pid, 0), process.memory_info().rss)
        except psutil.NoSuchProcess:
            continue
        if kill_after and not is_killed and len(list(output.glob("part-*"))) >= kill_after * FILES:
            workers[-1].kill()
            is_killed = True
    return {
        "seconds": time.perf_counter() - started, "peak": max(peaks.values()), "killed": is_killed,
        "code": launch.returncode, "out": launch.stdout.read(),
    }  # fmt: skip


def check(output: Path, num_images: int) -> None:
    """Every image is there once: each part, and each index in it."""
    parts = json.loads((output / "manifest.json").read_text())["parts"]
    found = pyarrow.dataset.dataset(output, format="parquet", exclude_invalid_files=True).to_table(["part", "index"])
    first = np.array([part["first_index"] for part in parts])
    numbers = first[found["part"].to_numpy()] + found["index"].to_numpy()
    counts = np.bincount(numbers, minlength=num_images)
    print(f"{len(numbers):,} rows: {int((counts == 0).sum()):,} images missing, {int((counts > 1).sum()):,} twice")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--model", default=str(ROOT / "vit-mnist-tiny"))
    parser.add_argument("--dataset_name", help="Folder or Hub id. Default: $VIT_MNIST_DATASET.")
    parser.add_argument("--images", type=positive, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=0, help="Only compare one process and two, so many times.")
    parser.add_argument("--shift", action="store_true", help="Also move the digits away from the center.")
    parser.add_argument("--folder", help="Where to work. Default: a temporary folder.")
    args = parser.parse_args()
    print(f"{Path(args.model).name}; {describe_machine()}")
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        make_images(folder / "images", args.images, args)
        size = sum(path.stat().st_size for path in (folder / "images").iterdir())
        print(f"{args.images:,} images in {FILES} files, {size / 1e6:,.0f} MB", flush=True)
        times: dict[int, list[float]] = {1: [], 2: []}
        rates: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(args.rounds):
            for processes, each in times.items():
                run = predict(folder / "images", folder / "out", processes, args)
                each.append(run["seconds"])
                rates[processes].append(float(re.search(r"([\d,]+) images/s", run["out"])[1].replace(",", "")))
                shutil.rmtree(folder / "out")
        if args.rounds:
            print(
                f"Two processes are {compare(rates[2], rates[1])} times one, {compare(times[1], times[2])} with their "
                f"start; one predicts {statistics.median(rates[1]):,.0f} images/s"
            )
            return
        for step, kill_after in (("cut off", 0.5), ("gone on", 0)):
            before = {path: path.stat().st_mtime_ns for path in (folder / "out").glob("part-*")}
            run = predict(folder / "images", folder / "out", 2, args, kill_after)
            kept = sum(path.stat().st_mtime_ns == time_ns for path, time_ns in before.items())
            done = len(list((folder / "out").glob("part-*"))) - len(before)
            rate = args.images * done / FILES / run["seconds"]
            print(
                f"{step}: exit code {run['code']}, {kept} of {len(before)} finished parts left as they were, {done} "
                f"predicted in {run['seconds']:.0f} s, {rate:,.0f} images/s with the start, peak memory "
                f"{run['peak'] / 1e6:,.0f} MB per process",
                flush=True,
            )
        print("\n".join(line for line in run["out"].splitlines() if line.startswith(("Accuracy", "Parts: 100"))))
        check(folder / "out", args.images)


if __name__ == "__main__":
    run_script(main)
