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
from huggingface_hub import ModelCard, constants, parse_eval_result_entries
from safetensors.torch import load_file, save_file

from modeling_vit_mnist import VitMnistConfig, VitMnistForImageClassification, VitMnistImageProcessor, hub
from modeling_vit_mnist.errors import InputError

from .conftest import ROOT
from .loopback_hub import TOKEN, loopback_hub


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
        "modeling_vit_mnist.py", "image_processing_vit_mnist.py", "frames_vit_mnist.py",
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
    for images in ([], ["--image", saved[0] / "digit-7.png"]):
        done = run_script("run_inference.py", "--model", folder, *images)
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
    for name in ("configuration", "modeling", "image_processing", "frames"):
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
        (folder / name).write_text(f"private {TOKEN}")
    return folder


PUSHED = {
    "config.json", "model.safetensors", "preprocessor_config.json", "configuration_vit_mnist.py",
    "modeling_vit_mnist.py", "image_processing_vit_mnist.py", "frames_vit_mnist.py", "README.md", "run.json",
    "all_results.json", ".eval_results/mnist.yaml", "digit-2.png", "digit-4.png", "digit-7.png",
}  # fmt: skip


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


def test_card_is_validated_as_the_hub_does(finished, server):
    card = ModelCard.load(finished / "README.md")
    card.validate()
    assert [result.metric_type for result in card.data.eval_results] == ["accuracy", "f1", "loss"]
    assert {example["src"] for example in card.data.widget} <= PUSHED


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


def test_card_of_other_images_does_not_speak_of_digits(saved):
    """A folder that is neither MNIST nor the sample, and a Hub id that is not MNIST's."""
    for dataset in ("fashion-mnist", "them/fashion_mnist"):
        card = hub.fill_card(describe(saved[0]), RESULTS | {"dataset": dataset})
        assert "kept sample" not in card and "handwritten" not in card and "name: MNIST" not in card
        assert f"images of\n{dataset}" in card
        limits = card.partition("## Limits")[2]
        assert f"images like those of {dataset}" in limits and "digit" not in limits and "MNIST" not in limits


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


@pytest.fixture
def server(monkeypatch):
    """A Hub on this machine that this process takes for the Hub. `server.waits`: seconds that were to be slept."""
    with loopback_hub() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        running.waits = []
        monkeypatch.setattr("time.sleep", running.waits.append)
        yield running


def test_push_uploads_what_a_checkpoint_needs_and_no_more(finished, server):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    assert hub.push(finished, "me/vit-mnist") == f"{server.endpoint}/me/vit-mnist"
    files = server.files("me/vit-mnist")
    del files[".gitattributes"]
    assert files == {name: (finished / name).read_bytes() for name in PUSHED}
    assert TOKEN.encode() not in b"".join(files.values())
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_pushing_again_commits_what_has_changed_only(finished, server):
    hub.push(finished, "vit-mnist")  # in the namespace of the token
    hub.push(finished, "me/vit-mnist")
    assert len(server.repositories["me/vit-mnist"]) == 2  # that of an empty repository, and one
    hub.add_measurement(finished, "robustness", {"accuracy": {"blur": {"1 pixel": 0.912}}})
    hub.push(finished, "me/vit-mnist")
    assert len(server.repositories["me/vit-mnist"]) == 3
    assert b"1 pixel" in server.files("me/vit-mnist")["README.md"]


@pytest.mark.parametrize("xet", [True, False])
@pytest.mark.parametrize(
    "failures",
    [
        [("repos/create", 429)],
        [("repos/create", 500), ("repos/create", 503)],
        [("repos/create", "cut")],
        [("repos/create", "lost")],
        [("validate-yaml", 502)],
        [("preupload", 429), ("preupload", "cut")],
        [("commit", 500), ("commit", 429)],
        [("commit", "cut")],
        [("commit", "lost")],
        [("GET /api/models", 504), ("repos/create", "lost")],
    ],
    ids=str,
)
def test_failures_that_pass_are_waited_for(finished, server, monkeypatch, failures, xet):
    """The end is always the same: one commit with every file. Without hf_xet, huggingface_hub repeats less."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", not xet)
    server.failures += failures
    hub.push(finished, "me/vit-mnist")
    assert not server.failures and server.waits and sum(server.waits) <= sum(hub.RETRY_WAITS)
    assert server.files("me/vit-mnist").keys() == PUSHED | {".gitattributes"}
    assert len(server.repositories["me/vit-mnist"]) == 2


@pytest.mark.parametrize(("failure", "says"), [(500, "the Hub answered 500"), ("cut", "disconnected|reset|closed")])
def test_a_push_that_fails_for_good_can_be_repeated(finished, server, failure, says):
    server.failures += [("repos/create", failure)] * 3
    with pytest.raises(ConnectionError, match=rf"(?s)me/vit-mnist failed: .*({says}).*complete in .*run: the same"):
        hub.push(finished, "me/vit-mnist")
    assert server.waits == list(hub.RETRY_WAITS) and not server.repositories
    hub.push(finished, "me/vit-mnist")
    assert server.files("me/vit-mnist").keys() > PUSHED


@pytest.mark.parametrize("token", [None, "hf_expired"])
def test_a_token_that_is_missing_or_wrong_is_said(finished, server, monkeypatch, token):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(InputError, match=r"me/vit-mnist needs a valid token \(401\): run `hf auth login`") as raised:
        hub.push(finished, "me/vit-mnist", token=token)
    assert "hf_expired" not in str(raised.value) and "\n" not in str(raised.value)
    assert server.waits == []


@pytest.mark.parametrize("exists", [False, True])
def test_a_namespace_of_others_is_said(finished, server, exists):
    if exists:
        server.commit("them/vit-mnist", {})
    with pytest.raises(InputError, match=r"no right to push to them/vit-mnist \(403\): pass .* --hub_model_id"):
        hub.push(finished, "them/vit-mnist")
    assert server.waits == []


def test_offline_is_said(finished):
    with pytest.raises(ConnectionError, match=r"me/vit-mnist failed: .*HF_HUB_OFFLINE.*\. The checkpoint is complete"):
        hub.push(finished, "me/vit-mnist")


@pytest.mark.parametrize("name", ["them/me/vit-mnist", "vit mnist"])
def test_impossible_names_are_refused_before_the_training(finished, name, tmp_path, run_script):
    with pytest.raises(InputError, match="Repo id must"):
        hub.push(finished, name)
    done = run_script("run_train.py", "--push_to_hub", "--hub_model_id", name, "--output_dir", tmp_path / "new")
    assert done.code == 2 and "error: Repo id must" in done.err and not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", sorted(hub.CHECKPOINT_FILES))
def test_an_incomplete_folder_is_not_pushed(finished, server, name):
    (finished / name).unlink()
    with pytest.raises(InputError, match=f"no complete checkpoint: {name} is missing"):
        hub.push(finished, "me/vit-mnist")
    assert not server.requests


def test_a_model_of_the_kept_sample_is_pushed_on_demand_only(finished, server):
    run = describe(finished) | {"data": {"source": "mnist-5k"}}
    (finished / "run.json").write_text(json.dumps(run))
    with pytest.raises(InputError, match=r"kept sample.*--push_sample_model"):
        hub.push(finished, "me/vit-mnist")
    assert not server.requests
    hub.push(finished, "me/vit-mnist", allow_sample=True)
    assert server.files("me/vit-mnist")


def test_a_card_that_the_hub_rejects_is_said(finished, server):
    (finished / "README.md").write_text("---\nmodel-index: 5\n---\n")
    with pytest.raises(InputError, match=r"Invalid metadata in README\.md"):
        hub.push(finished, "me/vit-mnist")


def test_a_finished_run_is_pushed_by_the_same_command(server, tmp_path, run_script):
    """Where the push fails after the training, nothing is lost; and no path of this machine gets to the Hub."""
    shutil.copytree(ROOT / "data" / "mnist-5k", tmp_path / "digits")
    (tmp_path / "recipe.yaml").write_text("optim: adam\nmax_steps: 2\nsave_strategy: steps\nsave_steps: 1\n")
    command = [
        "run_train.py", "--recipe", tmp_path / "recipe.yaml", "--dataset_name", tmp_path / "digits", "--output_dir",
        tmp_path / "run", "--keep_checkpoints", "--model_name_or_path", ROOT / "vit-mnist-tiny", "--hub_model_id",
        "me/vit-mnist",
    ]  # fmt: skip
    server.failures += [("repos/create", 500)] * 3
    done = run_script(*command, "--push_to_hub")
    assert done.code == 1 and f"complete in {tmp_path / 'run'}" in done.err.splitlines()[-1], done.err
    weights = (tmp_path / "run" / "model.safetensors").read_bytes()
    done = run_script(*command, "--push_to_hub", "--hub_token", "hf_expired")
    assert done.code == 2 and "(401)" in done.err.splitlines()[-1] and "hf_expired" not in done.out + done.err
    assert "already finished" in run_script(*command).out and not server.repositories

    done = run_script(*command, "--push_to_hub")
    assert f"Pushed to {server.endpoint}/me/vit-mnist" in done.out and "already finished" in done.out, done.err
    files = server.files("me/vit-mnist")
    assert files["model.safetensors"] == weights
    assert list((tmp_path / "run").glob("checkpoint-*/optimizer.pt"))
    assert set(files) == PUSHED - {".eval_results/mnist.yaml"} | {"history.json", ".gitattributes"}
    everything = b"".join(files.values())
    for private in (tmp_path, ROOT, os.path.expanduser("~"), os.getcwd(), TOKEN):
        assert len(str(private)) < 5 or str(private).encode() not in everything, private


def test_pull_of_a_pinned_revision_in_a_fresh_process(saved, finished, server, tmp_path):
    hub.push(finished, "me/vit-mnist")
    first = server.head("me/vit-mnist")
    model, processor = hub.load_checkpoint(finished)
    with torch.no_grad():
        model.head.bias.add_(torch.arange(10.0))
    better = hub.fill_eval_results(RESULTS | {"test_accuracy": 0.97})
    hub.save_checkpoint(finished, model, processor, card="# card", records=better)
    hub.push(finished, "me/vit-mnist")
    assert yaml.safe_load(server.files("me/vit-mnist")[".eval_results/mnist.yaml"])[0]["value"] == 0.97
    online = {"HF_ENDPOINT": server.endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf")}
    code = ""
    for revision, logits in ((first, saved[1]), ("main", saved[1] + torch.arange(10.0))):
        code += LOAD_ALL.format(
            setup="sys.modules['modeling_vit_mnist'] = None", folder="me/vit-mnist",
            options={"trust_remote_code": True, "revision": revision}, logits=logits.tolist(),
        )  # fmt: skip
    pulled = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | online,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert pulled.stdout.count("loaded transformers_modules.") == 2, pulled.stderr
