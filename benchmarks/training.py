"""
Training speed of several ways to train the same network, side by side: images per second, peak memory, ratios.

    python benchmarks/training.py                     # every way at batch 256
    OMP_NUM_THREADS=1 python benchmarks/training.py --own_batch_sizes   # at the batch size it comes with, one thread
    python benchmarks/training.py --ways two package stock original --own_batch_sizes   # all cores of two
    OMP_NUM_THREADS=1 python benchmarks/training.py --ways package apart two --own_batch_sizes   # processes
    python benchmarks/training.py --ways package streaming --images 6000 60000 600000  # do cost and memory stay?

package   `run_train.py`'s own path, with Adam (configs/adam.yaml), its passes compiled as in any long run,
          without validation and checkpoints
eager     the same with --compile_training no
natural   the same with the default recipe: warped images, natural gradient, an update of its matrix in 200 steps
bare      a plain PyTorch loop over normalised images in memory, same network, Adam: the limit of the framework, eager
streaming `package` with --streaming
two       `package` in two processes by accelerate, half the batch in each
apart     `package` in two processes that do not know of each other, half the batch in each: the limit of `two`
stock     what Hugging Face's examples do: Trainer, `with_transform`, `ViTImageProcessor`, in-tree ViT of the same size
original  a DataLoader that makes every image a tensor and normalises it, same network, Adam

Each measurement is a process of its own; the rounds take turns, so that a noisy machine is unfair to all alike. Needs
a dataset on disk: --dataset_name or $VIT_MNIST_DATASET.
"""

import argparse
import functools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from accuracy import describe_machine


ROOT = Path(__file__).resolve().parents[1]
OWN_BATCH_SIZES = {
    "package": 256,
    "eager": 256,
    "streaming": 256,
    "natural": 256,
    "two": 512,
    "apart": 512,
    "bare": 256,
    "stock": 8,
    "original": 64,
}  # 8: TrainingArguments' default; 512: 256 in each process
LAUNCH = ["-m", "accelerate.commands.launch", f"--config_file={ROOT / 'configs/accelerate/two_cpu_processes.yaml'}"]


def stamps_to_speed(stamps: list[float], batch_size: int, warmup: int) -> float:
    return batch_size * (len(stamps) - 1 - warmup) / (stamps[-1] - stamps[warmup])


def watch(stamps: list[float]):
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            stamps.append(time.perf_counter())

    return Watch()


def load(args: argparse.Namespace):
    """The splits; with `--images`, so many training images, over and over again if need be."""
    import torch

    from modeling_vit_mnist import VitMnistImageProcessor
    from modeling_vit_mnist.arguments import DataArguments
    from modeling_vit_mnist.data import load_digits
    from modeling_vit_mnist.streaming import stream_digits

    if args.measure == "streaming":
        digits = stream_digits(DataArguments(dataset_name=args.dataset_name, streaming=True), VitMnistImageProcessor())
        return digits | {"train": replace(digits["train"], shuffle_seed=0)}
    digits = load_digits(DataArguments(dataset_name=args.dataset_name), VitMnistImageProcessor())
    if args.images:
        digits["train"] = digits["train"].select(torch.arange(args.images[0]) % len(digits["train"]))
    return digits


def package(args: argparse.Namespace, flags: list[str]) -> float:
    from modeling_vit_mnist import training

    with tempfile.TemporaryDirectory() as folder:
        model_args, _, augmentation, train_args = training.parse_arguments([
            f"--recipe={ROOT / 'configs/adam.yaml'}", f"--output_dir={folder}", f"--max_steps={args.steps}",
            f"--per_device_train_batch_size={args.batch_size}", "--eval_strategy=no", "--save_strategy=no",
            "--load_best_model_at_end=False", "--compile_training=yes", *flags,
        ])  # fmt: skip
        digits = load(args)
        model = training.build_model(model_args, digits["train"].names)
        trainer = training.make_trainer(model, digits, augmentation, train_args)
        stamps = []
        trainer.add_callback(watch(stamps))
        trainer.train()
    return stamps_to_speed(stamps, args.batch_size, args.warmup) * train_args.world_size


def natural(args: argparse.Namespace, flags: list[str]) -> float:
    return package(args, [f"--recipe={ROOT / 'configs/tiny.yaml'}", f"--warmup_steps={args.warmup // 2}", *flags])


def eager(args: argparse.Namespace, flags: list[str]) -> float:
    return package(args, ["--compile_training=no", *flags])


def stock(args: argparse.Namespace, flags: list[str]) -> float:
    import datasets
    import torch
    from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification, ViTImageProcessor

    processor = ViTImageProcessor(size={"height": 28, "width": 28}, image_mean=[0.1307], image_std=[0.3081])
    model = ViTForImageClassification(ViTConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, layer_norm_eps=1e-6,
        image_size=28, patch_size=7, num_channels=1, num_labels=10,
    ))  # fmt: skip
    train = datasets.load_dataset(args.dataset_name or os.environ["VIT_MNIST_DATASET"], split="train")

    def transform(batch):
        inputs = processor(batch["image"], return_tensors="pt")
        return {"pixel_values": inputs["pixel_values"], "labels": batch["label"]}

    def collate(examples):
        return {
            "pixel_values": torch.stack([example["pixel_values"] for example in examples]),
            "labels": torch.tensor([example["labels"] for example in examples]),
        }

    stamps = []
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            TrainingArguments(
                folder, max_steps=args.steps, per_device_train_batch_size=args.batch_size, save_strategy="no",
                remove_unused_columns=False, disable_tqdm=True,
            ),
            train_dataset=train.with_transform(transform), data_collator=collate, callbacks=[watch(stamps)],
        )  # fmt: skip
        trainer.train()
    return stamps_to_speed(stamps, args.batch_size, args.warmup)


def bare_model():
    from modeling_vit_mnist import VitMnistConfig, VitMnistForImageClassification

    return VitMnistForImageClassification(VitMnistConfig(attn_implementation="eager")).train()


def loop(batches, args: argparse.Namespace) -> float:
    """Forward, backward and Adam, and nothing else."""
    import torch

    model = bare_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02, betas=(0.9, 0.99), fused=True)
    stamps = []
    while True:
        for pixel_values, labels in batches():
            stamps.append(time.perf_counter())
            if len(stamps) == args.steps:
                return stamps_to_speed(stamps, args.batch_size, args.warmup)
            loss = torch.nn.functional.cross_entropy(model(pixel_values).logits, labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()


def bare(args: argparse.Namespace, flags: list[str]) -> float:
    import torch

    train = load(args)["train"]
    pixel_values = train.processor.to_pixel_values(train.images)

    def batches():
        for indices in torch.randperm(len(train)).split(args.batch_size):
            yield pixel_values.index_select(0, indices), train.labels.index_select(0, indices)

    return loop(batches, args)


def original(args: argparse.Namespace, flags: list[str]) -> float:
    import numpy as np
    import PIL.Image
    import torch

    train = load(args)["train"]

    class Images(torch.utils.data.Dataset):
        def __len__(self):
            return len(train)

        def __getitem__(self, index):
            # What torchvision's MNIST, ToTensor and Normalize do.
            image = PIL.Image.fromarray(train.images[index].numpy(), mode="L")
            pixels = torch.from_numpy(np.array(image)).view(28, 28, 1).permute(2, 0, 1).contiguous()
            pixels = pixels.to(torch.float32).div(255)
            mean, std = torch.tensor([0.1307]).view(-1, 1, 1), torch.tensor([0.3081]).view(-1, 1, 1)
            return pixels.sub_(mean).div_(std), int(train.labels[index])

    loader = torch.utils.data.DataLoader(Images(), batch_size=args.batch_size, shuffle=True)
    return loop(lambda: loader, args)


WAYS = {
    "package": package, "eager": eager, "natural": natural, "streaming": package, "two": package, "apart": package,
    "bare": bare, "stock": stock, "original": original,
}  # fmt: skip


def write_dataset(folder: Path, name: str, num_images: int) -> str:
    """A folder of so many training images, those of `name` over and over again, in files of as many as it has."""
    import datasets

    train = datasets.load_dataset(name, split="train")
    for number, start in enumerate(range(0, num_images, len(train))):
        part = train.select(range(min(len(train), num_images - start)))
        part.to_parquet(folder / str(num_images) / f"train-{number:03}.parquet")
    train.select(range(1000)).to_parquet(folder / str(num_images) / "test-000.parquet")
    return str(folder / str(num_images))


def compare(over: list[dict], under: list[dict]) -> str:
    """Median, lowest and highest of the rounds' ratios."""
    ratios = [a["speed"] / b["speed"] for a, b in zip(over, under, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1], epilog="Further flags go to run_train.py.")
    parser.add_argument("--dataset_name", help="Folder or Hub id. Default: $VIT_MNIST_DATASET.")
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--own_batch_sizes", action="store_true", help=f"Each its own: {OWN_BATCH_SIZES}.")
    parser.add_argument("--steps", type=int, default=240, help="Steps of a measurement.")
    parser.add_argument("--warmup", type=int, default=40, help="Of these, steps that do not count.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--images", type=int, nargs="+", help="Training images, repeated if need be. Default: all.")
    parser.add_argument("--measure", choices=WAYS, help=argparse.SUPPRESS)
    args, flags = parser.parse_known_args()
    if args.measure:
        from modeling_vit_mnist.processes import leave_group

        speed = WAYS[args.measure](args, flags)
        leave_group()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # MiB on Linux
        if os.environ.get("RANK", "0") == "0":  # two processes would print into each other's lines
            print("\n" + json.dumps({"speed": speed, "peak": peak}))
        return

    with tempfile.TemporaryDirectory() as folder:
        run_rounds(args, Path(folder))


def run_at_once(commands: list[list[str]]) -> list[dict]:
    """What each command prints in its last line, as JSON."""
    with ThreadPoolExecutor() as pool:
        run = functools.partial(subprocess.run, check=True, capture_output=True, text=True)
        return [json.loads(done.stdout.splitlines()[-1]) for done in pool.map(run, commands)]


def run_rounds(args: argparse.Namespace, folder: Path) -> None:
    cases = [(way, images) for images in args.images or [None] for way in args.ways]
    name = args.dataset_name or os.environ["VIT_MNIST_DATASET"]
    written = {}
    if "streaming" in args.ways:
        written = {images: write_dataset(folder, name, images) for images in args.images or []}
    results = {case: [] for case in cases}
    for number in range(args.rounds):
        for way, images in cases:
            batch_size = OWN_BATCH_SIZES[way] if args.own_batch_sizes else args.batch_size
            print(f"round {number + 1} of {args.rounds}: {way}, batch {batch_size}", file=sys.stderr)
            command = [*(LAUNCH if way == "two" else []), __file__, *sys.argv[1:], f"--measure={way}"]
            command.append(f"--batch_size={batch_size // 2 if way in ('two', 'apart') else batch_size}")
            command += ["--images", str(images)] if images else []
            command += ["--dataset_name", written[images]] if way == "streaming" and images else []
            each = run_at_once([[sys.executable, *command]] * (2 if way == "apart" else 1))
            speed, peak = sum(result["speed"] for result in each), max(result["peak"] for result in each)
            results[way, images].append({"speed": speed, "peak": peak, "batch_size": batch_size})

    first = "bare" if "bare" in args.ways else args.ways[0]
    print(f"| way | images | batch | images/s, median (lowest to highest) | against `{first}` | peak memory, MiB |")
    print("|---|---|---|---|---|---|")
    for (way, images), rounds in results.items():
        speeds = [round["speed"] for round in rounds]
        print(
            f"| {way} | {images or 55_000:,} | {rounds[0]['batch_size']} | {statistics.median(speeds):,.0f} "
            f"({min(speeds):,.0f} to {max(speeds):,.0f}) | {compare(rounds, results[first, images])} "
            f"| {max(round['peak'] for round in rounds):,.0f} |"
        )
    if not args.images:
        for ours in [way for way in ("package", "two") if way in args.ways]:
            for way in args.ways:
                if way != ours:
                    print(f"\n`{ours}` against `{way}`: {compare(results[ours, None], results[way, None])}.")
    print(f"\nn = {args.rounds} rounds of {args.steps - args.warmup} steps; {describe_machine()}.")


if __name__ == "__main__":
    main()
