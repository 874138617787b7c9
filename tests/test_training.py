"""Training end to end on the kept sample: what is saved, resumed, refused and never lost."""

import json
import math
import re
import shutil
from dataclasses import replace

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import TrainerCallback

from modeling_vit_mnist import hub, runs, training
from modeling_vit_mnist.data import load_digits
from modeling_vit_mnist.errors import InputError
from modeling_vit_mnist.processes import SharedGradients
from modeling_vit_mnist.training import parse_arguments, train

from .conftest import ROOT, SAMPLE


QUICK = [
    f"--recipe={ROOT / 'configs' / 'adam.yaml'}",
    f"--dataset_name={SAMPLE}", "--max_train_samples=400", "--max_eval_samples=100", "--num_train_epochs=4",
    "--per_device_train_batch_size=100", "--use_cpu=True", "--disable_tqdm=True",
]  # fmt: skip


def arguments(folder, *more):
    return parse_arguments([*QUICK, f"--output_dir={folder}", *more])


def weights(folder):
    return load_file(folder / "model.safetensors")


class Stop(Exception):
    pass


def stop_after(epochs, monkeypatch):
    """Have training die right after the checkpoint of an epoch was written."""

    class Killer(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            if state.epoch >= epochs:
                raise Stop

    monkeypatch.setattr(training, "RunReport", Killer)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run to the end, and what it returned."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    return folder, train(*arguments(folder))


def test_saved_folder_is_complete_and_holds_no_pickle(finished):
    folder, results = finished
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors", "config.json", "preprocessor_config.json", "README.md", "run.json", "history.json",
        "all_results.json", "configuration_vit_mnist.py", "modeling_vit_mnist.py", "image_processing_vit_mnist.py",
        "frames_vit_mnist.py", "digit-2.png", "digit-4.png", "digit-7.png",
    }  # fmt: skip
    assert json.loads((folder / "all_results.json").read_text()) == results
    for name in ("configuration", "modeling", "image_processing", "frames"):
        copied = (folder / f"{name}_vit_mnist.py").read_text()
        assert copied == (ROOT / "modeling_vit_mnist" / f"{name}_vit_mnist.py").read_text()
    assert "use_cache" not in json.loads((folder / "config.json").read_text())
    assert (folder / "model.safetensors").stat().st_mode == (folder / "config.json").stat().st_mode


def test_results_on_a_dataset_of_the_hub_are_saved_in_its_format(tmp_path, monkeypatch):
    def from_the_hub(*args):
        return {name: replace(split, source="them/digits") for name, split in load_digits(*args).items()}

    monkeypatch.setattr(training, "load_digits", from_the_hub)
    results = train(*arguments(tmp_path / "run", "--num_train_epochs=1"))
    (entry,) = yaml.safe_load((tmp_path / "run" / ".eval_results" / "digits.yaml").read_text())
    assert entry["dataset"] == {"id": "them/digits", "task_id": "digits"}
    assert entry["value"] == round(results["test_accuracy"], 4)


def test_results_are_those_of_the_saved_weights(finished, sample):
    folder, results = finished
    model, processor = hub.load_checkpoint(folder)
    for name, key in (("validation", "eval_accuracy"), ("test", "test_accuracy")):
        digits = sample[name].select(slice(100))
        logits = model(processor.to_pixel_values(digits.images)).logits
        assert (logits.argmax(1) == digits.labels).float().mean().item() == pytest.approx(results[key])
    assert results["test_loss"] == pytest.approx(
        torch.nn.functional.cross_entropy(logits, digits.labels).item(), abs=1e-4
    )
    assert results["parameters"] == 1850
    assert (results["train_samples"], results["test_samples"], results["dataset"]) == (400, 100, "mnist-5k")


@pytest.mark.parametrize(("recipe", "compiles"), [("tiny", "yes"), ("adam", "yes"), ("small", "yes"), ("small", "no")])
def test_results_of_recipes_are_those_of_the_saved_weights(recipe, compiles, tmp_path, sample, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # the pass it would compile, as it is
    results = train(*arguments(
        tmp_path / "run", f"--recipe={ROOT / 'configs' / f'{recipe}.yaml'}", f"--compile_training={compiles}",
        "--num_train_epochs=1", "--warmup_steps=2", "--fisher_images=100",
    ))  # fmt: skip
    model, processor = hub.load_checkpoint(tmp_path / "run")
    digits = sample["test"].select(slice(100))
    logits = model(processor.to_pixel_values(digits.images)).logits
    loss = torch.nn.functional.cross_entropy(logits, digits.labels).item()
    assert results["test_loss"] == pytest.approx(loss, rel=1e-6)  # in float32, also where training was not


def test_the_best_epoch_on_validation_is_kept(finished):
    folder, results = finished
    history = json.loads((folder / "history.json").read_text())["log_history"]
    accuracies = {entry["epoch"]: entry["eval_accuracy"] for entry in history if "eval_accuracy" in entry}
    assert len(accuracies) == 4
    assert results["eval_accuracy"] == max(accuracies.values()) == accuracies[results["best_epoch"]]


def test_the_original_facts_are_printed(tmp_path, run_script):
    done = run_script("run_train.py", *QUICK, "--num_train_epochs=1", f"--output_dir={tmp_path / 'run'}")
    assert done.code == 0, done.err
    assert "Total parameters: 1,850\n" in done.out
    for line in (r"Best accuracy: ", r"Test accuracy: ", "Ended at: 20", "Duration: 0:0"):
        assert line in done.out
    assert "Epoch   1.0 of 1  loss " in done.out


def test_runs_are_reproducible_and_seeds_differ(finished, tmp_path):
    train(*arguments(tmp_path / "again"))
    train(*arguments(tmp_path / "other", "--seed=1"))
    first, again, other = weights(finished[0]), weights(tmp_path / "again"), weights(tmp_path / "other")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_a_killed_run_goes_on_and_ends_bit_for_bit_the_same(finished, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        with pytest.raises(Stop):
            train(*arguments(folder))
    assert not (folder / "model.safetensors").exists()
    results = train(*arguments(folder))
    assert "Resuming from " in capsys.readouterr().out
    first, again = weights(finished[0]), weights(folder)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert results["test_accuracy"] == finished[1]["test_accuracy"]
    assert not list(folder.glob("checkpoint-*"))


def test_a_resumed_run_records_the_time_and_loss_of_all_its_parts(finished, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        with pytest.raises(Stop):
            train(*arguments(tmp_path))
    record = tmp_path / "checkpoint-8" / "trainer_state.json"
    state = json.loads(record.read_text())
    state["log_history"][-1]["elapsed"] = 1000.0
    record.write_text(json.dumps(state))
    results = train(*arguments(tmp_path))
    assert 1000 < results["train_runtime"] < results["duration"] < 1100
    assert results["train_loss"] == pytest.approx(finished[1]["train_loss"])
    history = json.loads((tmp_path / "history.json").read_text())["log_history"]
    assert 1000 < history[-1]["elapsed"] < 1100


def test_stretches_of_the_log_count_by_their_steps():
    history = [{"step": 30, "loss": 1.0}, {"step": 30, "eval_loss": 9.0}, {"step": 40, "loss": 0.2}]
    assert training.mean_loss(history, 5.0) == pytest.approx(0.8)
    assert training.mean_loss(history[1:2], 5.0) == 5.0


@pytest.mark.parametrize(
    "torn", ["model.safetensors", "optimizer.pt", "trainer_state.json", "half of trainer_state.json"]
)
def test_a_torn_checkpoint_is_passed_over(finished, tmp_path, monkeypatch, caplog, torn):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(3, patch)
        with pytest.raises(Stop):
            train(*arguments(folder))
    latest = folder / "checkpoint-12"
    if torn.startswith("half"):
        state = latest / "trainer_state.json"
        state.write_text(state.read_text()[:200])
    else:
        (latest / torn).unlink()
    assert runs.last_complete_checkpoint(folder) == folder / "checkpoint-8"
    train(*arguments(folder))
    first, again = weights(finished[0]), weights(folder)
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_finished_run_is_not_repeated(finished, capsys, monkeypatch):
    monkeypatch.setattr(training.VitMnistTrainer, "train", None)
    assert train(*arguments(finished[0])) == finished[1]
    assert "already finished" in capsys.readouterr().out


def test_a_different_run_is_left_alone_unless_told(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(InputError, match=r"different run \(seed 0 there, 1 here.*--overwrite"):
        train(*arguments(folder, "--seed=1"))
    with pytest.raises(InputError, match=r"num_train_epochs 4.0 there, 5.0 here"):
        train(*arguments(folder, "--num_train_epochs=5"))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    train(*arguments(folder, "--seed=1", "--overwrite"))
    assert json.loads((folder / "run.json").read_text())["training"]["seed"] == 1
    assert (folder / "model.safetensors").read_bytes() != before["model.safetensors"]


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="not empty and holds no run"):
        train(*arguments(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("failing", ["model.safetensors", "README.md", "all_results.json"])
def test_a_full_disk_while_saving_loses_nothing(finished, tmp_path, monkeypatch, failing):
    """Whichever file the disk has no room for, the checkpoint that was there stays."""
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    model, processor = hub.load_checkpoint(folder)
    with torch.no_grad():
        model.head.weight.zero_()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    if failing == "model.safetensors":
        monkeypatch.setattr("safetensors.torch.save_file", full)
        monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    else:
        write_text = hub.Path.write_text
        monkeypatch.setattr(
            hub.Path, "write_text", lambda path, *a, **k: full() if path.name == failing else write_text(path, *a, **k)
        )
    with pytest.raises(OSError, match="No space left"):
        hub.save_checkpoint(folder, model, processor, card="# card", records={"all_results.json": {}})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_optimizer_and_schedule_are_the_recipes(tmp_path, monkeypatch):
    """Adam, and linear warmup then cosine down to 1e-5, by the formula."""
    seen = []

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
            inner = getattr(optimizer, "optimizer", optimizer)
            seen.append((type(inner), inner.param_groups[0]["lr"]))

    monkeypatch.setattr(training, "RunReport", Watch)
    train(*arguments(tmp_path / "run", "--learning_rate=0.02", "--warmup_steps=5"))
    total, warmup, peak, least = 16, 5, 0.02, 1e-5
    expected = [
        peak * (step + 1) / warmup
        if step < warmup
        else least + (peak - least) * (1 + math.cos(math.pi * (step - warmup + 1) / (total - warmup))) / 2
        for step in range(total)
    ]
    assert {kind for kind, _ in seen} == {torch.optim.Adam}
    rates = [rate for _, rate in seen]
    assert rates[:warmup] == pytest.approx(expected[:warmup])
    assert max(rates) == pytest.approx(peak) and rates[-1] < peak / 10 and min(rates[warmup:]) >= least
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)


@pytest.mark.parametrize(("name", "kind"), [("adamw_torch", "AdamW"), ("sgd", "SGD"), ("adam", "Adam")])
def test_optimizers_by_name(tmp_path, name, kind, sample):
    *_, args = arguments(tmp_path, f"--optim={name}", "--weight_decay=0.1")
    trainer = training.VitMnistTrainer(model=make_model(), args=args, eval_dataset=sample["validation"])
    optimizer = trainer.create_optimizer()
    assert type(optimizer).__name__ == kind
    decayed = {id(parameter) for parameter in optimizer.param_groups[0]["params"]}
    names = {name for name, parameter in trainer.model.named_parameters() if id(parameter) in decayed}
    assert "vit.patch_embed.proj.weight" in names and "head.weight" in names
    assert not {name for name in names if "norm" in name or "bias" in name or "cls" in name or "pos" in name}


def test_accumulated_batches_count_as_one(tmp_path, finished):
    """Also the last, shorter one of an epoch: 400 images are 3 batches of 150, 150 and 100."""
    flags = ["--num_train_epochs=1", "--optim=sgd", "--learning_rate=0.1", "--warmup_steps=0"]
    train(*arguments(tmp_path / "whole", *flags, "--per_device_train_batch_size=150"))
    train(
        *arguments(tmp_path / "parts", *flags, "--per_device_train_batch_size=50", "--gradient_accumulation_steps=3")
    )
    parts = weights(tmp_path / "parts")
    for name, value in weights(tmp_path / "whole").items():
        torch.testing.assert_close(parts[name], value, rtol=0, atol=1e-5)


@pytest.mark.parametrize("optim", ["adam", "adagrad"])
def test_gradients_are_averaged_once_a_step(tmp_path, monkeypatch, optim):
    """Accumulated ones too, and before the optimizer sees them: where the average is zero, nothing is trained."""
    models, starts, averaged = [], [], []

    def make_trainer(model, *args, make=training.make_trainer):
        models.append(model)
        starts.append({name: value.clone() for name, value in model.state_dict().items()})
        return make(model, *args)

    def average(handler):
        averaged.append(handler)
        models[0].zero_grad(set_to_none=False)

    monkeypatch.setattr(training, "make_trainer", make_trainer)
    monkeypatch.setattr(SharedGradients, "average", average)
    flags = ["--gradient_accumulation_steps=3", "--per_device_train_batch_size=20", "--max_steps=4"]
    train(*arguments(tmp_path, f"--optim={optim}", "--weight_decay=0", *flags))
    assert len(averaged) == 4
    for name, value in weights(tmp_path).items():
        assert torch.equal(value, starts[0][name])


@pytest.mark.parametrize(("optim", "whole"), [("adam", False), ("adamw_torch", False), ("adagrad", True)])
def test_other_optimizers_get_transformers_own_step(tmp_path, monkeypatch, optim, whole):
    called = []
    own = training.Trainer.training_step
    monkeypatch.setattr(training.Trainer, "training_step", lambda self, *args: (called.append(1), own(self, *args))[1])
    train(*arguments(tmp_path, f"--optim={optim}", "--max_steps=2"))
    assert bool(called) == whole


def make_model():
    return training.build_model(training.ModelArguments(), [str(i) for i in range(10)])


def test_whitened_patches_are_uncorrelated_and_centred(sample):
    torch.manual_seed(0)
    model = make_model()
    training.whiten_patch_embed(model, sample["train"])
    tokens = model.vit.patch_embed(sample["train"].processor.to_pixel_values(sample["train"].images)).flatten(0, 1)
    torch.testing.assert_close(tokens.T.cov(), torch.eye(8), rtol=0, atol=1e-2)
    torch.testing.assert_close(tokens.mean(0), torch.zeros(8), rtol=0, atol=1e-4)
    wide = training.build_model(training.ModelArguments(hidden_size=64), ["0", "1"])
    with pytest.raises(InputError, match="at most 49, the pixels of a patch, got 64"):
        training.whiten_patch_embed(wide, sample["train"])


def test_fine_tuning_starts_from_the_checkpoint(finished, tmp_path):
    model_args, *_ = arguments(tmp_path, f"--model_name_or_path={finished[0]}")
    assert model_args.hidden_size == 8  # a recipe may say what the checkpoint has
    model = training.build_model(model_args, ["a", "b"])
    assert model.config.id2label == {0: "a", 1: "b"} and model.head.weight.shape == (2, 8)
    assert torch.equal(model.vit.pos_embed, weights(finished[0])["vit.pos_embed"])


@pytest.mark.parametrize(
    ("recipe", "optim", "parameters"),
    [
        ("tiny", "natural_gradient", 1850),
        ("fast", "natural_gradient", 1850),
        ("best", "natural_gradient", 1850),
        ("adam", "adam", 1850),
        ("small", "adamw_torch_fused", 58_402),
    ],
)
def test_recipes_are_complete(recipe, optim, parameters):
    model_args, *_, args = parse_arguments(["--recipe", str(ROOT / "configs" / f"{recipe}.yaml")])
    assert (args.optim, args.lr_scheduler_kwargs) == (optim, {"min_lr": 1e-5})
    assert args.output_dir == f"outputs/vit-mnist-{recipe}"
    model = training.build_model(model_args, [str(digit) for digit in range(10)])
    assert model.num_parameters() == parameters <= 60_000
    assert {path.stem for path in (ROOT / "configs").glob("*.yaml")} == {"tiny", "fast", "best", "adam", "small"}


def test_the_default_recipe_is_tiny_and_flags_win(tmp_path):
    recipe = yaml.safe_load((ROOT / "configs" / "tiny.yaml").read_text())
    *_, args = parse_arguments([])
    assert (args.learning_rate, args.optim) == (recipe["learning_rate"], recipe["optim"])
    *_, args = parse_arguments(
        ["--learning_rate", "0.5", "--optim=adamw_torch", "--lr_scheduler_kwargs", '{"min_lr": 0}']
    )
    assert (args.learning_rate, args.optim, args.lr_scheduler_kwargs) == (0.5, "adamw_torch", {"min_lr": 0})
    mine = tmp_path / "mine.json"
    mine.write_text(json.dumps({"output_dir": "x", "hidden_size": 16, "learning_rate": 1e-3, "qkv_bias": False}))
    model_args, *_, args = parse_arguments(["--recipe", str(mine), "--seed", "3"])
    assert (model_args.hidden_size, model_args.qkv_bias, args.learning_rate, args.seed) == (16, False, 1e-3, 3)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--learning_rat", "1"], "Unknown flag --learning_rat: did you mean learning_rate"),
        (["--learning_rate", "fast"], "learning-rate: invalid float value: 'fast'"),
        (["stray"], "Unexpected argument 'stray'"),
        (["--num_train_epochs", "0"], "--num_train_epochs must be positive, got 0"),
        (["--per_device_train_batch_size", "0"], "Batch sizes must be at least 1"),
        (["--optim", "adm"], "adm"),
        (["--recipe", "/nowhere.yaml"], "recipe /nowhere.yaml cannot be read"),
        (["--hidden_size", "9"], "2 heads for a width of 9"),
        (["--hidden_act", "gleu"], "got 'gleu'"),
        (["--output_dir", "/dev/null/x"], "folder /dev/null/x cannot be written"),
        (["--dataset_name", "/nowhere"], "no dataset folder '/nowhere'"),
        (["--model_name_or_path", "/nowhere"], "no checkpoint folder '/nowhere'"),
        (
            ["--model_name_or_path", str(ROOT / "vit-mnist-small")],
            "--hidden_size 8 is not what the checkpoint .*vit-mnist-small has, 48, and cannot be changed",
        ),
        (["--push_to_hub"], "kept sample.*--push_to_hub is refused"),
        (["--resume_from_checkpoint", "/nowhere"], "no complete checkpoint: config.json is missing"),
    ],
)
def test_wrong_usage_gets_one_line_and_exit_code_2(argv, says, tmp_path, run_script):
    done = run_script("run_train.py", *QUICK, f"--output_dir={tmp_path / 'run'}", *argv)
    assert done.code == 2
    lines = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in done.err
    assert re.search(says, lines[0]), lines[0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("learning_rat: 1", r"Unknown key in bad.yaml: learning_rat: did you mean learning_rate\?"),
        ("- a\n- b", "must hold lines of 'name: value', got list"),
        ("a: [", "cannot be read"),
        ("learning_rate: fast", "invalid float value"),
    ],
)
def test_wrong_recipes_are_named(text, says, tmp_path):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(InputError, match=says):
        parse_arguments(["--recipe", str(tmp_path / "bad.yaml"), "--output_dir=x"])
