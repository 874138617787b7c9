"""Training end to end on the bundled sample: results, saved files, optimizers, initialization."""

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
import transformers
import yaml
from transformers import TrainerCallback

from modeling_vit_mnist.checkpoints.folder import load_checkpoint
from modeling_vit_mnist.cli.errors import UsageError
from modeling_vit_mnist.data.images import ImageDataset
from modeling_vit_mnist.data.splits import load_images
from modeling_vit_mnist.deskewing_vit_mnist import deskew
from modeling_vit_mnist.image_processing_vit_mnist import VitMnistImageProcessor
from modeling_vit_mnist.training import compiled
from modeling_vit_mnist.training import train as module
from modeling_vit_mnist.training import trainer as trainer_module
from modeling_vit_mnist.training.arguments import ModelArguments
from modeling_vit_mnist.training.callbacks import EpochReportCallback
from modeling_vit_mnist.training.initialization import build_model, whiten_patch_embed
from modeling_vit_mnist.training.train import train

from .conftest import QUICK, ROOT, SAMPLE, arguments, weights

DIGITS = [str(digit) for digit in range(10)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run, and what it returned."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    return folder, train(*arguments(folder))


def test_the_saved_folder_is_complete_and_holds_no_pickle(finished):
    folder, results = finished
    code = [f"{name}_vit_mnist.py" for name in ("configuration", "modeling", "image_processing")]
    code += ["framing_vit_mnist.py", "morphology_vit_mnist.py", "grayscale_vit_mnist.py", "deskewing_vit_mnist.py"]
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors", "config.json", "preprocessor_config.json", "README.md", "run.json", "history.json",
        "all_results.json", "digit-2.png", "digit-4.png", "digit-7.png", *code,
    }  # fmt: skip
    assert json.loads((folder / "all_results.json").read_text()) == results
    for name in code:
        assert (folder / name).read_text() == (ROOT / "modeling_vit_mnist" / name).read_text()
    config = json.loads((folder / "config.json").read_text())
    assert "use_cache" not in config and config["architectures"] == ["VitMnistForImageClassification"]
    assert (folder / "model.safetensors").stat().st_mode == (folder / "config.json").stat().st_mode


def test_a_log_gets_lines_and_no_progress_bar(tmp_path, run_script):
    done = run_script("run_train.py", *QUICK, "--disable_tqdm=False", f"--output_dir={tmp_path / 'run'}")
    assert done.code == 0 and "it/s" not in done.err and done.out.count("Epoch ") == 4


def test_a_terminal_gets_one_bar_with_the_last_accuracy(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    results = train(*arguments(tmp_path / "run", "--disable_tqdm=False"))
    bars = capsys.readouterr().err
    assert re.search(rf"Train: 100%.* 16/16 .*validation {results['eval_accuracy']:.2%}", bars)
    assert set(re.findall(r"\r(\w+): ", bars)) == {"Train"}


def test_the_sample_has_a_recipe_and_a_folder_of_its_own(tmp_path):
    """Without a network, `run_train.py` trains on the sample. All of MNIST, at hand later, is another run."""
    flags = ["--num_train_epochs=2", "--max_train_samples=400", "--eval_steps=2", "--save_steps=2"]
    digits = datasets.load_dataset(str(SAMPLE), split="train[:300]")
    digits.to_parquet(tmp_path / "mnist" / "train.parquet")

    def run(*more, **variables) -> str:
        command = [sys.executable, ROOT / "run_train.py", *flags, *more]
        environment = os.environ | {"PYTHONPATH": str(ROOT), **variables}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0 and "\r" not in done.stderr + done.stdout, done.stderr
        return done.stdout

    assert "Recipe: configs/sample.yaml" in run()
    processor = json.loads((tmp_path / "outputs" / "vit-mnist-sample" / "preprocessor_config.json").read_text())
    assert processor["do_deskew"]
    for more, variables in (((), {"VIT_MNIST_DATASET": "mnist"}), (("--recipe=configs/fast.yaml",), {})):
        assert "Recipe:" not in run(*more, **variables)
    assert {path.name for path in (tmp_path / "outputs").iterdir()} == {
        "vit-mnist-sample", "vit-mnist-tiny", "vit-mnist-fast",
    }  # fmt: skip


def test_results_on_a_hub_dataset_are_saved_in_the_hubs_format(tmp_path, monkeypatch):
    load_images = module.load_images

    def from_the_hub(*args):
        return {name: replace(split, source="them/digits") for name, split in load_images(*args).items()}

    monkeypatch.setattr(module, "load_images", from_the_hub)
    results = train(*arguments(tmp_path / "run", "--num_train_epochs=1"))
    (entry,) = yaml.safe_load((tmp_path / "run" / ".eval_results" / "digits.yaml").read_text())
    assert entry["dataset"] == {"id": "them/digits", "task_id": "digits"}
    assert entry["value"] == round(results["test_accuracy"], 4)


def test_results_are_those_of_the_saved_weights(finished, sample):
    folder, results = finished
    model, processor = load_checkpoint(folder)
    for name, key in (("validation", "eval"), ("test", "test")):
        images = sample[name].take(100)
        logits = model(processor.rescale_and_normalize(images.images)).logits
        loss = torch.nn.functional.cross_entropy(logits, images.labels).item()
        assert results[f"{key}_accuracy"] == pytest.approx((logits.argmax(1) == images.labels).float().mean().item())
        assert results[f"{key}_loss"] == pytest.approx(loss, abs=1e-4)
        if name == "validation":
            log_probabilities = logits.log_softmax(1)[logits.argmax(1) == images.labels]
            uniform = torch.full_like(log_probabilities, 0.1)
            scores = torch.nn.functional.kl_div(log_probabilities, uniform, reduction="none").sum(1)
            assert model.config.digit_score_threshold == pytest.approx(scores.min().item(), abs=1e-4)  # of 100 images
    assert results["parameters"] == 1850
    assert (results["train_samples"], results["test_samples"], results["dataset"]) == (400, 100, "mnist-5k")


@pytest.mark.parametrize(
    ("recipe", "compiles"), [("tiny", "yes"), ("adam", "yes"), ("images", "yes"), ("images", "no")]
)
def test_results_of_recipes_are_those_of_the_saved_weights(recipe, compiles, tmp_path, sample, monkeypatch):
    passes, run_pass = [], compiled.batch_last_forward
    monkeypatch.setattr(compiled, "batch_last_forward", lambda *args, **kw: passes.append(1) or run_pass(*args, **kw))
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # the same pass, uncompiled
    results = train(*arguments(
        tmp_path / "run", f"--recipe={ROOT / 'configs' / f'{recipe}.yaml'}", f"--compile_training={compiles}",
        "--num_train_epochs=1", "--warmup_steps=2", "--fisher_batch_size=100",
    ))  # fmt: skip
    assert len(passes) == (4 if compiles == "yes" else 0)
    model, processor = load_checkpoint(tmp_path / "run")
    images = sample["test"].take(100)
    logits = model(processor.rescale_and_normalize(images.images)).logits
    loss = torch.nn.functional.cross_entropy(logits, images.labels).item()
    assert results["test_loss"] == pytest.approx(loss, rel=1e-6)  # in float32, also if trained in bfloat16


def test_the_classes_are_named_before_training(sample, tmp_path, capsys):
    """Folders in folders of classes: `datasets` takes the inner ones for the classes."""
    for index, image in enumerate(sample["train"].images[:60].numpy()):
        folder = tmp_path / "digits" / str(index % 2) / ("anna", "ben", "carla")[index % 3]
        folder.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(image).save(folder / f"{index}.png")
    train(*arguments(tmp_path / "run", f"--dataset_name={tmp_path / 'digits'}", "--max_steps=1"))
    assert "\nClasses: anna, ben, carla\n" in capsys.readouterr().out


def test_one_class_is_refused_before_training(tmp_path):
    digits = datasets.load_dataset(str(SAMPLE), split="train[:30]").to_dict()
    digits["label"] = [0] * 30
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["seven"])})
    datasets.Dataset.from_dict(digits, features).save_to_disk(tmp_path / "sevens")
    with pytest.raises(UsageError, match="two classes or more, the dataset has 1: seven"):
        train(*arguments(tmp_path / "run", f"--dataset_name={tmp_path / 'sevens'}", "--max_steps=1"))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--load_best_model_at_end=no"], ", epoch 2, the last\n"),
        (["--metric_for_best_model=loss"], ", selected by loss\n"),
        (["--eval_delay=9"], ", epoch 2, the last\n"),  # no evaluation, so nothing is selected
    ],
)
def test_what_selected_the_epoch_is_said(flags, says, tmp_path, capsys):
    train(*arguments(tmp_path / "run", "--recipe=configs/adam.yaml", "--num_train_epochs=2", *flags))
    out = capsys.readouterr().out
    assert says in out and "Best accuracy" not in out
    assert ("  best\n" in out) == ("=loss" in flags[0])
    assert ("weights of the last step" in (tmp_path / "run" / "README.md").read_text()) == ("the last" in says)


def test_the_best_epoch_on_validation_is_kept(finished):
    folder, results = finished
    history = json.loads((folder / "history.json").read_text())["log_history"]
    accuracies = {entry["epoch"]: entry["eval_accuracy"] for entry in history if "eval_accuracy" in entry}
    assert len(accuracies) == 4
    assert results["eval_accuracy"] == max(accuracies.values()) == accuracies[results["best_epoch"]]


def test_the_facts_of_the_original_system_are_printed(tmp_path, run_script):
    done = run_script("run_train.py", *QUICK, "--num_train_epochs=1", f"--output_dir={tmp_path / 'run'}")
    assert done.code == 0, done.err
    assert "Total parameters: 1,850\n" in done.out
    for line in ("Best accuracy: ", "Test accuracy: ", "Ended at: 20", "Duration: ", "Epoch   1.0 of 1  loss "):
        assert line in done.out


@pytest.mark.parametrize(
    "flags",
    [
        [
            "--logging_strategy=steps", "--logging_steps=3", "--logging_first_step", "--eval_on_start",
            "--eval_do_concat_batches=False", "--per_device_eval_batch_size=30", "--eval_accumulation_steps=2",
            "--include_num_input_tokens_seen=yes", "--torch_empty_cache_steps=2", "--dataloader_pin_memory=True",
            "--average_tokens_across_devices", "--logging_nan_inf_filter", "--log_level=error", "--local_rank=0",
            "--log_level_replica=error", "--log_on_each_node=False", "--disable_tqdm=False",
        ],
        [
            "--do_train", "--do_eval", "--do_predict", "--save_on_each_node", "--save_total_limit=1", "--run_name=x",
            "--restore_callback_states_from_checkpoint", "--ddp_timeout=60", "--ddp_bucket_cap_mb=5", "--tf32=False",
            "--full_determinism", "--dataloader_num_workers=1", "--dataloader_prefetch_factor=3", "--eval_delay=0.5",
            "--metric_for_best_model=eval_accuracy", "--hub_strategy=end", "--label_names", "labels", "--project=x",
            "--trackio_space_id=x", "--trackio_bucket_id=x", "--trackio_static_space_id=x", "--ddp_static_graph=True",
            "--ddp_broadcast_buffers=True", "--skip_memory_metrics=False",
        ],
        ["--activation_checkpointing", '--activation_checkpointing_kwargs={"use_reentrant": false}'],
        ["--gradient_checkpointing", '--gradient_checkpointing_kwargs={"use_reentrant": true}'],
        ["--optim=adam", "--lr_scheduler_kwargs={\"min_lr\": 1e-5}", "--max_steps=16", "--data_seed=0"],
    ],
    ids=lambda flags: flags[0],
)  # fmt: skip
def test_arguments_that_decide_nothing_change_nothing(flags, finished, tmp_path):
    try:
        results = train(*arguments(tmp_path, *flags))
    finally:  # of --full_determinism and --log_level
        torch.use_deterministic_algorithms(False)
        transformers.logging.set_verbosity_warning()
    assert all(torch.equal(value, weights(tmp_path)[name]) for name, value in weights(finished[0]).items())
    assert results["test_confusion_matrix"] == finished[1]["test_confusion_matrix"]
    assert results["test_loss"] == pytest.approx(finished[1]["test_loss"])


def test_runs_are_reproducible_and_seeds_differ(finished, tmp_path):
    train(*arguments(tmp_path / "again"))
    train(*arguments(tmp_path / "other", "--seed=1"))
    first, again, other = weights(finished[0]), weights(tmp_path / "again"), weights(tmp_path / "other")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_the_mean_loss_weights_logged_intervals_by_their_steps():
    history = [{"step": 30, "loss": 1.0}, {"step": 30, "eval_loss": 9.0}, {"step": 40, "loss": 0.2}]
    assert module.mean_loss(history, 5.0) == pytest.approx(0.8)
    assert module.mean_loss(history[1:2], 5.0) == 5.0


def test_optimizer_and_schedule_follow_the_recipe(tmp_path, monkeypatch):
    """Adam, with linear warmup and then cosine decay to 1e-5."""
    seen = []

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
            inner = getattr(optimizer, "optimizer", optimizer)
            seen.append((type(inner), inner.param_groups[0]["lr"]))

    monkeypatch.setattr(trainer_module, "EpochReportCallback", Watch)
    train(*arguments(tmp_path / "run", "--learning_rate=0.02", "--warmup_steps=5"))
    total, warmup, peak, least = 16, 5, 0.02, 1e-5
    expected = [
        peak * (step + 1) / warmup
        if step < warmup
        else least + (peak - least) * (1 + math.cos(math.pi * (step - warmup + 1) / (total - warmup))) / 2
        for step in range(total)
    ]
    assert {kind for kind, _ in seen} == {torch.optim.Adam}
    assert [rate for _, rate in seen] == pytest.approx(expected)


@pytest.mark.parametrize(("name", "kind"), [("adamw_torch", "AdamW"), ("sgd", "SGD"), ("adam", "Adam")])
def test_optimizers_by_name(tmp_path, name, kind, sample):
    *_, args = arguments(tmp_path, f"--optim={name}", "--weight_decay=0.1")
    model = build_model(ModelArguments(), DIGITS)
    trainer = trainer_module.VitMnistTrainer(model=model, args=args, eval_dataset=sample["validation"])
    optimizer = trainer.create_optimizer()
    assert type(optimizer).__name__ == kind
    decayed = {id(parameter) for parameter in optimizer.param_groups[0]["params"]}
    names = {name for name, parameter in trainer.model.named_parameters() if id(parameter) in decayed}
    assert "vit.patch_embed.proj.weight" in names and "head.weight" in names
    assert not {name for name in names if "norm" in name or "bias" in name or "cls" in name or "pos" in name}


def test_accumulated_batches_count_as_one(tmp_path):
    """Also the last, shorter one of an epoch: 400 images are 3 batches of 150, 150 and 100."""
    flags = ["--num_train_epochs=1", "--optim=sgd", "--learning_rate=0.1", "--warmup_steps=0"]
    parts = ["--per_device_train_batch_size=50", "--gradient_accumulation_steps=3"]
    train(*arguments(tmp_path / "whole", *flags, "--per_device_train_batch_size=150"))
    train(*arguments(tmp_path / "parts", *flags, *parts))
    parts = weights(tmp_path / "parts")
    for name, value in weights(tmp_path / "whole").items():
        torch.testing.assert_close(parts[name], value, rtol=0, atol=1e-5)


def test_whitened_patches_are_uncorrelated_and_centered(sample):
    torch.manual_seed(0)
    model, images = build_model(ModelArguments(), DIGITS), sample["train"]
    whiten_patch_embed(model, images)
    tokens = model.vit.patch_embed(images.processor.rescale_and_normalize(images.images)).flatten(0, 1)
    torch.testing.assert_close(tokens.T.cov(), torch.eye(8), rtol=0, atol=1e-2)
    torch.testing.assert_close(tokens.mean(0), torch.zeros(8), rtol=0, atol=1e-4)
    wide = build_model(ModelArguments(hidden_size=64), ["0", "1"])
    with pytest.raises(UsageError, match="at most 49, the pixels of a patch, got 64"):
        whiten_patch_embed(wide, images)


def test_fine_tuning_starts_from_the_checkpoint(finished, tmp_path):
    model_args, *_ = arguments(tmp_path, f"--model_name_or_path={finished[0]}", "--hidden_size=8")
    model = build_model(model_args, ["a", "b"])  # with the checkpoint's own hidden size
    assert model.config.id2label == {0: "a", 1: "b"} and model.head.weight.shape == (2, 8)
    assert torch.equal(model.vit.pos_embed, weights(finished[0])["vit.pos_embed"])


def test_the_threshold_of_the_score_belongs_to_the_weights(finished, tmp_path):
    train(*arguments(tmp_path, f"--model_name_or_path={finished[0]}", "--num_train_epochs=1"))
    before, after = (load_checkpoint(folder)[0].config for folder in (finished[0], tmp_path))
    assert 0 < before.digit_score_threshold != after.digit_score_threshold > 0
    assert "digit_score_threshold" not in json.loads((tmp_path / "run.json").read_text())["model"]


def test_the_threshold_of_the_score_rejects_one_of_200_correct_images():
    logits = torch.zeros(1002, 10)
    logits[:1000, 3] = 1 + torch.arange(1000).flip(0) / 100
    labels = np.array([3] * 1000 + [4, 5])  # the last two are wrong
    output = transformers.EvalPrediction([logits[:500].numpy(), logits[500:].numpy()], [labels[:500], labels[500:]])
    threshold = module.score_threshold(output)
    scores = np.sort((np.log(np.exp(logits.numpy()).sum(1)) - logits.numpy().mean(1) - np.log(10))[:1000])
    assert threshold == pytest.approx(scores[4], abs=1e-4)
    assert module.score_threshold(transformers.EvalPrediction(np.eye(3), np.array([1, 2, 0]))) is None


DIVERGING = ["--learning_rate=1e30", "--warmup_steps=0"]


@pytest.mark.parametrize(
    "flags",
    [
        ["--optim=adam"],
        ["--optim=adamw_torch_fused", "--bf16"],
        ["--optim=sgd", "--logging_nan_inf_filter", "--gradient_accumulation_steps=2"],
        ["--optim=natural_gradient", "--warmup_steps=2", "--fisher_batch_size=100"],
        ["--compile_training=yes", "--max_grad_norm=1"],
        ["--label_smoothing_factor=0.1", "--streaming"],
        ["--eval_strategy=no", "--save_strategy=no"],
        ["--save_strategy=best", "--metric_for_best_model=loss"],
    ],
    ids=str,
)
def test_a_run_that_diverges_stops_at_once(flags, tmp_path, run_script, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    done = run_script("run_train.py", *QUICK, f"--output_dir={tmp_path / 'run'}", *DIVERGING, *flags)
    assert done.code == 1
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    says = (
        r"error: FloatingPointError: Training stopped after step 1 with learning rate 1e\+30: .*Lower --learning_rate."
    )
    assert len(errors) == 1 and re.fullmatch(says, errors[0])
    assert "Traceback" not in done.err and "Epoch" not in done.out
    assert not [*(tmp_path / "run").rglob("*.safetensors"), *(tmp_path / "run").glob("*_results.json")]


KEEP_LAST = ["--save_strategy=no", "--load_best_model_at_end=False"]
NO_EVALUATION = ["--eval_strategy=no", *KEEP_LAST]


@pytest.mark.parametrize(
    ("step", "value", "flags", "says", "kept"),
    [
        (9, math.nan, [], "step 9 .*: the loss is nan", [4, 8]),
        (8, math.nan, [], "step 8 .*: the weight head.bias is not finite", [4]),
        (8, -math.inf, ["--save_strategy=best"], "step 8 .*: the weight head.bias is not finite", [4]),
        (16, math.nan, NO_EVALUATION, "step 16 .*: the weight head.bias is not finite", []),
        (15, math.nan, ["--max_grad_norm=1"], "step 15 .*: the loss is nan", [8, 12]),
        (9, 1e25, ["--max_grad_norm=1"], "step 9 .*: the norm of the gradients is inf", [4, 8]),
    ],
)
def test_the_last_good_checkpoint_is_kept(step, value, flags, says, kept, tmp_path, monkeypatch):
    class Spoil(EpochReportCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == step:
                if math.isfinite(value):  # then the loss is finite, too, but the gradients of the blocks are large
                    model.head.weight.data.mul_(value)
                else:
                    model.head.bias.data[3] = value

    monkeypatch.setattr(trainer_module, "EpochReportCallback", Spoil)
    with pytest.raises(FloatingPointError, match=says):
        train(*arguments(tmp_path, "--lr_scheduler_type=linear", *flags))
    checkpoints = sorted(tmp_path.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert [int(path.name.split("-")[1]) for path in checkpoints] == kept
    for path in checkpoints:
        assert all(weight.isfinite().all() for weight in weights(path).values())
        state = json.loads((path / "trainer_state.json").read_text(), parse_constant=pytest.fail)  # for NaN
        assert 0 <= state["best_metric"] <= 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_evaluation_of_numbers_that_are_none_fails(value, tmp_path, sample):
    *_, args = arguments(tmp_path)
    model = build_model(ModelArguments(), DIGITS)
    options = {"data_collator": ImageDataset.collate, "compute_metrics": trainer_module.compute_metrics}
    trainer = trainer_module.VitMnistTrainer(model=model, args=args, eval_dataset=sample["validation"], **options)
    model.head.register_forward_hook(lambda *_: torch.full((1, 10), value).expand(_[2].shape))
    for measure in (trainer.evaluate, lambda: trainer.predict(sample["test"])):
        with pytest.raises(FloatingPointError, match="of an evaluation is not finite"):
            measure()
    output = transformers.EvalPrediction(np.full((3, 10), value), np.zeros(3, np.int64))
    with pytest.raises(ValueError, match="finite probabilities"):
        trainer_module.compute_metrics(output)


@pytest.mark.parametrize(
    ("flags", "name", "values"),
    [
        ([], "accuracy", [0.5, 0.5, 0.7, 0.6, 0.7, 0.8]),
        (["--metric_for_best_model=eval_macro_f1"], "macro_f1", [0.5, 0.5, 0.7, 0.6]),
        (["--metric_for_best_model=loss"], "loss", [2.0, 2.0, 1.0, 1.5, 0.5]),
        (["--metric_for_best_model=expected_calibration_error"], "expected_calibration_error", [0.2, 0.3, 0.1]),
        (["--greater_is_better=False"], "accuracy", [0.5, 0.4, 0.6]),
    ],
)
@pytest.mark.parametrize("resumed_with", [None, 0.6])
def test_evaluations_that_trainer_selects_are_marked(flags, name, values, resumed_with, tmp_path, sample, capsys):
    *_, args = arguments(tmp_path, *flags)
    model = build_model(ModelArguments(), DIGITS)
    trainer = trainer_module.VitMnistTrainer(model=model, args=args, eval_dataset=sample["validation"])
    trainer.state.best_metric = resumed_with
    report, marks, selected = EpochReportCallback(), [], []
    report.on_epoch_begin(args, trainer.state, None)
    for value in values:
        metrics = {"eval_loss": 1.0, "eval_accuracy": 0.1, f"eval_{name}": value}
        report.on_evaluate(args, trainer.state, None, metrics=metrics)
        marks.append(capsys.readouterr().out.rstrip().endswith("  best"))
        selected.append(trainer._determine_best_metric(metrics, None))
    assert marks == selected and (any(marks) or resumed_with)


@pytest.mark.parametrize(
    ("flags", "losses"),
    [
        (["--logging_strategy=no"], [True] * 4),  # each save needs a log
        (["--logging_strategy=no", "--save_strategy=no", "--load_best_model_at_end=no"], [False] * 3 + [True]),
        (["--eval_strategy=steps", "--eval_steps=2", *KEEP_LAST], [True] * 8),  # so does each evaluation in steps
        (["--eval_on_start"], [False, True, True, True, True]),
    ],
)  # fmt: skip
def test_reports_show_the_loss_since_the_last_one_if_it_was_logged(flags, losses, tmp_path, capsys):
    train(*arguments(tmp_path, *flags))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Epoch ")]
    assert [bool(re.search(r" of 4  loss \d", line)) for line in lines] == losses
    assert "nan" not in "".join(lines)
    if "--eval_on_start" in flags:
        assert lines[0].startswith("Epoch   0.0") and "best" not in lines[0] and lines[1].endswith("best")


@pytest.mark.parametrize(
    "flags",
    [
        NO_EVALUATION,
        KEEP_LAST,
        ["--eval_strategy=steps", "--eval_steps=16", "--save_strategy=best", "--greater_is_better=False"],
        ["--save_strategy=steps", "--save_steps=7", "--load_best_model_at_end=False", "--save_total_limit=1"],
        ["--max_steps=14"],
    ],
    ids=str,
)
def test_a_failure_after_training_does_not_cost_the_weights(flags, tmp_path, monkeypatch):
    results = train(*arguments(tmp_path / "whole", *flags))
    with monkeypatch.context() as patch:
        patch.setattr(module, "measure", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(*arguments(tmp_path / "failed", *flags))
    last = max((tmp_path / "failed").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert last.name == ("checkpoint-14" if "--max_steps=14" in flags else "checkpoint-16")
    monkeypatch.setattr(trainer_module.VitMnistTrainer, "training_step", None)  # nothing is left to train
    again = train(*arguments(tmp_path / "failed", *flags))
    whole = weights(tmp_path / "whole")
    assert all(torch.equal(value, weights(tmp_path / "failed")[name]) for name, value in whole.items())
    assert again["test_accuracy"] == results["test_accuracy"] and again["best_epoch"] == results["best_epoch"]


def test_an_evaluation_counts_every_image_if_the_last_training_batch_is_dropped(tmp_path):
    flags = ["--dataloader_drop_last", "--per_device_train_batch_size=150", "--per_device_eval_batch_size=30"]
    results = train(*arguments(tmp_path, *flags))
    assert json.loads((tmp_path / "history.json").read_text())["log_history"][-1]["step"] == 8  # 2 of 3 batches
    assert np.sum(results["test_confusion_matrix"]) == results["test_samples"] == 100


def test_a_rate_below_the_least_of_the_original_does_not_rise(tmp_path):
    *_, args = arguments(tmp_path, "--learning_rate=1e-6")
    assert args.lr_scheduler_kwargs == {"min_lr": 1e-6}


def test_an_evaluation_is_reported_with_the_loss_of_the_steps_before_it(tmp_path, capsys):
    """Also at the end of an epoch, before the epoch is logged."""
    flags = ["--eval_strategy=steps", "--save_strategy=steps", "--eval_steps=6", "--save_steps=6"]
    train(*arguments(tmp_path, *flags, "--num_train_epochs=3"))
    history = json.loads((tmp_path / "history.json").read_text())["log_history"]
    losses = {entry["step"]: entry["loss"] for entry in history if "loss" in entry}
    printed = re.findall(r"Epoch +([\d.]+) of 3  loss ([\d.]+)", capsys.readouterr().out)
    assert [(round(4 * float(epoch)), loss) for epoch, loss in printed] == [
        (step, f"{losses[step]:.4f}") for step in (6, 12)
    ]
    assert set(losses) == {4, 6, 8, 12}


def test_fine_tuning_on_images_of_the_start_is_warned_of(tmp_path, caplog):
    """The sample was taken from MNIST's train split, which the bundled checkpoints were trained on."""
    flags = [f"--model_name_or_path={ROOT / 'vit-mnist-tiny'}", "--num_train_epochs=1"]
    train(*arguments(tmp_path / "run", *flags))
    for name in ("validation", "test"):
        assert f"Some of the {name} images may be training images of" in caplog.text
    card = " ".join((tmp_path / "run" / "README.md").read_text().split())
    assert "**Fine-tuned on the bundled sample only**" in card and "fine-tuned from vit-mnist-tiny," in card


def test_the_lowest_accuracy_is_not_called_the_best(tmp_path, capsys):
    train(*arguments(tmp_path, "--metric_for_best_model=accuracy", "--greater_is_better=no", "--num_train_epochs=2"))
    out = capsys.readouterr().out
    assert "Best accuracy" not in out and ", selected by accuracy\n" in out


@pytest.mark.parametrize("learning_rate", ["0.02", "0.0005"])
def test_a_schedule_is_tried_out_with_the_rate_of_the_run(tmp_path, learning_rate):
    flags = ["--lr_scheduler_type=polynomial", '--lr_scheduler_kwargs={"lr_end": 0.001}', "--warmup_steps=0"]
    if learning_rate == "0.02":
        train(*arguments(tmp_path, *flags, f"--learning_rate={learning_rate}", "--max_steps=2"))
    else:
        with pytest.raises(UsageError, match=r"lr_end \(0\.001\) must be smaller than initial lr \(0\.0005\)"):
            arguments(tmp_path, *flags, f"--learning_rate={learning_rate}")


@pytest.mark.parametrize("has_instructions", [False, True])
def test_slow_bfloat16_is_reported(tmp_path, monkeypatch, caplog, has_instructions):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has_instructions)
    train(*arguments(tmp_path, "--bf16=yes", "--max_steps=2"))
    assert ("computes it slowly: pass --bf16 no" in caplog.text) is not has_instructions


def test_a_warmup_without_an_end_is_reported(tmp_path, caplog):
    train(*arguments(tmp_path, "--warmup_steps=16"))
    assert "The warmup of 16 steps is not over at the last step, 16." in caplog.messages


def test_label_smoothing_does_not_change_what_is_measured(tmp_path, sample):
    results = train(*arguments(tmp_path, "--label_smoothing_factor=0.2"))
    model, processor = load_checkpoint(tmp_path)
    test = sample["test"].take(100)
    with torch.inference_mode():
        logits = model(processor.rescale_and_normalize(test.images)).logits
    expected = torch.nn.functional.cross_entropy(logits, test.labels).item()
    assert results["test_loss"] == pytest.approx(expected, rel=1e-5)


def test_a_run_on_other_images_than_digits_can_switch_framing_off(tmp_path, finished):
    """Framing is on for a new processor of MNIST's size, as in the checkpoint for a fine-tuned one, or as asked."""
    folder, _ = finished
    tuned = (f"--model_name_or_path={folder}",)
    for flags, is_on in (
        ((), True), (("--do_frame", "no"), False), (("--image_size", "35"), False),
        (("--image_size=35", "--do_frame=yes"), True), (tuned, True), ((*tuned, "--do_frame=no"), False),
    ):  # fmt: skip
        model_args, data_args, _, args = arguments(tmp_path / "run", *flags)
        data_args.max_train_samples = 20
        processor = module.load_data(model_args, data_args, args)["train"].processor
        assert processor.do_frame is is_on, flags
    assert json.loads((folder / "preprocessor_config.json").read_text())["do_frame"] is True
    assert "by itself" in (folder / "README.md").read_text()


def test_a_run_on_deskewed_digits(tmp_path, finished):
    """A new processor deskews as asked, that of a checkpoint unless asked not to. Another answer is another run."""
    deskewed = tmp_path / "deskewed"
    train(*arguments(deskewed, "--do_deskew=yes", "--num_train_epochs=1"))
    assert json.loads((deskewed / "preprocessor_config.json").read_text())["do_deskew"] is True
    assert json.loads((deskewed / "run.json").read_text())["processor"]["do_deskew"] is True
    for folder, is_said in ((deskewed, True), (finished[0], False)):
        card = (folder / "README.md").read_text()
        assert ("upright" in card) == is_said == ("Images of MNIST are unchanged" not in card)
    with pytest.raises(UsageError, match="do_deskew True there, False here"):
        train(*arguments(deskewed, "--num_train_epochs=1"))
    tuned = f"--model_name_or_path={deskewed}"
    for flags, is_on in (
        ((), False), (("--do_deskew=yes",), True), (("--do_deskew=yes", "--do_frame=no"), True), ((tuned,), True),
        ((tuned, "--do_deskew=no"), False), ((tuned, "--do_frame=no"), True), (("--image_size=35",), False),
        (("--image_size=35", "--do_deskew=yes"), True),
    ):  # fmt: skip
        model_args, data_args, _, args = arguments(tmp_path / "run", *flags)
        data_args.max_train_samples = 20
        test = module.load_data(model_args, data_args, args)["test"]
        assert test.processor.do_deskew is is_on, flags
        plain = load_images(data_args, VitMnistImageProcessor(size=model_args.image_size or 28), ["test"])["test"]
        expected = [deskew(image) if is_on else image for image in plain.images.numpy()]
        assert np.array_equal(test.images, np.stack(expected)), flags


def test_images_that_are_no_digits_are_trained_on_as_they_are(tmp_path):
    """Without framing, a run on filled squares sees their gray levels."""
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("dark", "light"):
            (tmp_path / "squares" / split / name).mkdir(parents=True)
            for index in range(20):
                image = np.full((28, 28), 60 if name == "dark" else 180, np.uint8) + generator.integers(0, 9, (28, 28))
                PIL.Image.fromarray(image.astype(np.uint8)).save(tmp_path / "squares" / split / name / f"{index}.png")
    seen = {}
    for choice in ("yes", "no"):
        flags = (f"--dataset_name={tmp_path / 'squares'}", f"--do_frame={choice}", "--max_eval_samples=5")
        model_args, data_args, _, args = arguments(tmp_path / "run", *flags)
        seen[choice] = module.load_data(model_args, data_args, args)["test"].images.float().mean((1, 2))
    assert not seen["yes"].any() and (seen["no"] > 50).all()


@pytest.mark.parametrize("names, is_said", [([str(digit) for digit in range(10)], True), (["cat", "dog"], False)])
def test_framing_is_suggested_for_folders_of_digits(tmp_path, caplog, names, is_said):
    for split in ("train", "test"):
        for name in names:
            (tmp_path / "own" / split / name).mkdir(parents=True)
            for index in range(3):
                PIL.Image.new("L", (30, 30), 100 + index).save(tmp_path / "own" / split / name / f"{index}.png")
    model_args, data_args, _, args = arguments(tmp_path / "run", f"--dataset_name={tmp_path / 'own'}")
    module.load_data(model_args, data_args, args)
    assert ("pass --do_frame yes" in caplog.text) is is_said
