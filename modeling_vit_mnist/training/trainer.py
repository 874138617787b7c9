"""transformers' `Trainer` for this model."""

import json
import logging
import math
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from accelerate.utils import broadcast, gather_object
from safetensors import SafetensorError
from transformers import Trainer
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from ..cli.errors import UsageError
from ..cli.files import check_space, new_folder
from ..data.augmentation import AugmentationArguments, AugmentedDataset, AugmentedStream
from ..data.images import ImageDataset
from ..data.streaming import ImageStream
from ..modeling_vit_mnist import VitMnistForImageClassification
from .arguments import VitMnistTrainingArguments
from .callbacks import (
    CheckpointCallback,
    DatasetEpochCallback,
    ElapsedTimeCallback,
    EpochReportCallback,
    FisherUpdateCallback,
    QuietProgressCallback,
)
from .compiled import compiled
from .manifest import write_manifest
from .metrics import VitMnistMetric
from .natural_gradient import NaturalGradient
from .run_folder import RUN_FILE
from .signals import StopCallback

logger = logging.getLogger(__name__)

FISHER_STREAM_IMAGES = 10_000  # a stream has no indices: the Fisher matrix is measured on its first images


class VitMnistTrainer(Trainer):
    """`Trainer` with plain Adam and the natural gradient. It stops at the first number that is not finite, and writes
    checkpoints whole. Its last two methods are overridden for speed: a step takes a tenth less time."""

    run: dict[str, Any] | None = None  # the record of the run, for its checkpoints
    saving_to: Path | None = None  # the checkpoint that is being written

    def train(self, *args, **kwargs):
        """As `Trainer.train`. Raises `FloatingPointError` if the loss or a weight is not finite: such weights are not
        saved, and not selected."""
        try:
            return super().train(*args, **kwargs)
        except FloatingPointError as error:
            raise FloatingPointError(
                f"Training stopped after step {self.state.global_step} with learning rate "
                f"{self.args.learning_rate:g}: {error}. Lower --learning_rate."
            ) from error

    def _run_epoch(self, *args, **kwargs):
        """A run that is resumed after its last step takes no further one. Trainer would, in the middle of an epoch."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss:g}")
        return loss

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Any:
        """Each image of an epoch counts once. Several processes repeat images to fill the last batch: their labels are
        replaced by the one that losses ignore, and the loss is divided by the mean number of the others."""
        state, world_size = self.accelerator.gradient_state, self.args.world_size
        if world_size == 1 or not state.end_of_dataloader or state.remainder <= 0:
            return super()._get_num_items_in_batch(batch_samples, device)
        labels = batch_samples[-1]["labels"]
        own = min(max(0, state.remainder - self.args.process_index * len(labels)), len(labels))
        labels[own:] = -100
        count = super()._get_num_items_in_batch(batch_samples, device)
        return count if self.args.average_tokens_across_devices else count - own + state.remainder / world_size

    def prediction_step(self, *args, **kwargs):
        loss, logits, labels = super().prediction_step(*args, **kwargs)
        for name, values in (("the loss", loss), ("a logit", logits)):
            if values is not None and not values.isfinite().all():
                raise FloatingPointError(f"{name} of an evaluation is not finite")
        return loss, logits, labels

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs):
        """The loss is the cross-entropy of all images, each counted once. Trainer's includes label smoothing, and the
        images that several processes repeat to fill their batches."""
        self._check_weights()
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        logits, labels = (torch.from_numpy(values) for values in concatenated(output))
        loss = torch.nn.functional.cross_entropy(logits.double(), labels).item()
        output.metrics[f"{metric_key_prefix}_loss"] = loss
        return output

    def _save_checkpoint(self, model, trial) -> None:
        """Whole or not at all: under a temporary name in the main process, the only one that writes. Raises `OSError`
        if the disk is full."""
        output_dir, state = Path(self.args.output_dir), self.state
        target = output_dir / f"checkpoint-{state.global_step}"
        with new_folder(target) if self.args.should_save else nullcontext(target) as self.saving_to:
            try:
                super()._save_checkpoint(model, trial)
                if state.best_global_step == state.global_step:
                    state.best_model_checkpoint = str(target)
                if self.args.should_save:
                    state.save_to_json(str(self.saving_to / "trainer_state.json"))
                    (self.saving_to / RUN_FILE).write_text(json.dumps(self.run, indent=2) + "\n", encoding="utf-8")
                    write_manifest(self.saving_to)
            except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors hide what went wrong
                check_space(output_dir, error)
                raise
        self.saving_to = None
        self.accelerator.wait_for_everyone()

    def _get_output_dir(self, trial) -> str:
        return super()._get_output_dir(trial) if self.saving_to is None else str(self.saving_to.parent)

    def _save_rng_state(self, output_dir: str) -> None:
        """Those of all processes, by the main one."""
        with tempfile.TemporaryDirectory() as folder:
            super()._save_rng_state(folder)
            states = gather_object([(path.name, path.read_bytes()) for path in Path(folder).iterdir()])
        for name, content in states if self.args.should_save else ():
            Path(output_dir, name).write_bytes(content)

    def _load_best_model(self) -> None:
        """Loaded by the main process, and the same in all: the others may have no access to its disk."""
        if self.args.process_index == 0:
            super()._load_best_model()
        broadcast(list(self.model.state_dict().values()))

    def save_model(self, *args, **kwargs) -> None:
        self._check_weights()
        super().save_model(*args, **kwargs)

    def _check_weights(self) -> None:
        for name, weight in self.model.named_parameters():
            if not weight.isfinite().all():
                raise FloatingPointError(f"the weight {name} is not finite")

    def _get_dataloader(self, *args, is_training: bool = False, **kwargs):
        """With `--dataloader_drop_last`, Trainer would leave images out of evaluations, too."""
        drop_last = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = drop_last and is_training
        try:
            return super()._get_dataloader(*args, is_training=is_training, **kwargs)
        finally:
            self.args.dataloader_drop_last = drop_last

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: Any, model=None):
        adam = {"betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
        if args.optim == "adam":
            return torch.optim.Adam, {"lr": args.learning_rate, "fused": True, **adam}
        if args.optim == "natural_gradient":
            # One group, in the order of `per_sample_gradients`.
            params = list(model.parameters())
            return NaturalGradient, {"params": params, "lr": args.learning_rate, "damping": args.damping, **adam}
        return Trainer.get_optimizer_cls_and_kwargs(args, model)

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        warmup = self.args.get_warmup_steps(num_training_steps)
        if warmup >= num_training_steps:
            logger.warning("The warmup of %d steps is not over at the last step, %d.", warmup, num_training_steps)
        return super().create_scheduler(num_training_steps, optimizer)

    def get_decay_parameter_names(self, model) -> list[str]:
        """As in timm, the CLS token and the position embeddings do not decay."""
        names = super().get_decay_parameter_names(model)
        return [name for name in names if not name.endswith(("cls_token", "pos_embed"))]

    def _get_grad_norm(self, model, grad_norm=None):
        """Measured only if gradients are clipped. For the log alone it would take a tenth of a step."""
        if self.args.max_grad_norm <= 0:
            return None
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if math.isfinite(norm):
            return norm
        if self.accelerator.scaler is not None:  # with fp16, a step that is skipped
            return None
        raise FloatingPointError(f"the norm of the gradients is {norm:g}")

    def floating_point_ops(self, inputs) -> int:
        """6 operations per weight and token. Trainer would count the parameters again at every step."""
        if not hasattr(self, "_flops_per_image"):
            model: Any = self.model
            self._flops_per_image = 6 * model.num_parameters() * (1 + model.config.num_patches)
        return self._flops_per_image * len(inputs["pixel_values"])


def make_trainer(
    model: VitMnistForImageClassification, datasets: dict[str, ImageDataset | ImageStream],
    augmentation: AugmentationArguments, args: VitMnistTrainingArguments, stop: StopCallback | None = None,
) -> VitMnistTrainer:  # fmt: skip
    """The trainer of a run, with its augmented images, metrics and callbacks."""
    train: Any = datasets["train"]
    num_epochs = count_epochs(args, len(train))
    is_stream = isinstance(train, ImageStream)
    drawn_from = train.take(FISHER_STREAM_IMAGES) if is_stream and args.optim == "natural_gradient" else train
    if augmentation.is_on:
        options = augmentation, args.seed, num_epochs
        drawn_from = AugmentedDataset(drawn_from, *options) if isinstance(drawn_from, ImageDataset) else drawn_from
        train = AugmentedStream(train, *options) if is_stream else drawn_from
    if args.should_compile(num_epochs * len(train) / args.world_size):
        model = compiled(model, args.per_device_train_batch_size)
    trainer = VitMnistTrainer(
        model=model, args=args, train_dataset=train, eval_dataset=datasets["validation"],
        data_collator=ImageDataset.collate, processing_class=datasets["train"].processor,
        compute_metrics=lambda output: {k: v for k, v in compute_metrics(output).items() if isinstance(v, float)},
        callbacks=[
            DatasetEpochCallback(train), ElapsedTimeCallback(), EpochReportCallback(), stop or StopCallback(),
            CheckpointCallback(),
        ],
    )  # fmt: skip
    if args.optim == "natural_gradient":
        trainer.add_callback(FisherUpdateCallback(drawn_from))
    trainer.remove_callback(PrinterCallback)
    if trainer.pop_callback(ProgressCallback) is not None and sys.stderr.isatty():  # a log gets plain lines
        trainer.add_callback(QuietProgressCallback())
    return trainer


def count_epochs(args: VitMnistTrainingArguments, num_images: int) -> float:
    """Epochs of a run over `num_images` images, also if `--max_steps` sets its length. Raises [`UsageError`] if an
    epoch has no batch."""
    batch_size = args.train_batch_size * args.world_size
    num_batches = num_images // batch_size if args.dataloader_drop_last else math.ceil(num_images / batch_size)
    if num_batches == 0:
        raise UsageError(
            f"--dataloader_drop_last leaves no batch: there are {num_images:,} training images, and a batch has "
            f"{batch_size:,}. Lower --per_device_train_batch_size."
        )
    if args.max_steps < 1:
        return args.num_train_epochs
    return args.max_steps / math.ceil(num_batches / args.gradient_accumulation_steps)


def concatenated(output: Any) -> list[np.ndarray]:
    """Logits and labels of an evaluation, which are lists of batches with `--eval_do_concat_batches no`."""
    values = output.predictions, output.label_ids
    return [np.concatenate(value) if isinstance(value, list) else value for value in values]


def compute_metrics(output: transformers.EvalPrediction) -> dict[str, Any]:
    """[`VitMnistMetric`] of logits of shape `(n, classes)` and labels `(n,)`, or of lists of batches of them. Raises
    `ValueError` if a logit is not finite."""
    logits, labels = concatenated(output)
    probabilities = torch.from_numpy(logits).double().softmax(-1).numpy()
    return VitMnistMetric(keep_in_memory=True).compute(predictions=probabilities, references=labels)
