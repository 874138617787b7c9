"""
Training with transformers' `Trainer`: a recipe and flags in, a complete checkpoint folder out.

A recipe is a YAML or JSON file of the same names as the flags; flags win over it. The checkpoint is chosen on the
validation split, the test split is measured once, at the end. A run that was cut off goes on where its last complete
checkpoint left it, and a folder that holds a different run is left alone.
"""

import dataclasses
import functools
import itertools
import json
import logging
import math
import os
import shutil
import statistics
import sys
import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import accelerate.optimizer
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from huggingface_hub.utils import validate_repo_id
from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from . import hub
from .arguments import DataArguments, Parser
from .augmentation import AugmentationArguments, AugmentedDigits, AugmentedStream
from .compiled import compile_training
from .configuration_vit_mnist import VitMnistConfig
from .data import Digits, load_digits
from .errors import InputError
from .files import check_writable
from .image_processing_vit_mnist import VitMnistImageProcessor
from .metrics import VitMnistMetric
from .modeling_vit_mnist import VitMnistForImageClassification
from .optimizers import MAX_PARAMETERS, FisherUpdates, NaturalGradient
from .processes import SharedGradients
from .runs import RESULTS_FILE, RUN_FILE, prepare_output_dir
from .streaming import StreamedDigits, stream_digits


# accelerate looks for this package four times a step, on the disk.
accelerate.optimizer.is_lomo_available = functools.cache(accelerate.optimizer.is_lomo_available)

OUR_OPTIMIZERS = ("adam", "natural_gradient")
# Those whose steps need nothing but gradients.
PLAIN_OPTIMIZERS = (*OUR_OPTIMIZERS, "adamw_torch", "adamw_torch_fused", "sgd")
# Images for what is measured on a part of the training images.
HEAD = 10_000
# Compiling takes as long as it then saves over so many images.
IMAGES_WORTH_COMPILING = 2_000_000
DEFAULT_RECIPE = Path(__file__).resolve().parents[1] / "configs" / "tiny.yaml"


@dataclass
class ModelArguments:
    """The network: a checkpoint to start from, or fields of [`VitMnistConfig`], whose defaults hold where unset."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Checkpoint folder or Hub id to fine-tune. Default: start from scratch."}
    )
    hidden_size: int | None = field(default=None, metadata={"help": "Width of every token."})
    num_hidden_layers: int | None = field(default=None, metadata={"help": "Number of transformer blocks."})
    num_attention_heads: int | None = field(default=None, metadata={"help": "Attention heads per block."})
    intermediate_size: int | None = field(default=None, metadata={"help": "Width of the MLP's hidden layer."})
    hidden_act: str | None = field(default=None, metadata={"help": "Activation of the MLP, as transformers names it."})
    hidden_dropout_prob: float | None = field(default=None, metadata={"help": "Dropout on embeddings and branches."})
    attention_probs_dropout_prob: float | None = field(default=None, metadata={"help": "Dropout on attention."})
    layer_norm_eps: float | None = field(default=None, metadata={"help": "Epsilon of every LayerNorm."})
    image_size: int | None = field(default=None, metadata={"help": "Height and width that images are resized to."})
    patch_size: int | None = field(default=None, metadata={"help": "Height and width of a patch."})
    qkv_bias: bool | None = field(default=None, metadata={"help": "Whether queries, keys and values have a bias."})
    initializer: str | None = field(default=None, metadata={"help": "xavier_uniform or trunc_normal."})
    initializer_range: float | None = field(default=None, metadata={"help": "Standard deviation of positions."})
    whiten_patches: bool = field(
        default=False,
        metadata={"help": "Start the patch embedding as the whitened principal components of training patches."},
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "eager, sdpa, flex_attention, ... Eager is the fastest on a CPU at this size."}
    )

    def config_fields(self) -> dict:
        """What was set of [`VitMnistConfig`]'s fields."""
        fields = dataclasses.asdict(self)
        for name in ("model_name_or_path", "whiten_patches", "attn_implementation"):
            del fields[name]
        return {name: value for name, value in fields.items() if value is not None}


@dataclass
class VitMnistTrainingArguments(TrainingArguments):
    """transformers' `TrainingArguments`, all of them, with plain Adam among the optimizers."""

    optim: str = field(
        default=TrainingArguments.default_optim,
        metadata={
            "help": "'adam' for torch.optim.Adam, 'natural_gradient' for the whole Fisher matrix (up to 10,000 "
            "parameters), or any name that transformers' Trainer knows."
        },
    )
    damping: float = field(
        default=0.01, metadata={"help": "Damping of the natural gradient, at first: larger is nearer plain descent."}
    )
    final_damping: float = field(
        default=0.001, metadata={"help": "Damping at the end; in between it falls by the same factor every step."}
    )
    fisher_steps: int = field(default=200, metadata={"help": "Steps between updates of the Fisher matrix."})
    fisher_images: int = field(default=2048, metadata={"help": "Training images that an update is measured on."})
    compile_training: str = field(
        default="auto",
        metadata={
            "help": "Compile training passes on a CPU, in a layout made for it, which needs a C++ compiler. auto: in "
            f"runs over {IMAGES_WORTH_COMPILING:,} images or more. --torch_compile is Trainer's own, for any device.",
            "choices": ["auto", "yes", "no"],
        },
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Leave as it is: the images come as whole batches, which have no columns."}
    )
    overwrite: bool = field(
        default=False, metadata={"help": "Start anew in an output folder that holds another run, replacing it."}
    )
    keep_checkpoints: bool = field(
        default=False, metadata={"help": "Keep the training checkpoints when the run has finished."}
    )
    push_sample_model: bool = field(
        default=False, metadata={"help": "Allow --push_to_hub for a model trained on the kept sample only."}
    )

    def __post_init__(self):
        self.wants_push = self.push_to_hub
        self.push_to_hub = False  # Trainer would push incomplete folders; ours is pushed once, when it is complete.
        if not torch.accelerator.is_available():
            # Said aloud, or Trainer refuses bf16, and several processes train each on its own.
            self.use_cpu = True
        if self.use_cpu:
            # Or accelerate names it "cpu:0" among several processes, and torch copies every batch from "cpu" to there.
            os.environ.setdefault("ACCELERATE_TORCH_DEVICE", "cpu")
        # transformers checks the name against those it knows.
        asked, self.optim = self.optim, "adamw_torch" if self.optim in OUR_OPTIMIZERS else self.optim
        super().__post_init__()
        self.optim = asked if asked in OUR_OPTIMIZERS else self.optim
        if self.per_device_train_batch_size < 1 or self.per_device_eval_batch_size < 1:
            raise InputError("Batch sizes must be at least 1.")
        for name in ("damping", "final_damping", "fisher_steps", "fisher_images"):
            if getattr(self, name) <= 0:
                raise InputError(f"--{name} must be positive, got {getattr(self, name):g}.")
        if self.wants_push:
            validate_repo_id(self.repo_id)
        if self.max_steps < 1 and self.num_train_epochs <= 0:
            raise InputError(f"--num_train_epochs must be positive, got {self.num_train_epochs:g}.")

    @property
    def repo_id(self) -> str:
        """Where `--push_to_hub` pushes to; without a namespace, to that of the token."""
        return self.hub_model_id or Path(self.output_dir).resolve().name

    @property
    def total_train_batch_size(self) -> int:
        """Images per optimizer step, over all processes and accumulated batches."""
        return self.train_batch_size * self.gradient_accumulation_steps * self.world_size

    def should_compile(self, num_images: float) -> bool:
        """Whether `--compile_training` asks for it in a run over so many images, each counted as often as it comes."""
        if self.device.type != "cpu" or self.torch_compile or self.gradient_checkpointing:
            return False
        pays = num_images >= IMAGES_WORTH_COMPILING
        return self.compile_training == "yes" or (self.compile_training == "auto" and pays)


def parse_arguments(
    argv: list[str],
) -> tuple[ModelArguments, DataArguments, AugmentationArguments, VitMnistTrainingArguments]:
    """
    Read a recipe (`--recipe FILE`, by default `configs/tiny.yaml`) and the flags that override it.

    Raises:
        InputError: an unknown flag or key, named with the nearest known one, or a value out of range.
    """
    parser = Parser(
        [ModelArguments, DataArguments, AugmentationArguments, VitMnistTrainingArguments],
        prog="run_train.py",
        description="Train a tiny Vision Transformer on MNIST and save it as a complete Hugging Face checkpoint.",
    )
    parser.add_argument(
        "--recipe", default=str(DEFAULT_RECIPE), help="YAML or JSON file of flags, overridden by those given here."
    )
    recipe = parser.read_recipe(Path(parser.parse_known_args(argv)[0].recipe))
    *arguments, _ = parser.parse(recipe + argv)
    return tuple(arguments)


def build_model(args: ModelArguments, names: list[str]) -> VitMnistForImageClassification:
    """
    A new network, or a checkpoint's with a new head where the classes differ.

    Args:
        args ([`ModelArguments`]): The checkpoint, or the config's fields.
        names (`list[str]`): Names of the classes.

    Raises:
        InputError: an impossible network, or a folder that holds no checkpoint of this kind.
    """
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    attention = {"attn_implementation": args.attn_implementation} if args.attn_implementation else {}
    if args.model_name_or_path:
        model, _ = hub.load_checkpoint(args.model_name_or_path, ignore_mismatched_sizes=True, **labels, **attention)
        for name, value in args.config_fields().items():
            if value != getattr(model.config, name):
                raise InputError(
                    f"--{name} {value} is not what the checkpoint {args.model_name_or_path} has, "
                    f"{getattr(model.config, name)}, and cannot be changed."
                )
        return model
    try:
        return VitMnistForImageClassification(VitMnistConfig(**args.config_fields(), **labels, **attention))
    except (ValueError, StrictDataclassError) as error:
        raise InputError(str(error).rpartition("ValueError: ")[2]) from error  # without what wraps the sentence


@torch.no_grad()
def whiten_patch_embed(
    model: VitMnistForImageClassification, digits: Digits | StreamedDigits, num_images: int = HEAD
) -> None:
    """
    Start the patch embedding as a random rotation of the whitened leading principal components of real patches, so
    that its outputs are uncorrelated, centred and of unit variance: neighbouring pixels are nearly the same, which
    makes any random projection badly conditioned. Whitening of patches after Coates and Ng (2012), as a first layer's
    start after airbench (Jordan, 2024, https://arxiv.org/abs/2404.00498).

    Args:
        model: Its `vit.patch_embed.proj` is overwritten, where it is no wider than a patch has pixels.
        digits: The patches of its first `num_images` images are measured.

    Raises:
        InputError: the embedding is wider than a patch has pixels.
    """
    proj = model.vit.patch_embed.proj
    width, length = proj.weight.shape[0], proj.weight[0].numel()
    if width > length:
        raise InputError(
            f"--whiten_patches needs a hidden size of at most {length}, the pixels of a patch, got {width}."
        )
    pixel_values = digits.processor.to_pixel_values(digits.head(num_images).images)
    patches = torch.nn.functional.unfold(pixel_values, proj.kernel_size, stride=proj.stride)  # (n, length, patches)
    patches = patches.transpose(1, 2).reshape(-1, length).double()
    variances, components = torch.linalg.eigh(patches.T.cov())  # ascending
    variances, components = variances[-width:], components[:, -width:]
    whitening = (components / (variances + 1e-3).sqrt()).T  # (width, length)
    rotation = torch.linalg.qr(torch.randn(width, width, dtype=torch.double)).Q
    weight = rotation @ whitening
    proj.weight.copy_(weight.view_as(proj.weight))
    proj.bias.copy_(-(weight @ patches.mean(0)))


class VitMnistTrainer(Trainer):
    """
    `Trainer` with plain Adam and natural gradient, and without what it does at every step for other people's models,
    which takes as long as this network. What remains is measured by `benchmarks/training.py`.
    """

    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        # Looked at once, when accelerate wraps the model for several processes.
        options = self.accelerator.ddp_handler.to_kwargs()
        options |= {"gradient_as_bucket_view": True, "comm_state_option": {"timeout": self.args.ddp_timeout}}
        self.accelerator.ddp_handler = SharedGradients(**options)

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: TrainingArguments, model=None):
        if args.optim == "adam":
            return torch.optim.Adam, {
                "lr": args.learning_rate,
                "betas": (args.adam_beta1, args.adam_beta2),
                "eps": args.adam_epsilon,
                "fused": True,
            }
        if args.optim == "natural_gradient":
            # One group, in the order of `sampled_gradients`.
            return NaturalGradient, {
                "params": list(model.parameters()),
                "lr": args.learning_rate,
                "damping": args.damping,
            }
        return Trainer.get_optimizer_cls_and_kwargs(args, model)

    def get_decay_parameter_names(self, model) -> list[str]:
        """As timm: tokens and positions are no weights that should decay."""
        names = super().get_decay_parameter_names(model)
        return [name for name in names if not name.endswith(("cls_token", "pos_embed"))]

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        if self.args.optim not in PLAIN_OPTIMIZERS or self.is_deepspeed_enabled or self.args.torch_empty_cache_steps:
            loss = super().training_step(model, inputs, num_items_in_batch)
        else:
            loss = self._plain_training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            self.accelerator.ddp_handler.average()
        return loss

    def _plain_training_step(self, model, inputs, num_items_in_batch) -> torch.Tensor:
        """Forward and backward, without the cases of sharded models and of optimizers that need more than a step."""
        if not model.training:
            model.train()
        inputs = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        if self.args.n_gpu > 1:
            loss = loss.mean()
        if num_items_in_batch is None:
            loss = loss / self.current_gradient_accumulation_steps
        self.accelerator.backward(loss)
        return loss.detach()

    def _get_num_items_in_batch(self, batch_samples, device):
        """
        Counted only where batches are put together. The mean over a single one needs no count, and neither does the
        mean over processes, whose batches are filled up to the same size: that spares them a message at every step.
        """
        if len(batch_samples) == 1 and self.accelerator.even_batches:
            return None
        return super()._get_num_items_in_batch(batch_samples, device)

    def _get_grad_norm(self, model, grad_norm=None):
        """Only where gradients are clipped: measuring the norm for the log alone takes a tenth of a step."""
        return super()._get_grad_norm(model, grad_norm=grad_norm) if self.args.max_grad_norm > 0 else None

    def floating_point_ops(self, inputs) -> int:
        """The usual 6 operations per weight and token, counted without walking over the parameters at every step."""
        if not hasattr(self, "_flops_per_image"):
            self._flops_per_image = 6 * self.model.num_parameters() * (1 + self.model.config.num_patches)
        return self._flops_per_image * len(inputs["pixel_values"])


class RunReport(TrainerCallback):
    """Prints a line per epoch: what a person follows a run by."""

    def __init__(self):
        self.loss = float("nan")

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.loss = logs.get("loss", self.loss)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if state.is_world_process_zero and "eval_accuracy" in metrics:
            best = "  best" if metrics.get(f"eval_{args.metric_for_best_model}") == state.best_metric else ""
            _write(
                f"Epoch {state.epoch:5.1f} of {state.num_train_epochs}  loss {self.loss:.4f}  validation loss "
                f"{metrics['eval_loss']:.4f}  accuracy {metrics['eval_accuracy']:.2%}{best}"
            )


class Stopwatch(TrainerCallback):
    """Notes with every log entry the seconds of training so far, those before a resume included."""

    def on_train_begin(self, args, state, control, **kwargs):
        before = next((entry["elapsed"] for entry in reversed(state.log_history) if "elapsed" in entry), 0.0)
        self.started = time.time() - before

    def on_log(self, args, state, control, **kwargs):
        state.log_history[-1]["elapsed"] = time.time() - self.started


class QuietProgress(ProgressCallback):
    """Trainer's progress bars without its dictionaries."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        pass

    def close(self) -> None:
        """End the lines of the bars that a failure left open, so that its message gets a line of its own."""
        for bar in (self.prediction_bar, self.training_bar):
            if bar is not None:
                bar.close()


def _write(line: str) -> None:
    tqdm.write(line, file=sys.stdout)


@hub.without_progress_bars()  # one per saved checkpoint; Trainer's own bar stays
def train(
    model_args: ModelArguments,
    data_args: DataArguments,
    augmentation: AugmentationArguments,
    args: VitMnistTrainingArguments,
) -> dict:
    """
    Train, choose on validation, measure test once and save everything to `args.output_dir`.

    Returns:
        `dict`: What `all_results.json` holds.

    Raises:
        InputError: wrong input of any kind, or an output folder that holds another run.
        OSError: the folder cannot be written; what it held stays.
        ConnectionError: the Hub has to be reached and cannot be; what was trained is complete in the folder.
    """
    started = time.time()
    is_main = args.process_index == 0
    if not is_main:
        logging.getLogger(__package__).setLevel(logging.ERROR)
    if is_main:
        check_writable(Path(args.output_dir))
    set_seed(args.seed)
    with args.main_process_first(desc="dataset"):
        if model_args.model_name_or_path:
            _, processor = hub.load_checkpoint(model_args.model_name_or_path)
        else:
            processor = VitMnistImageProcessor(size=model_args.image_size or VitMnistConfig.image_size)
        digits = (stream_digits if data_args.streaming else load_digits)(data_args, processor)
    if data_args.streaming:
        digits["train"] = dataclasses.replace(digits["train"], shuffle_seed=args.seed)
    if args.wants_push and digits["train"].is_sample and not args.push_sample_model:
        raise InputError(
            "This run uses the kept sample, no match for MNIST, so --push_to_hub is refused: pass --dataset_name for "
            "the full set, or --push_sample_model to push all the same."
        )
    model = build_model(model_args, digits["train"].names)
    if args.optim == "natural_gradient" and model.num_parameters() > MAX_PARAMETERS:
        raise InputError(
            f"--optim natural_gradient takes up to {MAX_PARAMETERS:,} parameters, the network has "
            f"{model.num_parameters():,}: use adam or adamw_torch."
        )
    if model_args.whiten_patches and not model_args.model_name_or_path:
        whiten_patch_embed(model, digits["train"])
    run = describe_run(model, model_args, data_args, augmentation, args, digits)
    with args.main_process_first(desc="output folder"):
        checkpoint = prepare_output_dir(Path(args.output_dir), run, args)
    if checkpoint is not None and checkpoint.name == RESULTS_FILE:
        results = json.loads(checkpoint.read_text())
        if is_main:
            print(f"This run has already finished in {args.output_dir} (--overwrite trains it again).")
            print_results(results)
            push(args)
        return results
    if is_main:
        print(
            f"Data: {', '.join(f'{len(split):,} {name}' for name, split in digits.items())} images of "
            f"{digits['train'].source}"
        )
        print(f"Total parameters: {model.num_parameters():,}")
        if checkpoint is not None:
            print(f"Resuming from {checkpoint}")

    trainer = make_trainer(model, digits, augmentation, args)
    progress = next((c for c in trainer.callback_handler.callbacks if isinstance(c, QuietProgress)), None)
    try:
        output = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    finally:
        if progress is not None:
            progress.close()
    trainer.remove_callback(RunReport)
    # Trainer's own time and mean loss are wrong after a resume: it counts from there on.
    elapsed = trainer.state.log_history[-1]["elapsed"]
    results = measure(trainer, digits)
    results |= {
        "train_loss": mean_loss(trainer.state.log_history, output.metrics["train_loss"]),
        "train_runtime": elapsed,
        "duration": time.time() - started + elapsed - output.metrics["train_runtime"],
        "ended_at": datetime.now().isoformat(sep=" ", timespec="seconds"),
        "device": describe_device(args),
        "versions": hub.describe_versions(),
    }
    if is_main:
        save_run(trainer, processor, run, results, Path(args.output_dir))
        print_results(results)
        print(f"Saved to {args.output_dir}")
        push(args)
    return results


def make_trainer(
    model: VitMnistForImageClassification,
    digits: dict[str, Digits | StreamedDigits],
    augmentation: AugmentationArguments,
    args: VitMnistTrainingArguments,
) -> VitMnistTrainer:
    """The trainer of a run: its images, metric, progress bar, and what its optimizer needs."""
    train_digits = digits["train"]
    is_stream = isinstance(train_digits, StreamedDigits)
    if augmentation.is_on:
        options = augmentation, args.seed, count_epochs(args, len(train_digits))
        train_digits = (AugmentedStream if is_stream else AugmentedDigits)(train_digits, *options)
    if args.should_compile(count_epochs(args, len(train_digits)) * len(train_digits) / args.world_size):
        compile_training(model, args.per_device_train_batch_size)
    trainer = VitMnistTrainer(
        model=model,
        args=args,
        train_dataset=train_digits,
        eval_dataset=digits["validation"],
        data_collator=Digits.collate,
        processing_class=digits["train"].processor,
        compute_metrics=lambda output: {
            name: value for name, value in compute_metrics(output).items() if isinstance(value, float)
        },
        callbacks=[Stopwatch(), RunReport()],
    )
    if args.optim == "natural_gradient":
        drawn_from = train_digits
        if is_stream:  # which has no indices to draw from
            head = digits["train"].head(HEAD)
            drawn_from = AugmentedDigits(head, *options) if augmentation.is_on else head
        trainer.add_callback(FisherUpdates(drawn_from))
    trainer.remove_callback(PrinterCallback)
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(QuietProgress())
    return trainer


def count_epochs(args: VitMnistTrainingArguments, num_images: int) -> float:
    """Epochs of a run over so many images, also where `--max_steps` sets its length."""
    if args.max_steps < 1:
        return args.num_train_epochs
    return args.max_steps / math.ceil(num_images / args.total_train_batch_size)


def mean_loss(log_history: list[dict], default: float) -> float:
    """The loss of a whole run, from what was logged of each stretch of steps; `default` where nothing was."""
    logged = [(entry["step"], entry["loss"]) for entry in log_history if "loss" in entry]
    if not logged:
        return default
    steps, losses = zip(*logged, strict=True)
    return statistics.fmean(losses, weights=[end - start for start, end in itertools.pairwise((0, *steps))])


def measure(trainer: Trainer, digits: dict[str, Digits | StreamedDigits]) -> dict:
    """What the chosen checkpoint does on validation, and, this once, on test; in float32, as it is saved."""
    # The class's own pass again, without what compiling and --bf16 put in its place on this instance.
    for name in ("forward", "_original_forward"):
        trainer.model.__dict__.pop(name, None)
    state = trainer.state
    validation = trainer.evaluate()
    test = trainer.predict(digits["test"], metric_key_prefix="test")
    metrics = compute_metrics(transformers.EvalPrediction(test.predictions, test.label_ids))
    best_step = state.best_global_step or state.global_step
    return {
        "dataset": digits["train"].source,
        "parameters": trainer.model.num_parameters(),
        "epoch": state.num_train_epochs,
        "best_epoch": round(best_step * state.num_train_epochs / state.max_steps, 2),
        **{f"{name}_samples": len(split) for name, split in digits.items()},
        "eval_loss": validation["eval_loss"],
        "eval_accuracy": validation["eval_accuracy"],
        "test_loss": test.metrics["test_loss"],
        **{f"test_{name}": value for name, value in metrics.items()},
    }


def compute_metrics(output: transformers.EvalPrediction) -> dict:
    """[`VitMnistMetric`] of logits of shape `(n, classes)` and labels `(n,)`."""
    probabilities = torch.from_numpy(output.predictions).double().softmax(-1).numpy()
    metric = VitMnistMetric(keep_in_memory=True)
    return metric.compute(predictions=probabilities, references=output.label_ids)


def describe_run(
    model: VitMnistForImageClassification,
    model_args: ModelArguments,
    data_args: DataArguments,
    augmentation: AugmentationArguments,
    args: VitMnistTrainingArguments,
    digits: dict[str, Digits | StreamedDigits],
) -> dict:
    """Everything that decides how a run turns out: two runs of the same description are the same run."""
    network = json.loads(model.config.to_json_string())
    for name in ("auto_map", "transformers_version", "architectures", "dtype"):
        network.pop(name, None)
    training = (
        "seed", "data_seed", "num_train_epochs", "max_steps", "total_train_batch_size", "optim", "learning_rate",
        "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2",
        "adam_epsilon", "max_grad_norm", "label_smoothing_factor", "bf16", "fp16", "metric_for_best_model",
    )  # fmt: skip
    data = {name: len(split) for name, split in digits.items()}
    data |= {"source": digits["train"].source, "split_seed": data_args.split_seed}
    if data_args.streaming:
        data["streaming"] = True
    start = {"whiten_patches": model_args.whiten_patches}
    if model_args.model_name_or_path:  # a folder by its name alone, since the record goes to the Hub
        folder = Path(model_args.model_name_or_path)
        start["fine_tuned_from"] = folder.resolve().name if folder.is_dir() else model_args.model_name_or_path
    if args.optim == "natural_gradient":
        training += ("damping", "final_damping", "fisher_steps", "fisher_images")
    values = {name: getattr(args, name) for name in training}
    warps = vars(augmentation) if augmentation.is_on else {}
    run = {"model": network | start, "data": data, "augmentation": warps, "training": values}
    return json.loads(json.dumps(run, default=str))


def describe_device(args: TrainingArguments) -> str:
    """The device in words, for the record of a run."""
    if args.device.type == "cuda":
        name = torch.cuda.get_device_name(args.device)
    else:
        name = f"{args.device.type}, {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"
    return name if args.world_size == 1 else f"{args.world_size} processes, each {name}"


def print_results(results: dict) -> None:
    """The facts that the original system ended with."""
    print(f"Best accuracy: {results['eval_accuracy']:.2%} on validation, epoch {results['best_epoch']:g}")
    print(f"Test accuracy: {results['test_accuracy']:.2%} of {results['test_samples']:,} images")
    print(f"Ended at: {results['ended_at']}")
    print(f"Duration: {timedelta(seconds=round(results['duration']))}")


def save_run(
    trainer: VitMnistTrainer, processor: VitMnistImageProcessor, run: dict, results: dict, folder: Path
) -> None:
    """Write the complete checkpoint folder and drop the training checkpoints, which only serve to resume."""
    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    model.config.__dict__.pop("use_cache", None)  # Trainer's mark
    history = {"log_history": trainer.state.log_history}
    hub.save_checkpoint(
        folder,
        model,
        processor,
        card=hub.fill_card(run, results),
        records={"history.json": history, **hub.fill_eval_results(results), RUN_FILE: run, RESULTS_FILE: results},
    )
    if not trainer.args.keep_checkpoints:
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)


def push(args: VitMnistTrainingArguments) -> None:
    """
    Push the output folder of a finished run where `--push_to_hub` asks for it.

    Raises:
        InputError: the Hub does not let this token push there.
        ConnectionError: the Hub cannot be reached, or failed each time.
    """
    if args.wants_push:
        url = hub.push(
            args.output_dir, args.repo_id, args.hub_token, args.hub_private_repo, allow_sample=args.push_sample_model
        )
        print(f"Pushed to {url}")
