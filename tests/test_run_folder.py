"""The output folder of a run: what is resumed, refused, replaced, and never lost."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from modeling_vit_mnist.checkpoints.folder import load_checkpoint, save_checkpoint
from modeling_vit_mnist.cli.errors import UsageError
from modeling_vit_mnist.training.run_folder import last_complete_checkpoint
from modeling_vit_mnist.training.train import train
from modeling_vit_mnist.training.trainer import VitMnistTrainer

from .conftest import Stop, arguments, stop_after, weights


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
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_stopped_run_resumes_and_ends_with_the_same_weights(finished, stopped, tmp_path, capsys):
    assert not (stopped / "model.safetensors").exists()
    folder = shutil.copytree(stopped, tmp_path / "run")
    # The last record of the time so far: the resumed run has to add to it.
    record = folder / "checkpoint-12" / "trainer_state.json"
    state = json.loads(record.read_text())
    state["log_history"][-1]["elapsed"] = 1000.0
    record.write_text(json.dumps(state))
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
    with pytest.raises(UsageError, match=r"num_train_epochs 4.0 there, 5.0 here"):
        train(*arguments(folder, "--num_train_epochs=5"))
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
