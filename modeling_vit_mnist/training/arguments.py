"""Arguments of a training run: network, data, augmentation, and transformers' `TrainingArguments`."""

import dataclasses
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from huggingface_hub.utils import validate_repo_id
from transformers import TrainingArguments

from ..cli.arguments import RecipeParser, arg
from ..cli.assets import asset
from ..cli.errors import UsageError
from ..configuration_vit_mnist import VitMnistConfig
from ..data.arguments import DataArguments
from ..data.augmentation import AugmentationArguments
from . import refusals
from .refusals import METRICS, OWN_OPTIMIZERS

logger = logging.getLogger(__name__)

# Flags of Trainer that --help shows besides those with a default of ours.
COMMON_FLAGS = ("bf16", "report_to", "resume_from_checkpoint", "push_to_hub", "hub_model_id")
# Compilation takes as long as it saves over this many images.
IMAGES_WORTH_COMPILING = 2_000_000


@dataclass
class ModelArguments:
    """The network: a checkpoint to start from, or fields of [`VitMnistConfig`], whose defaults hold where unset."""

    model_name_or_path: str | None = arg(help="Checkpoint folder or Hub id to fine-tune. Default: none.")
    hidden_size: int | None = arg(help="Width of every token.")
    num_hidden_layers: int | None = arg(help="Number of transformer blocks.")
    num_attention_heads: int | None = arg(help="Attention heads per block.")
    intermediate_size: int | None = arg(help="Width of the MLP's hidden layer. Default: 2 * hidden_size.")
    hidden_act: str | None = arg(help="Activation of the MLP, by transformers' name.")
    hidden_dropout_prob: float | None = arg(help="Dropout on embeddings and residual branches.")
    attention_probs_dropout_prob: float | None = arg(help="Dropout on attention probabilities.")
    layer_norm_eps: float | None = arg(help="Epsilon of every LayerNorm.")
    image_size: int | None = arg(help="Height and width that images are resized to.")
    do_frame: bool | None = arg(
        help="Frame the digit in each image as in MNIST; no for images that are no digits. Default: as the "
        "checkpoint does, else yes for MNIST."
    )
    do_deskew: bool | None = arg(help="Bring digits upright and to one size. Default: the checkpoint's, else no.")
    patch_size: int | None = arg(help="Height and width of a patch.")
    qkv_bias: bool | None = arg(help="Whether queries, keys and values have a bias.")
    initializer: str | None = arg(help="xavier_uniform or trunc_normal.")
    initializer_range: float | None = arg(help="Standard deviation of the initial position embeddings.")
    whiten_patches: bool = arg(False, "Initialize the patch embedding with whitened principal components.")
    attn_implementation: str = arg(
        "eager",
        "Attention: eager (the fastest on a CPU at this size), sdpa, flex_attention or another of transformers.",
    )

    def __post_init__(self):
        refusals.check_finite(self)
        if self.model_name_or_path is None:
            try:  # before images are read
                VitMnistConfig(**self.config_fields())
            except (ValueError, StrictDataclassError) as error:
                raise UsageError(
                    str(error).rpartition("ValueError: ")[2]
                ) from error  # without what wraps the sentence

    def config_fields(self) -> dict[str, Any]:
        """The fields of [`VitMnistConfig`] that were set."""
        known = VitMnistConfig.__dataclass_fields__
        return {name: value for name, value in vars(self).items() if value is not None and name in known}


def _trainer_field(name: str, default: Any) -> Any:
    """A field of `TrainingArguments` with another default."""
    return arg(default, **TrainingArguments.__dataclass_fields__[name].metadata)


@dataclass
class VitMnistTrainingArguments(TrainingArguments):
    """transformers' `TrainingArguments`, all of them, with the defaults that all recipes share, and our own."""

    optim: str = arg(
        TrainingArguments.default_optim,
        "adam (torch.optim.Adam), natural_gradient (up to 10,000 parameters), or an optimizer of transformers.",
    )
    lr_scheduler_type: str = _trainer_field("lr_scheduler_type", "cosine_warmup_with_min_lr")
    per_device_train_batch_size: int = _trainer_field("per_device_train_batch_size", 256)
    per_device_eval_batch_size: int = _trainer_field("per_device_eval_batch_size", 1000)
    max_grad_norm: float = _trainer_field("max_grad_norm", 0.0)
    seed: int = _trainer_field("seed", 0)
    eval_strategy: str = _trainer_field("eval_strategy", "epoch")
    save_strategy: str = _trainer_field("save_strategy", "epoch")
    logging_strategy: str = _trainer_field("logging_strategy", "epoch")
    load_best_model_at_end: bool = _trainer_field("load_best_model_at_end", True)
    metric_for_best_model: str | None = _trainer_field("metric_for_best_model", "accuracy")
    save_total_limit: int | None = _trainer_field("save_total_limit", 2)
    dataloader_pin_memory: bool = _trainer_field("dataloader_pin_memory", False)
    logging_nan_inf_filter: bool = _trainer_field("logging_nan_inf_filter", False)
    ddp_find_unused_parameters: bool | None = _trainer_field("ddp_find_unused_parameters", False)
    # The batches of all processes are equal but for the last, which the trainer corrects. Counting their labels would
    # be a message between them at every step.
    average_tokens_across_devices: bool = _trainer_field("average_tokens_across_devices", False)
    # Batches are made by the dataset and have no columns to remove.
    remove_unused_columns: bool = _trainer_field("remove_unused_columns", False)
    damping: float = arg(0.01, "Damping of the natural gradient at the start. Larger is closer to gradient descent.")
    final_damping: float = arg(0.001, "Damping at the end. It falls geometrically.")
    fisher_update_interval: int = arg(200, "Steps between updates of the Fisher matrix.")
    fisher_batch_size: int = arg(2048, "Training images per update of the Fisher matrix.")
    compile_training: str = arg(
        "auto",
        f"Compile the training pass on a CPU. auto: from {IMAGES_WORTH_COMPILING:,} images on.",
        choices=["auto", "yes", "no"],
    )
    overwrite: bool = arg(False, "Replace another run in the output folder.")
    keep_checkpoints: bool = arg(False, "Keep the training checkpoints of a finished run.")
    report: bool = arg(False, "Also write report.html: recipe, results and figures on one page.")
    push_sample_model: bool = arg(False, "Allow --push_to_hub for a model trained on the bundled 5,000-image sample.")

    def __post_init__(self):
        refusals.refuse_arguments(self)
        refusals.check_ranges(self)
        self.wants_push = self.push_to_hub
        self.push_to_hub = False  # Trainer would push incomplete folders. We push once, at the end.
        if self.lr_scheduler_type == "cosine_warmup_with_min_lr" and not self.lr_scheduler_kwargs:
            self.lr_scheduler_kwargs = {"min_lr": min(1e-5, self.learning_rate)}  # of the original system: 1e-5
        if not torch.accelerator.is_available():
            # Otherwise Trainer refuses bf16, and several processes train independently.
            self.use_cpu = True
        precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")  # of `accelerate launch`
        if precision not in ("bf16", "fp16", "no"):
            raise UsageError(f"ACCELERATE_MIXED_PRECISION={precision} is not supported: choose bf16, fp16 or no.")
        if precision != "no" and not (self.bf16 or self.fp16):
            setattr(self, precision, True)
        metric = self.metric_for_best_model = (self.metric_for_best_model or "loss").removeprefix("eval_")
        if metric not in METRICS:
            raise UsageError(f"--metric_for_best_model must be one of {', '.join(METRICS)}, got {metric}.")
        if self.greater_is_better is None:
            self.greater_is_better = METRICS[metric]
        # transformers accepts only the names it knows.
        asked, self.optim = self.optim, "adamw_torch" if self.optim in OWN_OPTIMIZERS else self.optim
        with refusals.as_usage_error(""):
            super().__post_init__()
        self.optim = asked if asked in OWN_OPTIMIZERS else self.optim
        refusals.check_combinations(self)
        refusals.try_out(self)
        if self.wants_push:
            validate_repo_id(self.repo_id)

    def __getstate__(self):
        """Without tokens: Trainer writes its arguments into every checkpoint."""
        return {name: None if name.endswith("_token") else value for name, value in vars(self).items()}

    @property
    def repo_id(self) -> str:
        """Hub repository of `--push_to_hub`. Without a namespace, it is in that of the token's owner."""
        return self.hub_model_id or Path(self.output_dir).resolve().name

    @property
    def total_train_batch_size(self) -> int:
        """Images per optimizer step, over all processes and accumulated batches."""
        return self.train_batch_size * self.gradient_accumulation_steps * self.world_size

    def should_compile(self, num_images: float) -> bool:
        """Whether to compile the training pass of a run over `num_images`, counting each image in every epoch."""
        if refusals.obstacle_to_compiling(self):
            return False
        pays = num_images >= IMAGES_WORTH_COMPILING
        return self.compile_training == "yes" or (self.compile_training == "auto" and pays)


Arguments = tuple[ModelArguments, DataArguments, AugmentationArguments, VitMnistTrainingArguments]


def parse_arguments(argv: list[str]) -> Arguments:
    """Read a recipe (`--recipe FILE`, by default `configs/tiny.yaml`) and the flags that override it. `--help` prints
    our flags with the recipe's values, `--help-all` prints all flags; both exit. Raises [`UsageError`] for an unknown
    flag or key, or a value out of range."""
    parser = RecipeParser(
        [ModelArguments, DataArguments, AugmentationArguments, VitMnistTrainingArguments], add_help=False
    )
    parser.add_argument("--recipe", default="configs/tiny.yaml", help="YAML or JSON file of flags.")
    parser.add_argument("-h", "--help", action="store_true", help="Show our flags with the recipe's values.")
    parser.add_argument("--help-all", action="store_true", help="Show all flags, including those of transformers.")
    asked = parser.parse_known_args(argv)[0]
    if asked.help_all:
        parser.print_help()
        sys.exit()
    path = Path(asked.recipe)
    if not path.exists() and asset(asked.recipe).exists():  # the packaged recipes work in any folder
        path = asset(asked.recipe)
    recipe = parser.read_recipe(path)
    if asked.help:
        _print_help(parser, recipe, path)
        sys.exit()
    model_args, data_args, augmentation, args, _ = parser.parse(argv, recipe)
    for name in ("do_train", "do_eval"):
        if (getattr(asked, name) if name in parser.given else recipe.get(name)) is False:
            raise UsageError(
                f"--{name} no is not supported: a run trains and evaluates. To evaluate alone, use run_inference.py."
            )
    _warn_of_unused(parser.given, model_args, args)
    if data_args.streaming and (args.dataloader_drop_last or args.train_sampling_strategy != "random"):
        raise UsageError(
            "--streaming reads all images in a random order: drop --dataloader_drop_last and "
            "--train_sampling_strategy."
        )
    if data_args.streaming and args.report:
        raise UsageError("--report reads the test split into memory: drop --report or --streaming.")
    return model_args, data_args, augmentation, args


def _warn_of_unused(given: set[str], model_args: ModelArguments, args: VitMnistTrainingArguments) -> None:
    """Name the flags that have no effect beside others."""
    unused: dict[str, str] = {}
    optim, schedule = (getattr(value, "value", value) for value in (args.optim, args.lr_scheduler_type))
    if optim != "natural_gradient":
        flags = ("damping", "final_damping", "fisher_update_interval", "fisher_batch_size")
        unused |= dict.fromkeys(flags, f"--optim {optim}")
        if schedule in ("constant", "reduce_lr_on_plateau", "greedy"):
            unused["warmup_steps"] = f"--lr_scheduler_type {schedule}"
    if optim in ("sgd", "rmsprop", "adagrad", "adafactor"):
        unused |= dict.fromkeys(("adam_beta1", "adam_beta2", "adam_epsilon"), f"--optim {optim}")
    if model_args.model_name_or_path:
        unused["whiten_patches"] = "--model_name_or_path"
    for name, other in unused.items():
        if name in given:
            logger.warning("--%s has no effect with %s.", name, other)


def _print_help(parser: RecipeParser, recipe: dict[str, Any], path: Path) -> None:
    print(f"""usage: {parser.prog} [--recipe FILE] [--FLAG VALUE ...]

Train a tiny Vision Transformer on MNIST and save it as a complete Hugging Face checkpoint.

  {parser.prog} --recipe configs/best.yaml --seed 1
  {parser.prog} --recipe configs/adam.yaml --hidden_size 24 --output_dir outputs/wide

Each flag is shown with its value in the recipe {path.name}. Flags on the command line override the recipe.
--help-all lists all flags, including those of transformers' TrainingArguments.""")
    kinds = {"Network": ModelArguments, "Data": DataArguments, "Augmentation": AugmentationArguments}
    groups = {title: [field.name for field in dataclasses.fields(kind)] for title, kind in kinds.items()}
    shown = [name for names in groups.values() for name in names]
    own = dict.fromkeys([*recipe, *VitMnistTrainingArguments.__annotations__, *COMMON_FLAGS])
    groups["Training"] = [name for name in own if name not in shown]
    values = {
        action.dest: action.default for action in reversed(parser._actions)
    }  # a flag comes before its --no_ form
    parser.print_summary(groups, values | VitMnistConfig().to_dict() | recipe)
