"""What happens between steps: reports, times, progress bars, the last checkpoint, updates of the Fisher matrix."""

import sys
import time
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers.modeling_utils import unwrap_model
from transformers.trainer_callback import ProgressCallback

from ..data.augmentation import AugmentedDataset
from ..data.images import ImageDataset
from .natural_gradient import per_sample_gradients


class SelectionCallback(TrainerCallback):
    """Knows which evaluations Trainer will select, which it decides after `on_evaluate`."""

    has_begun = False  # Trainer does not select the evaluation of --eval_on_start

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.has_begun = True

    def selects(self, args, state, metrics: dict[str, float]) -> bool:
        """Whether the metric of an evaluation is the best so far. An equal one is not."""
        if not (self.has_begun and args.load_best_model_at_end):
            return False
        value, best = metrics[f"eval_{args.metric_for_best_model}"], state.best_metric
        return best is None or (value > best if args.greater_is_better else value < best)


class EpochReportCallback(SelectionCallback):
    """Prints one line per evaluation, marked `best` if Trainer will select it."""

    loss: float | None = None  # logged since the last evaluation

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.loss = logs.get("loss", self.loss)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if state.is_world_process_zero and "eval_accuracy" in metrics:
            loss = "" if self.loss is None else f"loss {self.loss:.4f}  "
            best = "  best" if self.selects(args, state, metrics) else ""
            epoch = state.epoch or 0
            total = epoch * state.max_steps / state.global_step if state.global_step else state.num_train_epochs
            tqdm.write(
                f"Epoch {epoch:5.1f} of {round(total, 1):g}  {loss}validation loss "
                f"{metrics['eval_loss']:.4f}  accuracy {metrics['eval_accuracy']:.2%}{best}",
                file=sys.stdout,
            )
        self.loss = None


class DatasetEpochCallback(TrainerCallback):
    """Tells the dataset which epoch begins. Data loaders of accelerate do not, if there are several processes."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def on_epoch_begin(self, args, state, control, **kwargs):
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(int(state.epoch or 0))


class CheckpointCallback(SelectionCallback):
    """Saves what a run must not lose, with any save strategy: the best weights, and those of the last step, in case of
    a failure after training. What is due at the last step of an epoch is saved after the log and the evaluation of the
    epoch, which a run that resumes there would miss. Logs the loss before each save, so that the mean loss of a
    resumed run counts every step, and before each evaluation, which is reported with it."""

    saved = 0
    is_due = False

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if args.save_strategy != "best" and self.selects(args, state, metrics):
            control.should_save = True

    def on_save(self, args, state, control, **kwargs):
        self.saved = state.global_step

    def on_step_end(self, args, state, control, **kwargs):
        is_last = state.global_step >= state.max_steps
        self.is_due = is_last or control.should_save
        if is_last or state.epoch % 1 == 0:
            control.should_save = False
        control.should_log |= control.should_save or control.should_evaluate

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.is_due and self.saved != state.global_step:
            control.should_save = True
        control.should_log |= control.should_save


class ElapsedTimeCallback(TrainerCallback):
    """Adds to every log entry the seconds of training so far, including those before a resume."""

    def on_train_begin(self, args, state, control, **kwargs):
        before = next((entry["elapsed"] for entry in reversed(state.log_history) if "elapsed" in entry), 0.0)
        self.started = time.time() - before

    def on_log(self, args, state, control, **kwargs):
        state.log_history[-1]["elapsed"] = time.time() - self.started


class QuietProgressCallback(ProgressCallback):
    """Trainer's progress bar of a run, with a name and the last accuracy. Without its log lines, and its bars for
    measurements, which take seconds."""

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description("Train")

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        pass

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if self.training_bar is not None and "eval_accuracy" in metrics:
            self.training_bar.set_postfix_str(f"validation {metrics['eval_accuracy']:.2%}")

    def on_log(self, args, state, control, logs=None, **kwargs):
        pass

    def close(self) -> None:
        """Close the bar that a failure left open, so that its message starts on a new line."""
        if self.training_bar is not None:
            self.training_bar.close()


class FisherUpdateCallback(TrainerCallback):
    """Updates the matrix of [`NaturalGradient`] on images of `dataset`, after the warmup. Several processes share the
    images of an update."""

    def __init__(self, dataset: ImageDataset | AugmentedDataset):
        self.dataset = dataset

    def on_train_begin(self, args, state, control, optimizer=None, **kwargs):
        for group in optimizer.param_groups:
            group["adam_steps"] = args.get_warmup_steps(state.max_steps)

    def on_step_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
        warmup = args.get_warmup_steps(state.max_steps)
        step = state.global_step - warmup
        if step < 0 or step % args.fisher_update_interval:
            return
        progress = step / (state.max_steps - warmup)
        for group in optimizer.param_groups:
            group["damping"] = args.damping * (args.final_damping / args.damping) ** progress
        # Drawn from (seed, step) alone, so that a resumed run draws the same, and any number of processes.
        draw = np.random.default_rng((args.seed, state.global_step))
        drawn = draw.integers(len(self.dataset), size=args.fisher_batch_size)
        first, end = (len(drawn) * rank // args.world_size for rank in (args.process_index, args.process_index + 1))
        images = self.dataset.__getitems__(drawn[first:end])["pixel_values"].to(args.device)
        labels = torch.Generator(args.device).manual_seed(int(draw.integers(2**31)))
        gradients = per_sample_gradients(unwrap_model(model), images, labels, first=first, total=len(drawn))
        getattr(optimizer, "optimizer", optimizer).update_fisher(gradients)
