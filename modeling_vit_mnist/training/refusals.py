"""Arguments that this training cannot obey, and values out of range: refused before any work."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import SchedulerType, Trainer, get_scheduler
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from ..cli.errors import EXTRAS, UsageError

OWN_OPTIMIZERS = ("adam", "natural_gradient")
# What an evaluation measures, and whether more is better.
METRICS = {"accuracy": True, "macro_f1": True, "expected_calibration_error": False, "loss": False}

SHARDED = "this network fits on any device, and several processes train copies of it"
# Arguments of transformers that this training cannot obey, and why. Any value but the default is refused.
REFUSED = {
    **dict.fromkeys(("deepspeed", "fsdp", "fsdp_config", "parallelism_config"), SHARDED),
    **dict.fromkeys(("hub_always_push", "hub_strategy"), "--push_to_hub pushes the finished model, once"),
    "hub_revision": "--push_to_hub pushes to the main branch",
    **dict.fromkeys(("bf16_full_eval", "fp16_full_eval"), "it would round the weights that are saved: use --bf16"),
    **dict.fromkeys(("liger_kernel_config", "use_liger_kernel"), "there is no Liger kernel for this network"),
    "accelerator_config": "set the batches with --per_device_train_batch_size and --gradient_accumulation_steps",
    "auto_find_batch_size": "another batch size is another run: set --per_device_train_batch_size",
    "batch_eval_metrics": "the metrics need all predictions at once",
    "dataloader_in_order": "the order of the images would depend on chance",
    "debug": "training stops by itself at the first number that is not finite",
    "enable_jit_checkpoint": "SIGTERM and Ctrl-C save a checkpoint without it",
    "eval_use_gather_object": "all predictions are tensors",
    "ignore_data_skip": "a resumed run would see some images twice and others never",
    "include_for_metrics": "the metrics read predictions and labels only",
    "label_names": "the labels of a batch are always called labels",
    "length_column_name": "images have no length",
    "optim_target_modules": "it belongs to optimizers for large networks",
    "prediction_loss_only": "the results hold metrics of the predictions",
    "remove_unused_columns": "batches have no columns",
    "save_only_model": "a stopped run could not resume from such a checkpoint",
    "use_cache": "an image classifier has no cache",
}
OBEYED = ("end", ["labels"])  # values of `hub_strategy` and `label_names`
# `accelerate launch` asks for the same by variables that begin with ACCELERATE_.
REFUSED_VARIABLES = {
    **dict.fromkeys(("USE_DEEPSPEED", "USE_FSDP", "USE_MEGATRON_LM", "USE_PARALLELISM_CONFIG"), SHARDED),
    "DYNAMO_BACKEND": "set dynamo_backend to no, and pass --compile_training yes or --torch_compile",
}
POSITIVE = (
    "learning_rate", "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
    "logging_steps", "eval_steps", "save_steps", "eval_accumulation_steps", "damping", "final_damping",
    "fisher_update_interval", "fisher_batch_size",
)  # fmt: skip
NOT_NEGATIVE = (
    "weight_decay", "adam_epsilon", "max_grad_norm", "label_smoothing_factor", "eval_delay", "neftune_noise_alpha",
)  # fmt: skip


def check_finite(arguments: object) -> None:
    """Raise [`UsageError`] for an argument that holds NaN or infinity."""
    for name, value in vars(arguments).items():
        for number in value.values() if isinstance(value, dict) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise UsageError(f"--{name} must be finite, got {value}.")


@contextmanager
def as_usage_error(prefix: str) -> Iterator[None]:
    """Turn any exception into a [`UsageError`] of one line that begins with `prefix`."""
    try:
        yield
    except Exception as error:
        raise UsageError(prefix + " ".join(str(error).split())) from error


def refuse_arguments(args: Any) -> None:
    """Raise [`UsageError`] for an argument in [`REFUSED`], or a variable of accelerate in [`REFUSED_VARIABLES`]."""
    for name, reason in REFUSED.items():
        default, value = args.__dataclass_fields__[name].default, getattr(args, name)
        if value not in (default, None, "", [], *OBEYED):
            raise UsageError(f"--{name} {value} is not supported: {reason}.")
    for name, reason in REFUSED_VARIABLES.items():
        if (value := os.environ.get(f"ACCELERATE_{name}", "")).lower() not in ("", "no", "false", "0"):
            raise UsageError(f"ACCELERATE_{name}={value} is not supported: {reason}.")
    steps = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "")
    if steps not in ("", "1", "auto", str(args.gradient_accumulation_steps)):
        raise UsageError(
            f"ACCELERATE_GRADIENT_ACCUMULATION_STEPS={steps} is not supported: pass --gradient_accumulation_steps."
        )
    if args.ddp_backend and "RANK" not in os.environ:
        raise UsageError("--ddp_backend needs several processes: start with accelerate launch or torchrun.")


def check_ranges(args: Any) -> None:
    """Raise [`UsageError`] for a number out of range."""
    check_finite(args)
    for name in POSITIVE:
        if (value := getattr(args, name)) is not None and value <= 0:
            raise UsageError(f"--{name} must be positive, got {value:g}.")
    for name in NOT_NEGATIVE:
        if (value := getattr(args, name)) is not None and value < 0:
            raise UsageError(f"--{name} must not be negative, got {value:g}.")
    for name in ("seed", "data_seed"):
        if (value := getattr(args, name)) is not None and not 0 <= value < 2**32:
            raise UsageError(f"--{name} must lie between 0 and 2**32 - 1, got {value}.")


def check_combinations(args: Any) -> None:
    """Raise [`UsageError`] for what would be ignored or fail later, and for a package that is missing."""
    check_finite(args)  # by now, `lr_scheduler_kwargs` is a dictionary
    optim, schedule = getattr(args.optim, "value", args.optim), SchedulerType(args.lr_scheduler_type).value
    sampling, obstacle = args.train_sampling_strategy, obstacle_to_compiling(args)
    natural, smoothing = optim == "natural_gradient", args.label_smoothing_factor
    options = args.lr_scheduler_kwargs if isinstance(args.lr_scheduler_kwargs, dict) else {}
    numbers = {name: value for name, value in options.items() if isinstance(value, (int, float))}
    min_lr = numbers.pop("min_lr", 0)
    shares = {name: numbers[name] for name in ("min_lr_rate", "min_lr_ratio", "warmup_lr_rate") if name in numbers}
    steps, epochs, betas = args.max_steps, args.num_train_epochs, (args.adam_beta1, args.adam_beta2)
    wrong = {
        f"--max_steps must be positive, or -1 for --num_train_epochs, got {steps}": steps == 0 or steps < -1,
        f"--num_train_epochs must be positive, got {epochs:g}": steps == -1 and epochs <= 0,
        f"--adam_beta1 and --adam_beta2 must lie in [0, 1), got {betas}": min(betas) < 0 or max(betas) >= 1,
        f"--label_smoothing_factor must be below 1, got {smoothing:g}": smoothing >= 1,
        "--fp16 needs a GPU: pass --bf16 on a CPU": args.fp16 and args.device.type == "cpu",
        f"--compile_training yes cannot be combined with {obstacle}": args.compile_training == "yes" and obstacle,
        f"--optim {optim} is for large networks": optim.startswith(("apollo", "galore", "lomo", "adalomo")),
        f"--optim {optim} has no weight decay": natural and args.weight_decay,
        f"--optim {optim} cannot be combined with gradient checkpointing": natural and args.gradient_checkpointing,
        f"--lr_scheduler_type {schedule} has no options": args.lr_scheduler_kwargs and "constant" in schedule,
        f"min_lr must lie between 0 and --learning_rate, got {min_lr}": not 0 <= min_lr <= args.learning_rate,
        f"Shares of --learning_rate must lie in [0, 1], got {shares}": not all(0 <= n <= 1 for n in shares.values()),
        f"--train_sampling_strategy {sampling} is for texts: use random": sampling not in ("random", "sequential"),
    }
    for message, is_so in wrong.items():
        if is_so:
            raise UsageError(f"{message}.")
    available = get_available_reporting_integrations()
    for name in args.report_to:
        if name not in INTEGRATION_TO_CALLBACK:
            raise UsageError(f"--report_to must be one of {', '.join(INTEGRATION_TO_CALLBACK)}, got {name}.")
        if name not in available:
            package = f"'vit-mnist[{EXTRAS[name]}]'" if name in EXTRAS else name
            raise UsageError(f"--report_to {name} needs a package that is missing: run pip install {package}.")


def obstacle_to_compiling(args: Any) -> str | None:
    """Why the training pass cannot be compiled, in words."""
    if args.device.type != "cpu":
        return f"the device {args.device.type}: it is for a CPU"
    names = "torch_compile", "gradient_checkpointing", "label_smoothing_factor", "neftune_noise_alpha"
    return next((f"--{name}" for name in names if getattr(args, name)), None)


def try_out(args: Any) -> None:
    """Make an optimizer, a schedule and a data loader. Raises [`UsageError`] for options that they refuse."""
    steps, schedule = max(args.max_steps, 100), SchedulerType(args.lr_scheduler_type).value
    kind: Any = torch.optim.Adam
    betas = (args.adam_beta1, args.adam_beta2)
    options: Any = {"lr": args.learning_rate, "betas": betas, "eps": args.adam_epsilon}
    with as_usage_error(f"--optim {getattr(args.optim, 'value', args.optim)}: "):
        unused = {item.partition("=")[0].strip() for item in (args.optim_args or "").split(",")} - {""}
        if args.optim not in OWN_OPTIMIZERS:
            kind, options = Trainer.get_optimizer_cls_and_kwargs(args)
            unused -= options.keys()
        optimizer = kind([torch.nn.Parameter(torch.zeros(1))], **options)
        if unused:
            raise ValueError(f"--optim_args {min(unused)} has no effect")
    with as_usage_error(f"--lr_scheduler_type {schedule} with --lr_scheduler_kwargs {args.lr_scheduler_kwargs}: "):
        options = args.lr_scheduler_kwargs or {}
        if schedule in ("reduce_lr_on_plateau", "greedy"):  # they watch the metric, by default for a fall
            options = args.lr_scheduler_kwargs = {"mode": "max" if args.greater_is_better else "min"} | options
        get_scheduler(schedule, optimizer, args.get_warmup_steps(steps), steps, options)
    with as_usage_error("--dataloader_num_workers and its options: "):
        torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(torch.zeros(1)),
            num_workers=args.dataloader_num_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            persistent_workers=args.dataloader_persistent_workers,
            multiprocessing_context=args.dataloader_multiprocessing_context,
        )
