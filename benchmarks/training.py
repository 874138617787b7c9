"""
Training speed of several ways to train the same network, side by side: images per second, peak memory, ratios.

    python benchmarks/training.py --ways package eager natural bare original   # batch 256
    OMP_NUM_THREADS=1 python benchmarks/training.py --own_batch_sizes   # at the batch size it comes with, one thread
    python benchmarks/training.py --ways two package stock original --own_batch_sizes   # all cores of two
    OMP_NUM_THREADS=1 python benchmarks/training.py --ways package apart two   # processes
    python benchmarks/training.py --ways package streaming --images 6000 60000 600000 --seconds 30   # is cost flat?

package   `run_train.py`'s own path, with Adam (configs/adam.yaml), its passes compiled as in any long run,
          without validation and checkpoints
eager     the same with --compile_training no
natural   the same with the default recipe: warped images, natural gradient, an update of its matrix in 200 steps
bare      a plain PyTorch loop over normalised images in memory, same network, Adam: the limit of the framework, eager
streaming `package` with --streaming
two       `package` in two processes by accelerate, a batch in each
apart     `package` in two processes that do not know of each other, a batch in each: the limit of `two`
stock     what Hugging Face's examples do: Trainer, `with_transform`, `ViTImageProcessor`, in-tree ViT of the same size
original  a DataLoader that makes every image a tensor and normalises it, same network, Adam

Every way is a process of its own. All are started, and then take turns of a few seconds, in which the others sleep:
each is compared with what ran right beside it, as a shared machine is faster in one minute than in the next. A stream
decodes up to 50,000 images in its first step: its turns have to be longer than its epochs. Needs a dataset on disk:
--dataset_name or $VIT_MNIST_DATASET.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
from accuracy import describe_machine
from tqdm import tqdm


ROOT = Path(__file__).resolve().parents[1]
BATCH_SIZE = 256
OWN_BATCH_SIZES = {"stock": 8, "original": 64}  # 8: TrainingArguments' default; the others': BATCH_SIZE
MAX_STEPS = 2_000_000  # never reached
LAUNCH = ["-m", "accelerate.commands.launch", f"--config_file={ROOT / 'configs/accelerate/two_cpu_processes.yaml'}"]


class Turns:
    """
    The turns of one process among others. It shares two files with the process that started it: `board` tells whose
    turn it is and who started all, and has a seat for every process's peak memory, once it is warm; the other one is
    for the times at which this process's steps began.
    """

    def __init__(self, args: argparse.Namespace):
        self.number, self.warmup, self.steps = args.number, args.warmup, 0
        self.seat = seats(args.number)[int(os.environ.get("RANK", "0")) or args.second]
        self.board = np.memmap(args.board, dtype=np.int64, mode="r+")
        self.stamps = np.memmap(f"{args.board}-{self.seat}", dtype=np.float64, mode="w+", shape=MAX_STEPS)

    def step(self) -> None:
        """Called as a step begins: returns in a turn of this process."""
        while self.board[0] != self.number:
            self._check()
            time.sleep(0.01)
        if self.steps >= self.warmup and self.steps % 50 == 0:
            self._check()
            self.board[self.seat] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self.stamps[self.steps] = time.monotonic()
        self.steps += 1

    def _check(self) -> None:
        if not psutil.pid_exists(int(self.board[1])):
            os._exit(1)


def seats(number: int) -> range:
    """Of the one or two processes of a way on the board."""
    return range(2 + 2 * number, 4 + 2 * number)


def watch(turns: Turns):
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            turns.step()

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


def package(args: argparse.Namespace, turns: Turns, flags: list[str]) -> None:
    from modeling_vit_mnist import training

    with tempfile.TemporaryDirectory() as folder:
        model_args, _, augmentation, train_args = training.parse_arguments([
            f"--recipe={ROOT / 'configs/adam.yaml'}", f"--output_dir={folder}", f"--max_steps={MAX_STEPS}",
            f"--per_device_train_batch_size={args.batch_size}", "--eval_strategy=no", "--save_strategy=no",
            "--load_best_model_at_end=False", "--compile_training=yes", *flags,
        ])  # fmt: skip
        digits = load(args)
        model = training.build_model(model_args, digits["train"].names)
        trainer = training.make_trainer(model, digits, augmentation, train_args)
        trainer.add_callback(watch(turns))
        trainer.train()


def natural(args: argparse.Namespace, turns: Turns, flags: list[str]) -> None:
    package(args, turns, [f"--recipe={ROOT / 'configs/tiny.yaml'}", f"--warmup_steps={args.warmup // 2}", *flags])


def eager(args: argparse.Namespace, turns: Turns, flags: list[str]) -> None:
    package(args, turns, ["--compile_training=no", *flags])


def stock(args: argparse.Namespace, turns: Turns, flags: list[str]) -> None:
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

    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            TrainingArguments(
                folder, max_steps=MAX_STEPS, per_device_train_batch_size=args.batch_size, save_strategy="no",
                remove_unused_columns=False, disable_tqdm=True,
            ),
            train_dataset=train.with_transform(transform), data_collator=collate, callbacks=[watch(turns)],
        )  # fmt: skip
        trainer.train()


def bare_model():
    from modeling_vit_mnist import VitMnistConfig, VitMnistForImageClassification

    return VitMnistForImageClassification(VitMnistConfig(attn_implementation="eager")).train()


def loop(batches, turns: Turns) -> None:
    """Forward, backward and Adam, and nothing else."""
    import torch

    model = bare_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02, betas=(0.9, 0.99), fused=True)
    while True:
        for pixel_values, labels in batches():
            turns.step()
            loss = torch.nn.functional.cross_entropy(model(pixel_values).logits, labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()


def bare(args: argparse.Namespace, turns: Turns, flags: list[str]) -> None:
    import torch

    train = load(args)["train"]
    pixel_values = train.processor.to_pixel_values(train.images)

    def batches():
        for indices in torch.randperm(len(train)).split(args.batch_size):
            yield pixel_values.index_select(0, indices), train.labels.index_select(0, indices)

    loop(batches, turns)


def original(args: argparse.Namespace, turns: Turns, flags: list[str]) -> None:
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
    loop(lambda: loader, turns)


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


def compare(over: list[float], under: list[float]) -> str:
    """Median, lowest and highest of the rounds' ratios."""
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1], epilog="Further flags go to run_train.py.")
    parser.add_argument("--dataset_name", help="Folder or Hub id. Default: $VIT_MNIST_DATASET.")
    parser.add_argument("--batch_size", type=int, default=BATCH_SIZE, help="Images per step of a process.")
    parser.add_argument("--own_batch_sizes", action="store_true", help=f"{OWN_BATCH_SIZES} for these.")
    parser.add_argument("--warmup", type=int, default=40, help="Steps of each before the first turn that counts.")
    parser.add_argument("--seconds", type=float, default=4.0, help="Length of a turn.")
    parser.add_argument("--rounds", type=int, default=10, help="Turns of each.")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--images", type=int, nargs="+", help="Training images, repeated if need be. Default: all.")
    for name in ("measure", "board"):  # of the processes that this one starts
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    for name in ("number", "second"):
        parser.add_argument(f"--{name}", type=int, default=0, help=argparse.SUPPRESS)
    args, flags = parser.parse_known_args()
    if args.measure:
        WAYS[args.measure](args, Turns(args), flags)  # until it is killed
    with tempfile.TemporaryDirectory() as folder:
        players = []
        try:
            print_tables(args, run_rounds(args, Path(folder), players))
        finally:
            for player in players:
                player.kill()


class Player:
    """What was started for one way: one process, two, or a launcher and its two."""

    def __init__(self, way: str, number: int, command: list[str], folder: Path):
        self.way = way
        self.seats = seats(number)[: 2 if way in ("two", "apart") else 1]
        self.errors = folder / f"errors-{number}"
        self.processes = []
        with self.errors.open("w") as errors:
            for second in range(2 if way == "apart" else 1):
                whole = [*command, f"--number={number}", f"--second={second}", f"--board={folder / 'board'}"]
                self.processes.append(subprocess.Popen(whole, stdout=subprocess.DEVNULL, stderr=errors))

    def check(self) -> None:
        """Stop with what it said last, if it has ended."""
        if any(process.poll() is not None for process in self.processes):
            sys.exit(f"{self.way} failed:\n{self.errors.read_text()[-2000:]}")

    def kill(self) -> None:
        for process in self.processes:
            with suppress(psutil.NoSuchProcess):
                for child in [*psutil.Process(process.pid).children(recursive=True), process]:
                    child.kill()
            process.wait()


def run_rounds(args: argparse.Namespace, folder: Path, players: list[Player]) -> dict[tuple, dict]:
    """For every way and number of images: its speed in every round, its peak memory and its batch size."""
    cases = [(way, images) for images in args.images or [None] for way in args.ways]
    name = args.dataset_name or os.environ["VIT_MNIST_DATASET"]
    written = {}
    if "streaming" in args.ways:
        written = {images: write_dataset(folder, name, images) for images in args.images or []}
    board = np.memmap(folder / "board", dtype=np.int64, mode="w+", shape=seats(len(cases)).start)
    board[1] = os.getpid()
    batch_sizes = dict.fromkeys(WAYS, args.batch_size) | (OWN_BATCH_SIZES if args.own_batch_sizes else {})
    for number, (way, images) in enumerate(cases):
        print(f"starting {way}, batch {batch_sizes[way]}", file=sys.stderr)
        command = [sys.executable, *(LAUNCH if way == "two" else []), __file__, *sys.argv[1:], f"--measure={way}"]
        command.append(f"--batch_size={batch_sizes[way]}")
        command += ["--images", str(images)] if images else []
        command += ["--dataset_name", written[images]] if way == "streaming" and images else []
        board[0] = number
        players.append(Player(way, number, command, folder))
        while not board[players[-1].seats].all():
            players[-1].check()
            time.sleep(0.1)

    turns = [[] for _ in cases]  # begin and end of each
    for number in tqdm(list(range(len(cases))) * args.rounds, desc="turns", unit="turn"):
        board[0] = number
        begin = time.monotonic()
        time.sleep(args.seconds)
        players[number].check()
        turns[number].append((begin + args.seconds / 10, time.monotonic()))
    results = {}
    for case, player, windows in zip(cases, players, turns, strict=True):
        steps = [np.memmap(folder / f"board-{seat}", dtype=np.float64, mode="r") for seat in player.seats]
        batch_size = batch_sizes[case[0]]
        results[case] = {
            "speeds": [batch_size * sum(steps_per_second(each, *window) for each in steps) for window in windows],
            "peak": board[player.seats].max() / 2**10,  # MiB on Linux
            "batch_size": batch_size,
        }
    return results


def steps_per_second(stamps: np.ndarray, begin: float, end: float) -> float:
    inside = stamps[(stamps > begin) & (stamps < end)]
    return (len(inside) - 1) / (inside[-1] - inside[0])


def print_tables(args: argparse.Namespace, results: dict[tuple, dict]) -> None:
    first = "bare" if "bare" in args.ways else args.ways[0]
    print(f"| way | images | batch | images/s, median (lowest to highest) | against `{first}` | peak memory, MiB |")
    print("|---|---|---|---|---|---|")
    for (way, images), result in results.items():
        speeds = result["speeds"]
        print(
            f"| {way} | {images or 55_000:,} | {result['batch_size']} | {statistics.median(speeds):,.0f} "
            f"({min(speeds):,.0f} to {max(speeds):,.0f}) | {compare(speeds, results[first, images]['speeds'])} "
            f"| {result['peak']:,.0f} |"
        )
    if not args.images:
        for ours in [way for way in ("package", "two") if way in args.ways]:
            for way in args.ways:
                if way != ours:
                    ratio = compare(results[ours, None]["speeds"], results[way, None]["speeds"])
                    print(f"\n`{ours}` against `{way}`: {ratio}.")
    print(f"\nn = {args.rounds} rounds of {args.seconds:g} s; {describe_machine()}.")


if __name__ == "__main__":
    main()
