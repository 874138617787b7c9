"""Training end to end on the bundled sample: results, saved files, optimizers, initialization."""

import json
import math
from dataclasses import replace

import pytest
import torch
import yaml
from transformers import TrainerCallback

from modeling_vit_mnist.checkpoints.folder import load_checkpoint
from modeling_vit_mnist.cli.errors import UsageError
from modeling_vit_mnist.training import compiled
from modeling_vit_mnist.training import train as module
from modeling_vit_mnist.training import trainer as trainer_module
from modeling_vit_mnist.training.arguments import ModelArguments
from modeling_vit_mnist.training.initialization import build_model, whiten_patch_embed
from modeling_vit_mnist.training.train import train

from .conftest import QUICK, ROOT, arguments, weights

DIGITS = [str(digit) for digit in range(10)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run, and what it returned."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    return folder, train(*arguments(folder))


def test_the_saved_folder_is_complete_and_holds_no_pickle(finished):
    folder, results = finished
    code = [f"{name}_vit_mnist.py" for name in ("configuration", "modeling", "image_processing", "framing")]
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
    assert results["parameters"] == 1850
    assert (results["train_samples"], results["test_samples"], results["dataset"]) == (400, 100, "mnist-5k")


@pytest.mark.parametrize(("recipe", "compiles"), [("tiny", "yes"), ("adam", "yes"), ("small", "yes"), ("small", "no")])
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
