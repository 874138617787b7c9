"""Saved folders in fresh processes, with the package and without it, what is no checkpoint, cards, and the Hub."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from safetensors.torch import load_file, save_file

from modeling_vit_mnist import VitMnistConfig, VitMnistForImageClassification, VitMnistImageProcessor, hub
from modeling_vit_mnist.errors import InputError

from .conftest import ROOT
from .loopback_hub import loopback_hub


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A complete folder, and the logits its model gives for a picture of ones."""
    folder = tmp_path_factory.mktemp("hub") / "vit-mnist.v1"
    torch.manual_seed(0)
    model = VitMnistForImageClassification(VitMnistConfig()).eval()
    hub.save_checkpoint(folder, model, VitMnistImageProcessor(), card="# card", records={"all_results.json": {}})
    return folder, model(torch.ones(1, 1, 28, 28)).logits


LOAD_ALL = """
import sys, torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification
{setup}
folder, options = {folder!r}, {options}
config = AutoConfig.from_pretrained(folder, **options)
encoder = AutoModel.from_pretrained(folder, **options)
model = AutoModelForImageClassification.from_pretrained(folder, **options)
processor = AutoImageProcessor.from_pretrained(folder, **options)
assert config.model_type == "vit_mnist" and config.id2label[7] == "7"
assert type(encoder).__name__ == "VitMnistModel" and type(model).__name__ == "VitMnistForImageClassification"
assert type(processor).__name__ == "VitMnistImageProcessor"
assert processor(torch.zeros(28, 28), return_tensors="pt").pixel_values.shape == (1, 1, 28, 28)
torch.testing.assert_close(model(torch.ones(1, 1, 28, 28)).logits, torch.tensor({logits}))
assert encoder(torch.ones(1, 1, 28, 28)).pooler_output.shape == (1, 8)
print("loaded", type(model).__module__)
"""


def in_a_fresh_process(code: str, cwd) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=300)


def test_loads_with_the_package_and_no_flag(saved, tmp_path):
    folder, logits = saved
    code = LOAD_ALL.format(
        setup=f"sys.path.insert(0, {str(ROOT)!r}); import modeling_vit_mnist",
        folder=str(folder), options={}, logits=logits.tolist(),
    )  # fmt: skip
    done = in_a_fresh_process(code, tmp_path)
    assert "loaded modeling_vit_mnist.modeling_vit_mnist" in done.stdout, done.stderr


def test_loads_without_the_package_by_trust_remote_code(saved, tmp_path):
    folder, logits = saved
    code = LOAD_ALL.format(
        setup="sys.modules['modeling_vit_mnist'] = None  # importing it now fails",
        folder=str(folder), options={"trust_remote_code": True}, logits=logits.tolist(),
    )  # fmt: skip
    done = in_a_fresh_process(code, tmp_path)
    assert "loaded transformers_modules." in done.stdout, done.stderr


def test_importing_the_package_is_cheap(tmp_path):
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification, PreTrainedModel
from transformers.image_processing_backends import PilBackend
base = set(sys.modules)
import modeling_vit_mnist
heavy = {{"datasets", "evaluate", "matplotlib", "sklearn", "pandas", "accelerate"}}
print("more than transformers' base:", *heavy & (set(sys.modules) - base))
"""
    done = in_a_fresh_process(code, tmp_path)
    assert done.stdout.strip() == "more than transformers' base:", done.stdout + done.stderr


def test_saving_again_what_was_loaded_as_remote_code_stays_complete(saved, tmp_path):
    folder, _ = saved
    code = f"""
import sys
sys.modules["modeling_vit_mnist"] = None
from transformers import AutoImageProcessor, AutoModelForImageClassification
for auto in (AutoModelForImageClassification, AutoImageProcessor):
    auto.from_pretrained({str(folder)!r}, trust_remote_code=True).save_pretrained({str(tmp_path / "again")!r})
"""
    done = in_a_fresh_process(code, tmp_path)
    assert done.returncode == 0, done.stderr
    again = tmp_path / "again"
    assert {path.name for path in again.iterdir()} >= {
        "model.safetensors", "config.json", "preprocessor_config.json", "configuration_vit_mnist.py",
        "modeling_vit_mnist.py", "image_processing_vit_mnist.py",
    }  # fmt: skip
    maps = [json.loads((path / "config.json").read_text())["auto_map"] for path in (folder, again)]
    assert maps[0] == maps[1] and len(maps[0]) == 4


def break_checkpoint(folder, kind):
    weights = folder / "model.safetensors"
    if kind == "no weights":
        weights.unlink()
    elif kind == "no config":
        (folder / "config.json").unlink()
    elif kind == "another model":
        (folder / "config.json").write_text('{"model_type": "bert"}')
    elif kind == "torn config":
        (folder / "config.json").write_text('{"model_type": ')
    elif kind == "torn weights":
        weights.write_bytes(weights.read_bytes()[:2000])
    elif kind == "other weights":
        save_file({"a": torch.zeros(1)}, weights, metadata={"format": "pt"})
    elif kind == "one weight less":
        state = load_file(weights)
        del state["vit.norm.weight"]
        save_file(state, weights, metadata={"format": "pt"})
    elif kind == "other shapes":
        state = load_file(weights)
        state["head.weight"] = torch.zeros(26, 8)
        save_file(state, weights, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("no weights", "holds no weights: model.safetensors is missing"),
        ("no config", "holds no checkpoint: config.json is missing"),
        ("another model", "holds a model of type 'bert', not 'vit_mnist'"),
        ("torn config", "cannot be read"),
        ("torn weights", "cannot be read"),
        ("other weights", "are not this model's: .* and 31 more are missing"),
        ("one weight less", "are not this model's: vit.norm.weight is missing"),
        ("other shapes", "cannot be read"),
    ],
)
def test_what_is_no_checkpoint_gets_one_line(saved, tmp_path, kind, says, run_script):
    folder = tmp_path / "broken"
    folder.mkdir()
    for path in saved[0].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    break_checkpoint(folder, kind)
    with pytest.raises(InputError, match=says):
        hub.load_checkpoint(folder)
    done = run_script("run_inference.py", "--model", folder)
    assert done.code == 2
    assert len([line for line in done.err.splitlines() if line.startswith("error: ")]) == 1


def test_a_hub_id_that_cannot_be_reached_is_a_failure(run_script):
    done = run_script("run_inference.py", "--model", "someone/vit-mnist")
    assert done.code == 1
    assert "someone/vit-mnist is no folder here and cannot be had from the Hub" in done.err


@pytest.mark.parametrize(
    ("name", "parameters"), [("vit-mnist-tiny", 1850), ("vit-mnist-best", 1850), ("vit-mnist-small", 58_402)]
)
def test_kept_checkpoints_are_complete_and_of_this_code(name, parameters):
    folder = ROOT / name
    assert hub.load_checkpoint(folder)[0].num_parameters() == parameters
    for name in ("configuration", "modeling", "image_processing"):
        file = f"{name}_vit_mnist.py"
        assert (folder / file).read_text() == (ROOT / "modeling_vit_mnist" / file).read_text(), f"copy {file} again"
    results = json.loads((folder / "all_results.json").read_text())
    assert results["dataset"] == "ylecun/mnist" and results["test_samples"] == 10_000
    assert f"**{100 * results['test_accuracy']:.2f} %**" in (folder / "README.md").read_text()
    assert not list(folder.glob("*.bin")) and not list(folder.glob("*.pt"))


@pytest.mark.parametrize("name", ["vit-mnist-tiny", "vit-mnist-best", "vit-mnist-small"])
def test_kept_cards_are_of_this_template(name, tmp_path):
    shutil.copytree(ROOT / name, tmp_path / name)
    hub.write_card(tmp_path / name)
    for file in ("README.md", ".eval_results/mnist.yaml"):
        again = (tmp_path / name / file).read_text()
        assert (ROOT / name / file).read_text() == again, f"hub.write_card({name!r}) writes {file} anew"
    card, results = (
        ModelCard.load(ROOT / name / "README.md"),
        json.loads((ROOT / name / "all_results.json").read_text()),
    )
    (entry,) = parse_eval_result_entries(yaml.safe_load((ROOT / name / ".eval_results" / "mnist.yaml").read_text()))
    assert (entry.dataset_id, entry.task_id, entry.date) == ("ylecun/mnist", "mnist", results["ended_at"][:10])
    assert entry.value == card.data.eval_results[0].metric_value == round(results["test_accuracy"], 4)


@pytest.mark.parametrize("name", ["vit-mnist-tiny", "vit-mnist-best", "vit-mnist-small"])
def test_kept_checkpoints_read_the_digits_of_their_widget(name):
    model, processor = hub.load_checkpoint(ROOT / name)
    widget = ModelCard.load(ROOT / name / "README.md").data.widget
    assert len(widget) == 3
    for example in widget:
        label = model(**processor(str(ROOT / name / example["src"]), return_tensors="pt")).logits.argmax().item()
        assert example == {"src": f"digit-{label}.png", "example_title": f"A drawn {label}"}


RESULTS = {
    "dataset": "ylecun/mnist", "parameters": 1850, "epoch": 3, "best_epoch": 2.0, "train_samples": 55000,
    "validation_samples": 5000, "test_samples": 10000, "eval_loss": 0.2, "eval_accuracy": 0.95, "test_loss": 0.19,
    "test_accuracy": 0.9512, "test_macro_f1": 0.95, "test_per_class_accuracy": [0.9] * 9 + [None],
    "test_confusion_matrix": [[0] * 10] * 10, "test_expected_calibration_error": 0.01, "train_loss": 0.3,
    "train_runtime": 60.0, "duration": 70.0, "ended_at": "2026-01-01 00:00:00", "device": "cpu, 2 threads",
    "versions": {"torch": "2.13.0"},
}  # fmt: skip


def describe(folder) -> dict:
    return {
        "model": json.loads((folder / "config.json").read_text()),
        "data": {"source": "ylecun/mnist"},
        "training": {"seed": 0},
    }


@pytest.fixture
def finished(saved, tmp_path):
    """A folder with the records of a finished run, and with what must stay in it."""
    folder = tmp_path / "run"
    shutil.copytree(saved[0], folder)
    (folder / "run.json").write_text(json.dumps(describe(folder)))
    (folder / "all_results.json").write_text(json.dumps(RESULTS))
    hub.write_card(folder)
    for name in ("checkpoint-1/optimizer.pt", "checkpoint-1/config.json", "checkpoint-1/README.md", "optimizer.pt",
                 "training_args.bin", "trainer_state.json", "runs/events.out.tfevents.1", "runs/log.json", ".env",
                 "token.json", "train.log", "notes.py", ".git/config", "README.md.orig"):  # fmt: skip
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("private")
    return folder


def test_card_is_filled_and_its_metadata_complete(saved):
    card = hub.fill_card(describe(saved[0]), RESULTS)
    _, header, body = card.split("---\n", 2)
    data = yaml.safe_load(header)
    assert (data["pipeline_tag"], data["library_name"], data["license"]) == (
        "image-classification",
        "transformers",
        "mit",
    )
    assert data["datasets"] == ["ylecun/mnist"] and "accuracy" in data["metrics"]
    measured = data["model-index"][0]["results"][0]
    assert measured["dataset"]["split"] == "test" and measured["metrics"][0]["value"] == 0.9512
    assert "95.12" in body and "1,850" in body
    assert not re.search(r"\{\{|\}\}|\{%|None|Undefined", body)


def test_card_of_other_classes_offers_no_digits(saved, tmp_path):
    run = describe(saved[0])
    run["model"]["id2label"] = {"0": "cat", "1": "dog"}
    assert ModelCard(hub.fill_card(run, RESULTS)).data.get("widget") is None
    hub.draw_examples(tmp_path, ["cat", "dog"])
    assert not list(tmp_path.iterdir())


def test_measurements_enter_the_card(finished, tmp_path):
    with pytest.raises(InputError, match="holds no finished run"):
        hub.add_measurement(tmp_path, "seeds", {})
    assert not (tmp_path / "seeds.json").exists()
    (finished / ".eval_results" / "mnist.yaml").unlink()
    seeds = {"n": 5, "test_mean": 96.5, "test_std": 0.25, "test_lowest": 96.1, "test_highest": 96.8}
    hub.add_measurement(finished, "seeds", seeds)
    hub.add_measurement(finished, "robustness", {"accuracy": {"blur": {"1 pixel": 0.912, "2 pixels": 0.5}}})
    card = (finished / "README.md").read_text()
    assert "over 5 seeds: test accuracy\n96.50 ± 0.25 %" in card
    assert "| blur | 1 pixel: 91.2 | 2 pixels: 50.0 |" in card
    assert json.loads((finished / "seeds.json").read_text()) == seeds
    (entry,) = yaml.safe_load((finished / ".eval_results" / "mnist.yaml").read_text())
    assert entry == {
        "dataset": {"id": "ylecun/mnist", "task_id": "mnist"}, "value": 0.9512, "date": "2026-01-01",
        "notes": "accuracy on the 10,000 images of the test split",
    }  # fmt: skip


def test_card_of_the_sample_says_so(saved):
    results = RESULTS | {"dataset": "mnist-5k"}
    card = hub.fill_card(describe(saved[0]), results)
    assert "kept sample" in card
    assert "datasets" not in yaml.safe_load(card.split("---\n", 2)[1])
    assert hub.fill_eval_results(results) == {}


def test_python_snippets_of_the_card_run(tmp_path):
    """As they stand in the card of a kept checkpoint, in fresh processes: with the package, and without it."""
    folder = ROOT / "vit-mnist-tiny"
    shutil.copy(folder / "digit-7.png", tmp_path / "digit.png")
    card = (folder / "README.md").read_text().replace("path/or/hub-id", str(folder))
    with_package, without = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    setup = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    done = in_a_fresh_process(f"{setup}{with_package}\nprint(type(model), type(processor))", tmp_path)
    assert "modeling_vit_mnist.VitMnistForImageClassification" in done.stdout, done.stderr
    without = without.replace("classify(", "print(classify(").replace('"digit.png")', '"digit.png"))')
    done = in_a_fresh_process(f"import sys; sys.modules['modeling_vit_mnist'] = None\n{without}", tmp_path)
    assert done.stdout.startswith("[{'label': '7', 'score': 0.99"), done.stdout + done.stderr


def test_push_and_pull(saved, tmp_path):
    """Train with --push_to_hub against a Hub on this machine; load what it got in a process without the package."""
    with loopback_hub() as (endpoint, repositories):
        online = {
            "HF_ENDPOINT": endpoint,
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": "hf_dummy",
            "HF_HOME": str(tmp_path / "hf"),
        }
        done = subprocess.run(
            [
                sys.executable, "run_train.py", "--dataset_name", str(ROOT / "data" / "mnist-5k"), "--output_dir",
                str(tmp_path / "run"), "--max_steps", "2", "--keep_checkpoints", "--save_strategy", "steps",
                "--save_steps", "1", "--load_best_model_at_end", "False", "--push_to_hub", "--push_sample_model",
                "--hub_model_id", "me/vit-mnist",
            ],
            cwd=ROOT, env=os.environ | online, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert f"Pushed to {endpoint}/me/vit-mnist" in done.stdout, done.stderr
        assert list((tmp_path / "run").glob("checkpoint-*/optimizer.pt"))
        files = {path.name for path in (tmp_path / "run").iterdir() if path.is_file()}
        assert set(repositories["me/vit-mnist"]) == files
        assert str(tmp_path).encode() not in b"".join(repositories["me/vit-mnist"].values())

        logits = hub.load_checkpoint(tmp_path / "run")[0](torch.ones(1, 1, 28, 28)).logits.tolist()
        code = LOAD_ALL.format(
            setup="sys.modules['modeling_vit_mnist'] = None", folder="me/vit-mnist",
            options={"trust_remote_code": True, "revision": "c" * 40}, logits=logits,
        )  # fmt: skip
        pulled = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=os.environ | online, capture_output=True, text=True
        )
        assert "loaded transformers_modules." in pulled.stdout, pulled.stderr
