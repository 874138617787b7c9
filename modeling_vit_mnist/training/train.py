"""A training run, from arguments to a complete checkpoint folder.

The checkpoint is selected on the validation split. The test split is measured once, at the end. A run that was cut
off resumes from its last complete checkpoint, and a folder with another run is left unchanged."""

import copy
import dataclasses
import json
import logging
import re
import time
from contextlib import nullcontext
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import set_seed

from ..checkpoints.card import describe_versions, fill_card, fill_eval_results
from ..checkpoints.folder import load_checkpoint, save_checkpoint
from ..checkpoints.hub import push
from ..checkpoints.record import warn_of_other_split
from ..cli.errors import UsageError, printable
from ..cli.files import locked
from ..configuration_vit_mnist import VitMnistConfig
from ..data.arguments import DEFAULT_DATASET, DataArguments
from ..data.augmentation import AugmentationArguments
from ..data.drawings import add_drawings, check_drawable
from ..data.images import ImageDataset
from ..data.sources import SAMPLE
from ..data.splits import load_images, stream_images
from ..data.streaming import ImageStream
from ..image_processing_vit_mnist import VitMnistImageProcessor
from ..modeling_vit_mnist import VitMnistForImageClassification, digit_score
from .arguments import ModelArguments, VitMnistTrainingArguments
from .callbacks import EpochReportCallback, QuietProgressCallback
from .compiled import plain
from .initialization import build_model, whiten_patch_embed
from .natural_gradient import MAX_FISHER_PARAMETERS
from .processes import decide, shared
from .run_folder import RESULTS_FILE, RUN_FILE, RunFolderCallback, close_run, describe_run, prepare_output_dir
from .signals import StopCallback
from .trainer import VitMnistTrainer, compute_metrics, concatenated, count_epochs, make_trainer

logger = logging.getLogger(__name__)

REJECTED = 0.005  # of the correctly classified validation images, by the threshold that training sets


def train(
    model_args: ModelArguments, data_args: DataArguments, augmentation: AugmentationArguments,
    args: VitMnistTrainingArguments,
) -> dict[str, Any]:  # fmt: skip
    """Train, select on validation, measure test once, and save everything to `args.output_dir`. Returns the content of
    `all_results.json`.

    Raises:
        UsageError: wrong input, or an output folder that holds another run or cannot be written.
        OSError: the disk is full. The content of the folder is unchanged.
        ConnectionError: the Hub is needed and cannot be reached. A trained model is complete in the folder. Or another
            process of the run has ended.
        SystemExit: SIGTERM or Ctrl-C came. The run goes on from its last step when it is called again.
    """
    is_main = args.process_index == 0
    if not is_main:
        logging.getLogger("modeling_vit_mnist").setLevel(logging.ERROR)
    with StopCallback() as stop, locked(Path(args.output_dir)) if is_main else nullcontext():
        try:
            return _train(model_args, data_args, augmentation, args, stop)
        except RuntimeError as error:
            if args.world_size > 1 and re.search("connection (closed|reset)", str(error), re.IGNORECASE):
                reason = "another process of this run has ended. Run the same command again to go on"
                raise ConnectionError(f"Stopped: {reason}.") from error
            raise


def _train(
    model_args: ModelArguments, data_args: DataArguments, augmentation: AugmentationArguments,
    args: VitMnistTrainingArguments, stop: StopCallback,
) -> dict[str, Any]:  # fmt: skip
    started = time.time()
    folder = Path(args.output_dir)
    is_main = args.process_index == 0
    set_seed(args.seed)
    with args.main_process_first(desc="dataset"):
        datasets: dict[str, Any] = load_data(model_args, data_args, args)
    count_epochs(args, len(datasets["train"]))  # raises if an epoch has no batch
    has_bf16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if is_main and args.bf16 and args.device.type == "cpu" and not has_bf16:
        logger.warning("This CPU has no instructions for bfloat16, and computes it slowly: pass --bf16 no.")
    if augmentation.num_added:
        check_drawable(datasets["train"])
    if args.wants_push and datasets["train"].source == SAMPLE.name and not args.push_sample_model:
        raise UsageError(
            "Refusing to push: this run uses the bundled 5,000-image sample. Pass --dataset_name for all of MNIST, or "
            "--push_sample_model to push anyway."
        )
    model = build_model(model_args, datasets["train"].names)
    model.config.digit_score_threshold = None  # of a fine-tuned checkpoint: `measure` sets the new one
    if args.optim == "natural_gradient" and model.num_parameters() > MAX_FISHER_PARAMETERS:
        raise UsageError(
            f"--optim natural_gradient supports up to {MAX_FISHER_PARAMETERS:,} parameters, the network has "
            f"{model.num_parameters():,}: use adam or adamw_torch."
        )
    if model_args.whiten_patches and not model_args.model_name_or_path:
        whiten_patch_embed(model, datasets["train"])

    def find_start() -> tuple[dict, Path | None, dict | None]:
        """The record of the run, the checkpoint to resume from, and the results if it has finished."""
        run = describe_run(model, model_args, data_args, augmentation, args, datasets)
        found = prepare_output_dir(folder, run, args)
        is_finished = found is not None and found.name == RESULTS_FILE
        return run, found, json.loads(found.read_text(encoding="utf-8")) if is_finished else None

    run, checkpoint, results = decide(args, find_start)
    if results is not None:
        if is_main:
            print(f"This run has already finished in {printable(str(folder))} (--overwrite trains it again).")
            print_results(results, args)
            push_finished(args)
        return results
    if augmentation.num_added:
        datasets["train"] = add_drawings(datasets["train"], augmentation, args.seed)
    if is_main:
        sizes = ", ".join(f"{len(split):,} {name}" for name, split in datasets.items())
        print(f"Data: {sizes} images of {datasets['train'].source}")
        names = datasets["train"].names
        more = f", ... ({len(names):,})" if len(names) > 12 else ""
        print(printable(f"Classes: {', '.join(names[:12])}{more}"))
        if augmentation.num_added:
            print(
                f"Added to the train images: {augmentation.num_photographs:,} photographs, "
                f"{augmentation.num_drawn_digits:,} drawn digits, {augmentation.num_font_digits:,} digits of fonts "
                f"and {augmentation.num_outliers:,} outliers"
            )
        print(f"Total parameters: {model.num_parameters():,}")
        if checkpoint is not None:
            print(f"Resuming from {printable(str(checkpoint))}")

    trainer_args = copy.copy(args)
    trainer_args.save_total_limit = None  # Trainer would also delete folders such as checkpoint-best
    trainer_args.save_on_each_node = False  # what the main process saves is for all
    trainer = make_trainer(model, datasets, augmentation, trainer_args, stop)
    trainer.run = run
    trainer.add_callback(RunFolderCallback(checkpoint, args.save_total_limit))
    progress = next((c for c in trainer.callback_handler.callbacks if isinstance(c, QuietProgressCallback)), None)
    try:
        with shared(args, checkpoint) as source:
            output = trainer.train(resume_from_checkpoint=None if source is None else str(source))
    finally:
        if progress is not None:
            progress.close()
    stop.exit_if_received(args, trainer.state)
    if trainer.state.global_step < trainer.state.max_steps:
        raise RuntimeError(f"Training ended at step {trainer.state.global_step} of {trainer.state.max_steps}.")
    trainer.model = finished_model(trainer)
    if is_main and not (folder / RESULTS_FILE).is_file():  # whatever fails from here on, the weights are safe
        save_checkpoint(folder, trainer.model, trainer.processing_class, card=None, records={})
    # Trainer's own time and mean loss are wrong after a resume: they begin there.
    elapsed = trainer.state.log_history[-1]["elapsed"]
    results = measure(trainer, datasets) | {
        "train_loss": mean_loss(trainer.state.log_history, output.metrics["train_loss"]),
        "train_runtime": elapsed,
        "duration": time.time() - started + elapsed - output.metrics["train_runtime"],
        "ended_at": datetime.now().isoformat(sep=" ", timespec="seconds"),
        "device": describe_device(args),
        "versions": describe_versions(),
    }
    if is_main:
        save_run(trainer, run, results, args)
        print_results(results, args)
        print(f"Saved to {printable(str(folder))}")
        push_finished(args)
    return results


def load_data(
    model_args: ModelArguments, data_args: DataArguments, args: VitMnistTrainingArguments
) -> dict[str, ImageDataset | ImageStream]:
    """The splits of the dataset, decoded by the checkpoint's processor or a new one. A new one for MNIST frames digits
    later, which does not change MNIST's images."""
    if model_args.model_name_or_path:
        _, processor = load_checkpoint(model_args.model_name_or_path)
    else:
        processor = VitMnistImageProcessor(size=model_args.image_size or VitMnistConfig.image_size)
    for name in ("do_frame", "do_deskew"):
        if (value := getattr(model_args, name)) is not None:
            if model_args.model_name_or_path and getattr(processor, name) and not value:
                logger.warning("%s is off: %s was trained with it.", name, model_args.model_name_or_path)
            setattr(processor, name, value)
    datasets: dict[str, Any] = (stream_images if data_args.streaming else load_images)(data_args, processor)
    for name in ("validation", "test") if model_args.model_name_or_path else ():
        warn_of_other_split(model_args.model_name_or_path, name, datasets[name], data_args, f"the {name}")
    is_mnist = datasets["train"].source in (DEFAULT_DATASET, SAMPLE.name)
    if model_args.do_frame is None and not model_args.model_name_or_path:
        processor.do_frame = is_mnist and processor.size["height"] == VitMnistConfig.image_size
        if not is_mnist and set(datasets["train"].names) == set(map(str, range(10))):
            logger.warning(
                "The images are resized, not framed. If they are drawings, scans or photographs of digits, pass "
                "--do_frame yes."
            )
    elif processor.do_frame and not is_mnist:
        in_memory = [split.images for split in datasets.values() if isinstance(split, ImageDataset)]
        black = sum(int((images.flatten(1).amax(1) == 0).sum()) for images in in_memory)
        logger.warning(
            "Framing the images as digits; %d hold none and are black. For other images, pass --do_frame no.", black
        )
    if not data_args.streaming:
        return datasets
    for _ in datasets["test"].chunks():  # an image that cannot be read stops the run now, not when it has trained
        pass
    return datasets | {"train": dataclasses.replace(datasets["train"], shuffle_seed=args.seed)}


def mean_loss(log_history: list[dict], default: float) -> float:
    """Mean training loss over the logged intervals of a run, weighted by their steps; `default` without any."""
    logged = [(entry["step"], entry["loss"]) for entry in log_history if "loss" in entry]
    if not logged:
        return default
    steps, losses = zip(*logged, strict=True)
    return float(np.average(losses, weights=np.diff((0, *steps))))


def finished_model(trainer: VitMnistTrainer) -> VitMnistForImageClassification:
    """The model without what training added to it: DDP, autocast, compilation, marks in its config."""
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False, keep_torch_compile=False)
    for name in ("forward", "_original_forward"):  # accelerate leaves a reference to the compiled class's method
        model.__dict__.pop(name, None)
    model.config.__dict__.pop("use_cache", None)
    return plain(model)


def measure(trainer: VitMnistTrainer, datasets: dict[str, ImageDataset | ImageStream]) -> dict[str, Any]:
    """Results of the selected checkpoint on validation and test, in float32, as it is saved. Sets its threshold of
    [`digit_score`]."""
    trainer.remove_callback(EpochReportCallback)
    state = trainer.state
    # With --load_best_model_at_end no, the model is the last one.
    selected = trainer.args.load_best_model_at_end and state.best_model_checkpoint
    best_step = int(selected.rpartition("-")[2]) if selected else state.global_step
    if selected and trainer.args.process_index == 0 and not Path(selected).is_dir():
        raise FileNotFoundError(f"The best checkpoint {selected} was deleted during training.")
    epochs = {entry["step"]: entry["epoch"] for entry in state.log_history}
    validation = trainer.predict(datasets["validation"], metric_key_prefix="eval")
    trainer.model.config.digit_score_threshold = score_threshold(validation)
    test = trainer.predict(datasets["test"], metric_key_prefix="test")
    metrics = compute_metrics(test)
    return {
        "dataset": datasets["train"].source,
        "parameters": trainer.model.num_parameters(),
        "epoch": round(epochs[state.global_step], 2),  # Trainer's num_train_epochs is rounded up
        "best_epoch": round(epochs[best_step], 2),
        "is_selected": bool(selected),
        "held_out": [name for name, split in datasets.items() if split.held_out],  # of the train split
        **{f"{name}_samples": len(split) for name, split in datasets.items()},
        "eval_loss": validation.metrics["eval_loss"],
        "eval_accuracy": validation.metrics["eval_accuracy"],
        "test_loss": test.metrics["test_loss"],
        **{f"test_{name}": value for name, value in metrics.items()},
    }


def score_threshold(output: transformers.EvalPrediction) -> float | None:
    """The threshold of [`digit_score`] that rejects [`REJECTED`] of the correctly classified images, to 4 decimals;
    `None` if no image is correctly classified. `output` has logits of shape `(n, classes)` and labels `(n,)`."""
    logits, labels = map(torch.from_numpy, concatenated(output))
    scores = digit_score(logits[logits.argmax(1) == labels]).numpy()
    return round(float(np.quantile(scores, REJECTED, method="lower")), 4) if len(scores) else None


def describe_device(args: VitMnistTrainingArguments) -> str:
    """The device in words, for the record of a run."""
    threads = torch.get_num_threads()
    name = f"{args.device.type}, {threads} thread{'s' if threads > 1 else ''}"
    if args.device.type == "cuda":
        name = torch.cuda.get_device_name(args.device)
    return name if args.world_size == 1 else f"{args.world_size} processes, each {name}"


def print_results(results: dict[str, Any], args: VitMnistTrainingArguments) -> None:
    """The facts that the original system printed at its end."""
    name, reason = "Accuracy", f", selected by {args.metric_for_best_model}"
    if not results.get("is_selected", args.load_best_model_at_end):  # older versions did not record it
        reason = ", the last"
    elif args.metric_for_best_model == "accuracy" and args.greater_is_better:
        name, reason = "Best accuracy", ""
    print(f"{name}: {results['eval_accuracy']:.2%} on validation, epoch {results['best_epoch']:g}{reason}")
    print(f"Test accuracy: {results['test_accuracy']:.2%} of {results['test_samples']:,} images")
    print(f"Ended at: {results['ended_at']}")
    print(f"Duration: {timedelta(seconds=round(results['duration']))}")


def save_run(trainer: VitMnistTrainer, run: dict, results: dict, args: VitMnistTrainingArguments) -> None:
    """Write the complete checkpoint folder, and delete the training checkpoints, which are for resuming only."""
    history = {"log_history": trainer.state.log_history}
    for entry in history["log_history"]:
        if "train_loss" in entry:  # Trainer's begin at a resume
            entry |= {name: results[name] for name in ("train_loss", "train_runtime")}
    records = {"history.json": history, **fill_eval_results(results), RUN_FILE: run, RESULTS_FILE: results}
    folder, model = Path(args.output_dir), trainer.model
    save_checkpoint(folder, model, trainer.processing_class, card=fill_card(run, results), records=records)
    close_run(folder, args)


def push_finished(args: VitMnistTrainingArguments) -> None:
    """Push the output folder of a finished run if `--push_to_hub` was given. See [`push`]."""
    if args.wants_push:
        options = {"private": args.hub_private_repo, "allow_sample": args.push_sample_model}
        print(f"Pushed to {push(args.output_dir, args.repo_id, args.hub_token, **options)}")
