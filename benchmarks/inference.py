"""
Inference speed: images per second in batches, latency of one image, and cold start, with their parts.

    python benchmarks/inference.py
    OMP_NUM_THREADS=1 python benchmarks/inference.py --model vit-mnist-small --rounds 9

Everything runs round robin, since the speed of a shared machine changes; ratios are medians over rounds. Pass the
dataset by --dataset_name or $VIT_MNIST_DATASET.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import PIL.Image
import torch
from report import compare, describe_machine, positive
from transformers import pipeline

from modeling_vit_mnist.checkpoints.folder import load_checkpoint
from modeling_vit_mnist.cli.errors import run_script
from modeling_vit_mnist.data.arguments import DataArguments
from modeling_vit_mnist.data.splits import load_images
from modeling_vit_mnist.inference.predict import predict

ROOT = Path(__file__).resolve().parents[1]


def seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def measure_batches(model, processor, images: torch.Tensor, args: argparse.Namespace) -> None:
    pixel_values = processor.rescale_and_normalize(images)
    pil_images = [PIL.Image.fromarray(image.numpy()) for image in images[: args.pipeline_images]]
    classify = pipeline("image-classification", model=model, image_processor=processor, batch_size=args.batch_size)

    @torch.inference_mode()
    def bare():
        for batch in pixel_values.split(args.batch_size):
            model(batch)

    times = {"bare": [], "predict": [], "pipeline": []}
    model.eval()
    bare()
    for _ in range(args.rounds):
        times["bare"].append(seconds(bare) / len(images))
        times["predict"].append(seconds(lambda: predict(model, processor, images, args.batch_size)) / len(images))
        times["pipeline"].append(seconds(lambda: classify(pil_images)) / len(pil_images))
    names = {
        "bare": "bare forward of normalized images",
        "predict": "`predict`: uint8 images to logits",
        "pipeline": "`transformers.pipeline`, PIL images",
    }
    print("| images in batches | images/s, median | against bare |\n|---|---|---|")
    for name, each in times.items():
        print(f"| {names[name]} | {1 / statistics.median(each):,.0f} | {compare(times['bare'], each)} |")
    print(f"\n`predict` is {compare(times['pipeline'], times['predict'])} times the pipeline.")


def measure_latency(model, processor, images: torch.Tensor, args: argparse.Namespace) -> None:
    pil_images = [PIL.Image.fromarray(image.numpy()) for image in images[:100]]

    @torch.inference_mode()
    def whole(image):
        model(processor(image, return_tensors="pt").pixel_values).logits.argmax()

    @torch.inference_mode()
    def forward(pixel_values):
        model(pixel_values).logits.argmax()

    pixel_values = processor.rescale_and_normalize(images[:100]).split(1)
    print("\n| one image at a time | p50, ms | p99, ms |\n|---|---|---|")
    for name, run, inputs in (("forward", forward, pixel_values), ("PIL image to class", whole, pil_images)):
        run(inputs[0])
        times = [1e3 * seconds(partial(run, item)) for _ in range(args.rounds) for item in inputs]
        percentiles = statistics.quantiles(times, n=100)
        print(f"| {name} | {percentiles[49]:.2f} | {percentiles[98]:.2f} |")


def measure_cold_start(images: torch.Tensor, args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "digit.png"
        PIL.Image.fromarray(images[0].numpy()).save(image)
        commands = {
            '`python -c "import torch, transformers"`': ["-c", "import torch, transformers"],
            '`python -c "import modeling_vit_mnist"`': ["-c", "import modeling_vit_mnist"],
            "`run_inference.py --image digit.png`": [
                str(ROOT / "run_inference.py"), "--image", str(image), "--model", args.model,
            ],
        }  # fmt: skip
        times = {name: [] for name in commands}
        for _ in range(args.rounds):
            for name, command in commands.items():
                run = partial(subprocess.run, [sys.executable, *command], check=True, capture_output=True)
                times[name].append(seconds(run))
    first, second, _ = times.values()
    print("\n| cold start | s, median | against the first | against the second |\n|---|---|---|---|")
    for name, each in times.items():
        print(f"| {name} | {statistics.median(each):.1f} | {compare(each, first)} | {compare(each, second)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--model", default=str(ROOT / "vit-mnist-tiny"))
    parser.add_argument("--dataset_name", help="Folder or Hub id. Default: $VIT_MNIST_DATASET.")
    parser.add_argument("--batch_size", type=positive, default=1000)
    parser.add_argument("--pipeline_images", type=positive, default=1000, help="Images for the slow pipeline.")
    parser.add_argument("--rounds", type=positive, default=7)
    args = parser.parse_args()
    model, processor = load_checkpoint(args.model)
    images = load_images(DataArguments(dataset_name=args.dataset_name), processor, ["test"])["test"].images
    measure_batches(model, processor, images, args)
    measure_latency(model, processor, images, args)
    measure_cold_start(images, args)
    print(
        f"\n{Path(args.model).name}, {model.num_parameters():,} parameters; n = {args.rounds} rounds; "
        f"{torch.get_num_threads()} thread(s); {describe_machine()}."
    )


if __name__ == "__main__":
    run_script(main)
