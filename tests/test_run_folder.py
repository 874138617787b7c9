"""The output folder of a run: what is resumed, refused, replaced, and never lost."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from modeling_vit_mnist.checkpoints.folder import load_checkpoint, save_checkpoint
from modeling_vit_mnist.cli import files
from modeling_vit_mnist.cli.errors import UsageError
from modeling_vit_mnist.cli.files import finish_replacing, locked
from modeling_vit_mnist.training import run_folder
from modeling_vit_mnist.training import train as train_module
from modeling_vit_mnist.training import trainer as trainer_module
from modeling_vit_mnist.training.arguments import VitMnistTrainingArguments
from modeling_vit_mnist.training.manifest import write_manifest
from modeling_vit_mnist.training.refusals import REFUSED
from modeling_vit_mnist.training.run_folder import (
    DECISIVE_ARGUMENTS,
    NATURAL_GRADIENT_ARGUMENTS,
    RARE_ARGUMENTS,
    last_complete_checkpoint,
)  # fmt: skip
from modeling_vit_mnist.training.train import train
from modeling_vit_mnist.training.trainer import VitMnistTrainer

from .conftest import QUICK, ROOT, SAMPLE, TINY, Stop, arguments, stop_after, weights


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run, and what it returned."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    return folder, train(*arguments(folder))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The folder of the same run, stopped after 3 of its 4 epochs. Tests copy it."""
    folder = tmp_path_factory.mktemp("runs") / "stopped"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        stop_after(3, patch)
        train(*arguments(folder))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_stopped_run_resumes_and_ends_with_the_same_weights(finished, stopped, tmp_path, capsys):
    assert not (stopped / "model.safetensors").exists()
    folder = shutil.copytree(stopped, tmp_path / "run")
    # The last record of the time so far: the resumed run has to add to it.
    record = folder / "checkpoint-12" / "trainer_state.json"
    state = json.loads(record.read_text())
    state["log_history"][-1]["elapsed"] = 1000.0
    record.write_text(json.dumps(state))
    write_manifest(folder / "checkpoint-12")
    results = train(*arguments(folder))
    assert f"Resuming from {folder / 'checkpoint-12'}" in capsys.readouterr().out
    first, again = weights(finished[0]), weights(folder)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert results["test_accuracy"] == finished[1]["test_accuracy"]
    assert not list(folder.glob("checkpoint-*"))
    assert 1000 < results["train_runtime"] < results["duration"]
    assert results["train_loss"] == pytest.approx(finished[1]["train_loss"])
    history = json.loads((folder / "history.json").read_text())["log_history"]
    assert history[-1]["elapsed"] > 1000


@pytest.mark.parametrize(
    "damage", ["no model.safetensors", "no optimizer.pt", "no trainer_state.json", "half of trainer_state.json"]
)
def test_an_incomplete_checkpoint_is_skipped(finished, stopped, tmp_path, damage, caplog):
    folder = shutil.copytree(stopped, tmp_path / "run")
    file = folder / "checkpoint-12" / damage.split()[-1]
    if damage.startswith("half"):
        file.write_text(file.read_text()[:200])
    else:
        file.unlink()
    assert last_complete_checkpoint(folder) == folder / "checkpoint-8"
    if damage == "no optimizer.pt":
        train(*arguments(folder))
        first, again = weights(finished[0]), weights(folder)
        assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_finished_run_is_not_repeated(finished, capsys, monkeypatch):
    monkeypatch.setattr(VitMnistTrainer, "train", None)
    assert train(*arguments(finished[0])) == finished[1]
    assert "already finished" in capsys.readouterr().out


def test_another_run_is_replaced_only_by_overwrite(finished, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    before = contents(folder)
    with pytest.raises(UsageError, match=r"different run \(seed 0 there, 1 here.*--overwrite"):
        train(*arguments(folder, "--seed=1"))
    for flag, reason in (
        ("--num_train_epochs=5", "num_train_epochs 4.0 there, 5.0 here"),
        ("--eval_delay=2", "eval_delay None there, 2.0 here"),
        ("--load_best_model_at_end=no", "load_best_model_at_end True there, False here"),
        ("--split_seed=1", "other images or labels, of mnist-5k there"),
    ):
        with pytest.raises(UsageError, match=reason):
            train(*arguments(folder, flag))
    with pytest.raises(UsageError, match="eval_strategy epoch there, steps here"):
        train(*arguments(folder, "--eval_strategy=steps", "--save_strategy=steps", "--eval_steps=4", "--save_steps=4"))
    assert contents(folder) == before
    train(*arguments(folder, "--seed=1", "--overwrite"))
    assert json.loads((folder / "run.json").read_text())["training"]["seed"] == 1
    assert (folder / "model.safetensors").read_bytes() != before["model.safetensors"]


def test_a_folder_without_a_run_is_left_unchanged(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="not empty and holds no run"):
        train(*arguments(tmp_path))
    assert contents(tmp_path) == {"thesis.txt": b"years of work"}


@pytest.mark.parametrize("failing", ["model.safetensors", "README.md", "all_results.json"])
def test_a_full_disk_leaves_the_old_checkpoint(finished, tmp_path, monkeypatch, failing):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    before = contents(folder)
    model, processor = load_checkpoint(folder)
    with torch.no_grad():
        model.head.weight.zero_()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    if failing == "model.safetensors":
        monkeypatch.setattr("safetensors.torch.save_file", full)
        monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    else:
        write_text = Path.write_text
        monkeypatch.setattr(
            Path, "write_text", lambda path, *a, **k: full() if path.name == failing else write_text(path, *a, **k)
        )
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(folder, model, processor, card="# card", records={"all_results.json": {}})
    assert contents(folder) == before


def save_digits(folder: Path, first: int) -> Path:
    """A saved dataset of 300 digits of the sample, from the given one on."""
    rows = datasets.load_dataset(str(SAMPLE), split="train").select(range(first, first + 300))
    rows.save_to_disk(str(folder))
    return folder


def test_data_are_recognized_by_content_not_by_name(tmp_path, capsys):
    for owner, first in (("alice", 0), ("bob", 300), ("carol", 0)):
        save_digits(tmp_path / owner / "digits", first)
    folder = tmp_path / "run"
    train(*arguments(folder, f"--dataset_name={tmp_path / 'alice' / 'digits'}"))
    with pytest.raises(UsageError, match="other images or labels, of digits there, of digits here"):
        train(*arguments(folder, f"--dataset_name={tmp_path / 'bob' / 'digits'}"))
    capsys.readouterr()
    train(*arguments(folder, f"--dataset_name={tmp_path / 'carol' / 'digits'}"))
    assert "already finished" in capsys.readouterr().out


def test_a_parent_is_recognized_by_its_weights(finished, tmp_path, capsys):
    for owner in ("alice", "bob", "carol"):
        shutil.copytree(finished[0], tmp_path / owner / "model")
    model, processor = load_checkpoint(tmp_path / "bob" / "model")
    with torch.no_grad():
        model.head.bias[3] += 1e-3
    save_checkpoint(tmp_path / "bob" / "model", model, processor, card="# card", records={})
    folder = tmp_path / "run"
    train(*arguments(folder, f"--model_name_or_path={tmp_path / 'alice' / 'model'}"))
    with pytest.raises(UsageError, match="other initial weights"):
        train(*arguments(folder, f"--model_name_or_path={tmp_path / 'bob' / 'model'}"))
    capsys.readouterr()
    train(*arguments(folder, f"--model_name_or_path={tmp_path / 'carol' / 'model'}"))
    assert "already finished" in capsys.readouterr().out


def test_every_argument_of_trainer_is_part_of_a_run_or_known_not_to_be():
    elsewhere = """
        output_dir disable_tqdm log_level log_level_replica log_on_each_node logging_strategy logging_steps
        logging_first_step logging_nan_inf_filter report_to run_name project push_to_hub save_total_limit
        save_on_each_node skip_memory_metrics resume_from_checkpoint overwrite keep_checkpoints push_sample_model
        report do_train do_eval do_predict eval_on_start include_num_input_tokens_seen
        restore_callback_states_from_checkpoint
        per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps eval_accumulation_steps
        average_tokens_across_devices eval_do_concat_batches activation_checkpointing activation_checkpointing_kwargs
        gradient_checkpointing gradient_checkpointing_kwargs compile_training torch_empty_cache_steps full_determinism
        use_cpu local_rank
    """
    known = {*DECISIVE_ARGUMENTS, *RARE_ARGUMENTS, *NATURAL_GRADIENT_ARGUMENTS, *REFUSED, *elsewhere.split()}
    fields = {field.name for field in dataclasses.fields(VitMnistTrainingArguments)}
    prefixes = ("hub_", "ddp_", "dataloader_", "trackio_")
    assert {name for name in fields - known if not name.startswith(prefixes)} == set()


def test_overwriting_keeps_the_old_result_until_the_new_one_is_complete(finished, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    for name in ("seeds.json", "robustness.json", ".eval_results/mnist.yaml", "notes.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    before = contents(folder)
    command = arguments(folder, "--seed=1", "--overwrite")
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_after(2, patch)
        train(*command)
    assert before.items() <= contents(folder).items()
    capsys.readouterr()
    train(*arguments(folder))
    assert "already finished" in capsys.readouterr().out

    train(*command)  # goes on
    assert "checkpoint-8" in capsys.readouterr().out
    after = contents(folder)
    assert after.keys() == before.keys() - {"seeds.json", "robustness.json", ".eval_results/mnist.yaml"}
    train(*arguments(tmp_path / "new", "--seed=1"))
    assert after["model.safetensors"] == (tmp_path / "new" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("moved", [0, 1, 5])
@pytest.mark.parametrize("in_one_step", [True, False])
def test_a_kill_while_files_are_moved_is_completed_later(finished, tmp_path, monkeypatch, moved, in_one_step):
    """In one step, the old result is complete until then. Where this is impossible, some of the files are new."""
    folder = shutil.copytree(finished[0], tmp_path / "run")
    (folder / "seeds.json").write_text("{}")
    before = contents(folder)
    model, processor = load_checkpoint(folder)
    with torch.no_grad():
        model.head.weight.zero_()
    replace, calls = os.replace, []

    def killed(source, target):
        calls.append(target)
        if len(calls) > moved:
            raise Stop
        replace(source, target)

    if not in_one_step:
        monkeypatch.setattr(files, "_exchange", lambda folder: False)
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(os, "replace", killed)
        save_checkpoint(folder, model, processor, card="# card", records={"all_results.json": {"new": 1}})
    if in_one_step and sys.platform == "linux":
        assert before.items() <= contents(folder).items()
    finish_replacing(folder)
    assert (folder / "README.md").read_text() == "# card"
    assert json.loads((folder / "all_results.json").read_text())["new"] == 1
    assert not weights(folder)["head.weight"].any()
    assert not [path for path in folder.iterdir() if path.name == "seeds.json" or path.name.startswith(".")]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.skipif(sys.platform != "linux", reason="folders are exchanged on Linux")
@pytest.mark.parametrize("refused", [False, True])
def test_a_result_changes_in_one_step_and_keeps_the_files_of_the_user(finished, tmp_path, monkeypatch, refused):
    """Also an open file and a link. In the folder where the user is, a shell would lose its way."""
    folder = shutil.copytree(finished[0], tmp_path / "run")
    (folder / "notes").mkdir()
    (folder / "notes" / "a.txt").write_text("mine")
    (folder / "link").symlink_to("nowhere")
    identity = folder.stat().st_ino
    if refused:
        monkeypatch.chdir(folder)
    model, processor = load_checkpoint(folder)
    with locked(folder), (folder / "log.txt").open("w") as log:
        save_checkpoint(folder, model, processor, card="new", records={})
        log.write("end")
        with pytest.raises(UsageError, match="Another process"), locked(folder):
            pass
    assert (folder.stat().st_ino == identity) == refused
    assert (folder / "log.txt").read_text() == "end" and (folder / "notes" / "a.txt").read_text() == "mine"
    assert os.readlink(folder / "link") == "nowhere"
    assert (folder / "README.md").read_text() == "new" and not (folder / "run.json").exists()
    assert not list(tmp_path.glob(".*")) and not list(folder.glob(".*"))


def test_what_a_kill_left_behind_is_cleared_up_and_stops_no_run(finished, tmp_path):
    """In a folder of its own and of a finished run, beside it, and in a folder where the shell has put a log."""
    folder = tmp_path / "run"
    for number in range(2):
        for left in (folder / ".saving-1/checkpoint-8", tmp_path / ".saving-run"):
            left.mkdir(parents=True)
            (left / "model.safetensors").write_text("half")
        for name in (".saving-2-run.json", ".lock", "log.txt", "train.log"):
            (folder / name).write_text("half")
        train(*arguments(folder))
        assert {path.name for path in folder.iterdir()} - contents(finished[0]).keys() == {"log.txt", "train.log"}
        assert not list(tmp_path.glob(".*")), number


def test_the_file_that_the_output_goes_to_is_not_in_the_way(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    code = "import sys; from modeling_vit_mnist.commands import run, train; run(train)"
    with (folder / "what happened").open("w") as file:
        subprocess.run(
            [sys.executable, "-c", code, *QUICK, "--num_train_epochs=1", f"--output_dir={folder}"],
            stdout=file, stderr=subprocess.STDOUT, check=True, cwd=ROOT,
        )  # fmt: skip
    assert "Saved to" in (folder / "what happened").read_text()


def test_checkpoints_are_deleted_before_the_record_that_says_so(finished, stopped, tmp_path, monkeypatch):
    """A kill in between leaves neither a checkpoint in a finished folder for ever, nor half of one under its name."""
    folder = shutil.copytree(stopped, tmp_path / "run")
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(files.shutil, "rmtree", lambda *_, **__: (_ for _ in ()).throw(Stop))
        patch.setattr(files, "_exchange", lambda folder: False)
        run_folder.close_run(folder, arguments(folder)[-1])
    assert [last.name for last in run_folder.own_checkpoints(folder)] == ["checkpoint-8", "checkpoint-4"]
    for path in finished[0].iterdir():
        shutil.copy(path, folder)
    train(*arguments(folder))
    assert contents(folder).keys() == contents(finished[0]).keys()


def test_overwriting_keeps_the_checkpoints_of_another_run_until_the_new_result_is_complete(
    stopped, tmp_path, monkeypatch
):
    folder = shutil.copytree(stopped, tmp_path / "run")
    command = arguments(folder, "--seed=1", "--overwrite")
    for epochs in (1, 2):
        with monkeypatch.context() as patch, pytest.raises(Stop):
            stop_after(epochs, patch)
            train(*command)
        (aside,) = folder.glob(".replaced-*")
        old = {name: content for name, content in contents(stopped).items() if name.startswith("checkpoint-")}
        assert contents(aside) == old
    assert last_complete_checkpoint(folder).name == "checkpoint-8"
    train(*command)
    assert not list(folder.glob(".*")) and not list(folder.glob("checkpoint-*"))


@pytest.mark.parametrize("content", [None, b"", b"{", b'{"training": 3}', b"\0" * 100])
def test_a_lost_record_of_an_unfinished_run_is_in_its_checkpoints(finished, stopped, tmp_path, content, capsys):
    folder = shutil.copytree(stopped, tmp_path / "run")
    (folder / "unfinished_run.json").unlink()
    if content is not None:
        (folder / "unfinished_run.json").write_bytes(content)
    train(*arguments(folder))
    assert f"Resuming from {folder / 'checkpoint-12'}" in capsys.readouterr().out
    assert (folder / "model.safetensors").read_bytes() == (finished[0] / "model.safetensors").read_bytes()
    with pytest.raises(UsageError, match=r"holds a different run .seed 0 there, 1 here"):
        train(*arguments(folder, "--seed=1"))


def test_a_second_run_in_the_same_folder_is_refused(finished, tmp_path, run_script):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    code = "import sys; from pathlib import Path; from modeling_vit_mnist.cli.files import locked\n"
    code += f"with locked(Path({str(folder)!r})): print('locked', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as holder:
        assert holder.stdout.readline() == "locked\n"
        result = run_script("run_train.py", *QUICK, f"--output_dir={folder}", "--overwrite")
        assert result.code == 2 and f"Another process is using {folder}" in result.err
        holder.kill()
    assert (folder / ".lock").exists()
    train(*arguments(folder))
    assert not (folder / ".lock").exists()


def test_only_our_own_checkpoints_are_resumed_from_and_deleted(stopped, tmp_path, capsys):
    folder = shutil.copytree(stopped, tmp_path / "run")
    foreign = ["checkpoint-8-backup", "checkpoint-best", "checkpoint-", "checkpoint-8.old"]
    for name in foreign:
        shutil.copytree(folder / "checkpoint-8", folder / name)
    train(*arguments(folder))
    assert "checkpoint-12" in capsys.readouterr().out
    assert {path.name for path in folder.glob("checkpoint-*")} == set(foreign)
    train(*arguments(folder, "--overwrite", "--seed=1", "--keep_checkpoints", "--save_total_limit=1"))
    kept = {path.name for path in folder.glob("checkpoint-*")} - set(foreign)
    assert "checkpoint-16" in kept and len(kept) <= 2  # the last one and the best one


def test_the_best_checkpoint_is_found_in_a_folder_that_has_moved(finished, tmp_path, monkeypatch):
    # The second of 4 epochs is the best one, and training stops after the third.
    accuracies = iter([0.1, 0.9, 0.5, 0.4])

    def compute_metrics(output):
        return {"accuracy": next(accuracies)}

    original = trainer_module.compute_metrics
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(trainer_module, "compute_metrics", compute_metrics)
        stop_after(3, patch)
        train(*arguments(tmp_path / "old"))
    best = weights(tmp_path / "old" / "checkpoint-8")
    (tmp_path / "old").rename(tmp_path / "new")
    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, "compute_metrics", lambda output: original(output) | {"accuracy": 0.4})
        results = train(*arguments(tmp_path / "new"))
    assert results["best_epoch"] == 2
    assert all(torch.equal(best[name], weight) for name, weight in weights(tmp_path / "new").items())


def test_without_selection_the_last_epoch_is_reported(tmp_path):
    results = train(*arguments(tmp_path / "run", "--load_best_model_at_end=no", "--learning_rate=0.5"))
    assert results["best_epoch"] == 4
    card = (tmp_path / "run" / "README.md").read_text()
    assert "weights of the last step" in card and "measured after 4;" in card and "was best" not in card


@pytest.mark.parametrize("flag", ["--max_steps=6", "--num_train_epochs=1.5"])
def test_epochs_are_those_of_the_steps(flag, tmp_path, capsys):
    results = train(*arguments(tmp_path / "run", flag))  # an epoch has 4 steps
    assert results["epoch"] == 1.5 and results["best_epoch"] in (1, 1.5)
    history = json.loads((tmp_path / "run" / "history.json").read_text())["log_history"]
    accuracies = {entry["epoch"]: entry["eval_accuracy"] for entry in history if "eval_accuracy" in entry}
    assert accuracies[results["best_epoch"]] == max(accuracies.values())
    assert ", 1.5 epochs, best after " in (tmp_path / "run" / "README.md").read_text()
    assert "Epoch   1.0 of 1.5 " in capsys.readouterr().out


def test_messages_say_how_to_go_on(stopped, finished, tmp_path, capsys):
    folder = shutil.copytree(stopped, tmp_path / "run")
    for more in ([], ["--resume_from_checkpoint=True"]):
        with pytest.raises(UsageError) as raised:
            train(*arguments(folder, "--num_train_epochs=6", *more))
        advice = f"--output_dir {folder}-2 --resume_from_checkpoint {folder / 'checkpoint-12'}"
        assert advice in str(raised.value) and "--overwrite" in str(raised.value)
    results = train(*arguments(f"{folder}-2", "--num_train_epochs=6", *advice.split()[2:]))
    assert "Resuming from" in capsys.readouterr().out and results["epoch"] == 6
    run = json.loads(Path(f"{folder}-2", "run.json").read_text())
    assert run["training"]["resumed_from"] == "run/checkpoint-12"
    train(*arguments(folder, "--resume_from_checkpoint=True"))
    assert "Resuming from" in capsys.readouterr().out
    with pytest.raises(UsageError, match=rf"--output_dir {folder}-3 --model_name_or_path {folder}"):
        train(*arguments(folder, "--num_train_epochs=6"))


def test_a_run_from_another_folder_goes_on_after_an_interruption(stopped, tmp_path, capsys, monkeypatch):
    """From its own last checkpoint, not from the one that it started from."""
    flags = ["--num_train_epochs=8", f"--resume_from_checkpoint={stopped / 'checkpoint-12'}"]
    folder = tmp_path / "longer"
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_after(5, patch)
        train(*arguments(folder, *flags))
    train(*arguments(folder, *flags))
    assert f"Resuming from {folder / 'checkpoint-20'}" in capsys.readouterr().out
    whole = tmp_path / "whole"
    train(*arguments(whole, *flags))
    first, again = weights(whole), weights(folder)
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_run_that_goes_back_keeps_its_latest_checkpoint(stopped, tmp_path, capsys, monkeypatch, caplog):
    folder = shutil.copytree(stopped, tmp_path / "run")
    early = min(folder.glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    step = int(early.name[11:])
    assert step < 12
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_after(step // 4 + 1, patch)
        train(*arguments(folder, f"--resume_from_checkpoint={early}"))
    assert (folder / f"checkpoint-{step + 4}").is_dir()
    shutil.rmtree(early, ignore_errors=True)
    train(*arguments(folder, f"--resume_from_checkpoint={early}"))
    assert f"{early} is gone: going on from the last checkpoint beside it." in caplog.text
    assert f"Resuming from {folder / 'checkpoint-12'}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--hidden_size=16"], "hidden_size 8 there, 16 here"),
        (["--optim=sgd"], "optim adam there, sgd here"),
        (["--resume_from_checkpoint=no"], "pass --overwrite"),
        (["--resume_from_checkpoint=/nowhere"], "there is no such folder"),
    ],
)
def test_a_checkpoint_of_another_network_or_optimizer_is_refused(stopped, tmp_path, flags, message):
    folder = tmp_path / "other"
    with pytest.raises(UsageError, match=message):
        train(*arguments(folder, f"--resume_from_checkpoint={stopped / 'checkpoint-12'}", *flags))
    assert not folder.exists()


@pytest.mark.parametrize("bad", ["--model_name_or_path=/nowhere", "--dataset_name=/nowhere", "--hidden_size=7"])
def test_wrong_input_leaves_no_empty_folders(tmp_path, bad):
    with pytest.raises(UsageError):
        train(*arguments(tmp_path / "outputs" / "run", bad))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("save_strategy", ["epoch", "no"])
@pytest.mark.parametrize("failing", ["measure", "fill_card"])
def test_a_failure_after_training_costs_no_weights(tmp_path, monkeypatch, capsys, save_strategy, failing):
    flags = [f"--save_strategy={save_strategy}", f"--load_best_model_at_end={save_strategy == 'epoch'}"]
    folder = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(train_module, failing, lambda *_: (_ for _ in ()).throw(Stop))
        train(*arguments(folder, *flags))
    saved = weights(folder)
    load_checkpoint(folder)
    assert not (folder / "all_results.json").exists()
    train(*arguments(folder, *flags))
    assert "checkpoint-16" in capsys.readouterr().out
    assert all(torch.equal(saved[name], weight) for name, weight in weights(folder).items())
    assert {"README.md", "all_results.json"} <= contents(folder).keys()


def test_the_best_weights_are_saved_between_two_saves(tmp_path, monkeypatch):
    accuracies = [0.1, 0.2, 0.3, 0.3, 0.1, 0.2, 0.9, 0.5, *[0.4] * 8]  # the best one after step 7
    measured = iter(accuracies)
    original = trainer_module.compute_metrics
    monkeypatch.setattr(
        trainer_module, "compute_metrics", lambda output: original(output) | {"accuracy": next(measured, 0.9)}
    )
    flags = ["--eval_strategy=steps", "--save_strategy=steps", "--eval_steps=1", "--save_steps=2"]
    results = train(*arguments(tmp_path / "run", *flags, "--keep_checkpoints", "--save_total_limit=1"))
    assert results["best_epoch"] == 7 / 4
    assert {path.name for path in (tmp_path / "run").glob("checkpoint-*")} == {"checkpoint-7", "checkpoint-16"}
    best = weights(tmp_path / "run" / "checkpoint-7")
    assert all(torch.equal(best[name], weight) for name, weight in weights(tmp_path / "run").items())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max_eval_samples=50"], "other images or labels"),
        (["--metric_for_best_model=loss"], "greater_is_better True there, False here"),
        (["--learning_rate=0.001"], "learning_rate 0.02 there, 0.001 here.*--model_name_or_path"),
        (["--adam_beta2=0.5"], "adam_beta2 0.99 there, 0.5 here"),
        (["--num_train_epochs=3"], "is at epoch 3 already: pass a larger --num_train_epochs"),
        (["--max_steps=12"], "is at global_step 12 already: pass a larger --max_steps"),
    ],
)
def test_a_checkpoint_continues_its_own_run_only(stopped, tmp_path, flags, message):
    """The optimizer, the schedule and the best metric so far come from the checkpoint."""
    folder = tmp_path / "other"
    with pytest.raises(UsageError, match=message):
        train(
            *arguments(folder, "--num_train_epochs=6", f"--resume_from_checkpoint={stopped / 'checkpoint-12'}", *flags)
        )
    assert not folder.exists()


@pytest.mark.parametrize(
    ("name", "content", "damage"),
    [
        ("optimizer.pt", b"torn", r"optimizer\.pt is damaged"),
        ("scheduler.pt", b"", r"scheduler\.pt is damaged"),
        ("model.safetensors", b"torn", r"model\.safetensors is damaged"),
        ("trainer_state.json", b"{", r"trainer_state\.json is damaged: it has 1 bytes, manifest\.json says "),
        ("rng_state.pth", None, r"rng_state\.pth is damaged: its content is not what manifest\.json says"),
        ("optimizer.pt", None, r"optimizer\.pt is damaged: its content is not what manifest\.json says"),
        ("manifest.json", b"{", r"manifest\.json is damaged"),
        ("manifest.json", b"[]", r"manifest\.json is damaged"),
        ("manifest.json", b"{}", r"manifest\.json is damaged: it names no files"),
        ("manifest.json", b'{"../../run": {"size": 1, "sha256": ""}}', r"\.\./\.\./run is unreadable"),
    ],
)
def test_a_damaged_checkpoint_is_refused_or_skipped(stopped, tmp_path, name, content, damage, caplog):
    folder = shutil.copytree(stopped, tmp_path / "run")
    path = folder / "checkpoint-12" / name
    path.write_bytes(bytes(path.stat().st_size) if content is None else content)  # zeros, as after a power loss
    with pytest.raises(UsageError, match=damage):
        train(*arguments(folder, f"--resume_from_checkpoint={folder / 'checkpoint-12'}"))
    assert last_complete_checkpoint(folder) == folder / "checkpoint-8"
    assert "Skipping" in caplog.text


def test_folders_of_the_user_are_never_deleted(stopped, tmp_path):
    folder = shutil.copytree(stopped, tmp_path / "run")
    for name, file in (("checkpoint-008", "model.safetensors"), ("checkpoint-99", "mine.txt")):
        (folder / name).mkdir()
        (folder / name / file).write_text("mine")
    train(*arguments(folder, "--overwrite", "--seed=3"))
    assert {path.name for path in folder.glob("checkpoint-*")} == {"checkpoint-008", "checkpoint-99"}


@pytest.mark.parametrize(
    ("name", "content"),
    [("all_results.json", "{"), ("all_results.json", "{}"), ("run.json", "[]"), ("model.safetensors", "other")],
)
def test_damaged_records_of_a_finished_run_are_named(finished, tmp_path, name, content):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    (folder / name).write_text(content)
    with pytest.raises(UsageError, match=rf"{name}.*Pass --overwrite to train it again"):
        train(*arguments(folder))
    train(*arguments(folder, "--overwrite"))
    assert train(*arguments(folder)) == json.loads((folder / "all_results.json").read_text())


def test_a_run_without_a_checkpoint_does_not_hold_its_folder(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(FloatingPointError):
        train(*arguments(folder, "--learning_rate=1e30"))
    assert [path.name for path in folder.iterdir()] == ["unfinished_run.json"]
    train(*arguments(folder))


@pytest.mark.parametrize(
    "flags",
    [
        ["--logging_strategy=no"],
        ["--logging_strategy=steps", "--logging_steps=5", "--save_strategy=steps", "--save_steps=3",
         "--eval_strategy=steps", "--eval_steps=3"],
    ],
)  # fmt: skip
def test_the_training_loss_of_a_resumed_run_counts_every_step(tmp_path, monkeypatch, flags):
    whole = train(*arguments(tmp_path / "whole", *flags))
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_after(2, patch)
        train(*arguments(tmp_path / "run", *flags))
    resumed = train(*arguments(tmp_path / "run", *flags))
    assert resumed["train_loss"] == pytest.approx(whole["train_loss"], rel=1e-6)
    history = json.loads((tmp_path / "run" / "history.json").read_text())["log_history"]
    assert [entry["train_loss"] for entry in history if "train_loss" in entry] == [resumed["train_loss"]]


def test_images_that_a_checkpoint_frames_are_said(tmp_path, caplog):
    rows = datasets.load_dataset(str(SAMPLE), split="train").select(range(60))
    images = [255 - np.asarray(row["image"]) for row in rows]  # dark on light
    images[7] = np.full((28, 28), 200, np.uint8)
    features = datasets.Features({"image": datasets.Array2D((28, 28), "uint8"), "label": rows.features["label"]})
    datasets.Dataset.from_dict({"image": images, "label": rows["label"]}, features).save_to_disk(tmp_path / "own")
    for flags, message in (
        ([f"--model_name_or_path={TINY}"], "Framing the images as digits; 1 hold none and are black"),
        ([f"--model_name_or_path={TINY}", "--do_frame=no"], None),
        ([], None),
    ):
        caplog.clear()
        model_args, data_args, _, args = arguments(tmp_path / "run", *flags, f"--dataset_name={tmp_path / 'own'}")
        framed = train_module.load_data(model_args, data_args, args)["train"].processor.do_frame
        assert framed == (message is not None) and (message or "") in caplog.text
        assert ("Framing" in caplog.text) == framed
