"""The methods that training.py compares. Each trains until it is killed."""

import argparse
import os
import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import psutil
import torch
from transformers import TrainerCallback

ROOT = Path(__file__).resolve().parents[1]
MAX_STEPS = 2_000_000  # never reached


class Turns(TrainerCallback):
    """
    Blocks a process outside its turns, and records when its steps begin.

    It shares two files with the scheduler. Row 0 of the shared state holds the number of the active worker and the
    scheduler's process id. Row 1 + n has a slot for the peak memory of each process of worker n, which is 0 until the
    process is warm. The other file holds the start times of the steps.
    """

    def __init__(self, args: argparse.Namespace):
        rank = int(os.environ.get("RANK", args.rank))
        self.number, self.warmup, self.num_steps = args.number, args.warmup, 0
        self.state = np.memmap(f"{args.folder}/state", np.int64, mode="r+").reshape(-1, 2)
        self.slot = self.state[1 + self.number, rank : rank + 1]
        self.starts = np.memmap(f"{args.folder}/{self.number}-{rank}", np.float64, mode="w+", shape=MAX_STEPS)

    def on_step_begin(self, *args, **kwargs) -> None:
        """Call this before each step. It returns during a turn of this process."""
        while self.state[0, 0] != self.number:
            self._exit_without_scheduler()
            time.sleep(0.01)
        if self.num_steps >= self.warmup and self.num_steps % 50 == 0:
            self._exit_without_scheduler()
            self.slot[:] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self.starts[self.num_steps] = time.monotonic()
        self.num_steps += 1

    def _exit_without_scheduler(self) -> None:
        if not psutil.pid_exists(int(self.state[0, 1])):
            os._exit(1)


def load(args: argparse.Namespace):
    """The splits. With `--images`, the training images are repeated up to that number."""
    from modeling_vit_mnist import VitMnistImageProcessor
    from modeling_vit_mnist.data.arguments import DataArguments
    from modeling_vit_mnist.data.splits import load_images, stream_images

    data_args = DataArguments(dataset_name=args.dataset_name, streaming=args.measure == "streaming")
    if data_args.streaming:
        splits = stream_images(data_args, VitMnistImageProcessor())
        return splits | {"train": replace(splits["train"], shuffle_seed=0)}
    splits = load_images(data_args, VitMnistImageProcessor())
    if args.images:
        splits["train"] = splits["train"].select(torch.arange(args.images[0]) % len(splits["train"]))
    return splits


def package(args: argparse.Namespace, turns: Turns, flags: list[str]) -> None:
    from modeling_vit_mnist.training.arguments import parse_arguments
    from modeling_vit_mnist.training.initialization import build_model
    from modeling_vit_mnist.training.trainer import make_trainer

    with tempfile.TemporaryDirectory() as folder:
        model_args, _, augmentation, train_args = parse_arguments([
            f"--recipe={ROOT / 'configs/adam.yaml'}", f"--output_dir={folder}", f"--max_steps={MAX_STEPS}",
            f"--per_device_train_batch_size={args.batch_size}", "--eval_strategy=no", "--save_strategy=no",
            "--load_best_model_at_end=False", "--compile_training=yes", *flags,
        ])  # fmt: skip
        splits = load(args)
        trainer = make_trainer(build_model(model_args, splits["train"].names), splits, augmentation, train_args)
        trainer.add_callback(turns)
        trainer.train()


def eager(args: argparse.Namespace, turns: Turns, flags: list[str]) -> None:
    package(args, turns, ["--compile_training=no", *flags])


def natural(args: argparse.Namespace, turns: Turns, flags: list[str]) -> None:
    package(args, turns, [f"--recipe={ROOT / 'configs/tiny.yaml'}", f"--warmup_steps={args.warmup // 2}", *flags])


def stock(args: argparse.Namespace, turns: Turns, flags: list[str]) -> None:
    import datasets
    from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification, ViTImageProcessor

    processor = ViTImageProcessor(size={"height": 28, "width": 28}, image_mean=[0.1307], image_std=[0.3081])
    model = ViTForImageClassification(ViTConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, layer_norm_eps=1e-6,
        image_size=28, patch_size=7, num_channels=1, num_labels=10,
    ))  # fmt: skip

    def transform(batch):
        return {**processor(batch["image"], return_tensors="pt"), "labels": batch["label"]}

    def collate(examples):
        return {
            "pixel_values": torch.stack([example["pixel_values"] for example in examples]),
            "labels": torch.tensor([example["labels"] for example in examples]),
        }

    with tempfile.TemporaryDirectory() as folder:
        train_args = TrainingArguments(
            folder, max_steps=MAX_STEPS, per_device_train_batch_size=args.batch_size, save_strategy="no",
            remove_unused_columns=False, disable_tqdm=True,
        )  # fmt: skip
        train = datasets.load_dataset(args.dataset_name, split="train").with_transform(transform)
        Trainer(model, train_args, collate, train, callbacks=[turns]).train()


def loop(batches, turns: Turns) -> None:
    """Forward, backward and Adam, and nothing else."""
    from modeling_vit_mnist import VitMnistConfig, VitMnistForImageClassification

    model = VitMnistForImageClassification(VitMnistConfig(attn_implementation="eager")).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02, betas=(0.9, 0.99), fused=True)
    while True:
        for pixel_values, labels in batches():
            turns.on_step_begin()
            loss = torch.nn.functional.cross_entropy(model(pixel_values).logits, labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()


def bare(args: argparse.Namespace, turns: Turns, flags: list[str]) -> None:
    train = load(args)["train"]
    pixel_values = train.processor.rescale_and_normalize(train.images)

    def batches():
        for indices in torch.randperm(len(train)).split(args.batch_size):
            yield pixel_values.index_select(0, indices), train.labels.index_select(0, indices)

    loop(batches, turns)


def original(args: argparse.Namespace, turns: Turns, flags: list[str]) -> None:
    train = load(args)["train"]

    class Images(torch.utils.data.Dataset):
        def __len__(self):
            return len(train)

        def __getitem__(self, index):
            # As torchvision's MNIST, ToTensor and Normalize.
            image = PIL.Image.fromarray(train.images[index].numpy(), mode="L")
            pixels = torch.from_numpy(np.array(image)).view(28, 28, 1).permute(2, 0, 1).contiguous()
            pixels = pixels.to(torch.float32).div(255)
            mean, std = torch.tensor([0.1307]).view(-1, 1, 1), torch.tensor([0.3081]).view(-1, 1, 1)
            return pixels.sub_(mean).div_(std), int(train.labels[index])

    loader = torch.utils.data.DataLoader(Images(), batch_size=args.batch_size, shuffle=True)
    loop(lambda: loader, turns)


METHODS = {
    "package": package, "eager": eager, "natural": natural, "streaming": package, "two": package,
    "independent": package, "bare": bare, "stock": stock, "original": original,
}  # fmt: skip
