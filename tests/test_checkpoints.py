"""Checkpoint folders: saved, loaded with and without the package, broken ones, and model cards."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForImageClassification

from modeling_vit_mnist import VitMnistConfig, VitMnistForImageClassification, VitMnistImageProcessor
from modeling_vit_mnist.checkpoints import card
from modeling_vit_mnist.checkpoints.folder import CODE_FILES, draw_examples, load_checkpoint, save_checkpoint
from modeling_vit_mnist.cli.errors import UsageError

from .conftest import ROOT, SAMPLE, TINY, weights

BUNDLED = ["vit-mnist-tiny", "vit-mnist-best", "vit-mnist-small"]
RESULTS = {
    "dataset": "ylecun/mnist", "parameters": 1850, "epoch": 3, "best_epoch": 2.0, "train_samples": 55000,
    "validation_samples": 5000, "test_samples": 10000, "eval_loss": 0.2, "eval_accuracy": 0.95, "test_loss": 0.19,
    "test_accuracy": 0.9512, "test_macro_f1": 0.95, "test_per_class_accuracy": [0.9] * 9 + [None],
    "test_confusion_matrix": [[0] * 10] * 10, "test_expected_calibration_error": 0.01, "train_loss": 0.3,
    "train_runtime": 60.0, "duration": 70.0, "ended_at": "2026-01-01 00:00:00", "device": "cpu, 2 threads",
    "versions": {"torch": "2.13.0"},
}  # fmt: skip


def save_new(folder) -> torch.Tensor:
    """Save a new network as a complete checkpoint. Returns its logits for an image of ones."""
    torch.manual_seed(0)
    model = VitMnistForImageClassification(VitMnistConfig()).eval()
    save_checkpoint(folder, model, VitMnistImageProcessor(), card="# card", records={"all_results.json": {}})
    return model(torch.ones(1, 1, 28, 28)).logits.detach()


def describe(folder) -> dict:
    """The content of `run.json` for the network in a folder."""
    config = json.loads((folder / "config.json").read_text())
    return {"model": config, "data": {"source": "ylecun/mnist"}, "training": {"seed": 0}}


def add_records(folder) -> None:
    """Add the records and the card of a finished run to a checkpoint."""
    (folder / "run.json").write_text(json.dumps(describe(folder)))
    (folder / "all_results.json").write_text(json.dumps(RESULTS))
    card.renew(folder)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A complete checkpoint, and the logits of its model for an image of ones."""
    folder = tmp_path_factory.mktemp("checkpoints") / "vit-mnist.v1"
    return folder, save_new(folder)


@pytest.fixture
def finished(saved, tmp_path):
    """A checkpoint with the records of a finished run."""
    folder = shutil.copytree(saved[0], tmp_path / "run")
    add_records(folder)
    return folder


# Loads everything in `folder` by the Auto classes.
LOAD_ALL = """
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
SETUP = """
import sys, torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline
from transformers.image_processing_backends import PilBackend
before = set(sys.modules)
"""


def run_python(code: str, folder, env=None) -> str:
    """The output of a program in a fresh process."""
    command = [sys.executable, "-c", SETUP + code]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def snippets_of_the_card(folder) -> list[str]:
    """The card's two programs: with the package, and without it."""
    shutil.copy(TINY / "digit-7.png", folder / "digit.png")
    readme = (TINY / "README.md").read_text().replace("path/or/hub-id", str(TINY))
    return re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)


def test_with_the_package(saved, tmp_path):
    """Importing it is cheap, checkpoints load without a flag, and the card's program runs."""
    folder, logits = saved
    load_all = LOAD_ALL.format(folder=str(folder), options={}, logits=logits.tolist())
    code = f"""
sys.path.insert(0, {str(ROOT)!r})
import modeling_vit_mnist
heavy = {{"datasets", "evaluate", "matplotlib", "sklearn", "pandas", "accelerate"}}
print("heavy:", *heavy & set(sys.modules) - before)
{load_all}
{snippets_of_the_card(tmp_path)[0]}
print(type(model), type(processor))
"""
    heavy, loaded, classes = run_python(code, tmp_path).splitlines()
    assert heavy == "heavy:" and loaded == "loaded modeling_vit_mnist.modeling_vit_mnist"
    assert "modeling_vit_mnist.VitMnistForImageClassification" in classes and "VitMnistImageProcessor" in classes


def test_without_the_package(saved, tmp_path):
    """Checkpoints load by `trust_remote_code`, can be saved again completely, and the card's program runs."""
    folder, logits = saved
    again = tmp_path / "again"
    load_all = LOAD_ALL.format(folder=str(folder), options={"trust_remote_code": True}, logits=logits.tolist())
    snippet = snippets_of_the_card(tmp_path)[1].replace("classify(", "print(classify(")
    code = f"""
sys.modules["modeling_vit_mnist"] = None  # importing it now fails
{load_all}
model.save_pretrained({str(again)!r})
processor.save_pretrained({str(again)!r})
{snippet.replace('"digit.png")', '"digit.png"))')}
"""
    loaded, answer = run_python(code, tmp_path).splitlines()
    assert loaded.startswith("loaded transformers_modules.")
    assert answer.startswith("[{'label': '7', 'score': 0.99")
    files = {"model.safetensors", "config.json", "preprocessor_config.json", *CODE_FILES}
    assert {path.name for path in again.iterdir()} >= files
    maps = [json.loads((path / "config.json").read_text())["auto_map"] for path in (folder, again)]
    assert maps[0] == maps[1] and len(maps[0]) == 4


def without_norm(state: dict) -> dict:
    return {name: tensor for name, tensor in state.items() if name != "vit.norm.weight"}


def changed(**values):
    """A change of some entries of a file."""
    return lambda record: record | values


UNREADABLE = "Cannot read the checkpoint in"
PROCESSOR = "preprocessor_config.json"
MISMATCH = "do not match this model: "


def test_a_network_of_three_channels_is_refused(tmp_path):
    VitMnistForImageClassification(VitMnistConfig(num_channels=3)).save_pretrained(tmp_path)
    VitMnistImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="its processor makes images of one channel, the model takes 3"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("model.safetensors", None, "holds no weights: model.safetensors is missing"),
        ("config.json", None, "holds no checkpoint: config.json is missing"),
        ("config.json", b'{"model_type": "bert"}', "holds a model of type 'bert', not 'vit_mnist'"),
        ("config.json", b'{"model_type": ', UNREADABLE),
        ("model.safetensors", (20_000).to_bytes(8, "little") + b"{", UNREADABLE),
        ("model.safetensors", lambda state: {"a": torch.zeros(1)}, MISMATCH + "32 missing, such as head.bias"),
        ("model.safetensors", without_norm, MISMATCH + "1 missing, such as vit.norm.weight"),
        (
            "model.safetensors",
            changed(**{"head.weight": torch.zeros(26, 8)}),
            r"head.weight has .* \(26, 8\), not \(10, 8\)",
        ),
        ("config.json", changed(image_size=35), r"vit.pos_embed has the shape \(1, 17, 8\), not \(1, 26, 8\)"),
        ("config.json", changed(id2label=["0"]), UNREADABLE),
        ("config.json", changed(mlp_ratio="2"), UNREADABLE),
        ("config.json", changed(dtype="foo"), UNREADABLE),
        ("config.json", changed(problem_type="bogus"), "only single-label .* got problem_type='bogus'"),
        ("model.safetensors", changed(**{"head.bias": torch.full((10,), torch.nan)}), "head.bias holds weights"),
        ("model.safetensors", changed(**{"head.bias": torch.full((10,), torch.inf)}), "head.bias holds weights"),
        ("model.safetensors", changed(**{"vit.blocks.2.norm1.bias": torch.zeros(8)}), MISMATCH + "1 left over"),
        (
            "model.safetensors",
            lambda state: {n: (9 * t).to(torch.int8) for n, t in state.items()},
            "of type torch.int8",
        ),
        (
            "model.safetensors",
            lambda state: {n: t.to(torch.float8_e5m2) for n, t in state.items()},
            "of type torch.float8_e5m2",
        ),
        ("config.json", changed(num_hidden_layers=1), MISMATCH + "12 left over"),
        ("config.json", b"[1]", "holds a model of type None"),
        (PROCESSOR, b"{", UNREADABLE),
        (PROCESSOR, b"null", "preprocessor_config.json holds no JSON object"),
        (PROCESSOR, b"[1]", "holds a processor of type None"),
        (PROCESSOR, changed(image_processor_type="ViTImageProcessor"), "a processor of type 'ViTImageProcessor'"),
        (PROCESSOR, changed(image_std=[0.0]), r"image_std must be .* got \(0\.0,\)"),
        (PROCESSOR, changed(image_std=-0.3), r"image_std must be .* got \(-0\.3,\)"),
        (PROCESSOR, changed(image_std=float("nan")), r"image_std must be .* got \(nan,\)"),
        (PROCESSOR, changed(image_mean="dark"), "image_mean must be .*dark"),
        (PROCESSOR, changed(image_mean=[0.1, 0.2, 0.3]), "image_mean must be .* the same for all channels"),
        (PROCESSOR, changed(rescale_factor=0), "rescale_factor must be .* got 0"),
        (PROCESSOR, changed(size={"height": 32, "width": 32}), "makes images of 32x32, the model takes 28x28"),
        (PROCESSOR, changed(size={"shortest_edge": 28}), "size must be a height and a width"),
        (PROCESSOR, changed(do_rescale=False, do_normalize=False), "its processor neither rescales nor normalizes"),
    ],
)
def test_broken_checkpoints_give_a_one_line_error(saved, tmp_path, file, change, message, run_script):
    folder = shutil.copytree(saved[0], tmp_path / "broken")
    if callable(change) and file.endswith(".json"):
        (folder / file).write_text(json.dumps(change(json.loads((folder / file).read_text()))))
    elif callable(change):
        save_file(change(weights(folder)), folder / file, metadata={"format": "pt"})
    elif change is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(change)
    with pytest.raises(UsageError, match=message):
        load_checkpoint(folder)
    for images in ([], ["--image", saved[0] / "digit-7.png"]):
        done = run_script("run_inference.py", "--model", folder, *images)
        assert done.code == 2
        assert len([line for line in done.err.splitlines() if line.startswith("error: ")]) == 1
        assert "LOAD REPORT" not in done.err


@pytest.mark.parametrize("split", [True, False])
def test_integer_weights_are_refused_in_any_file(saved, tmp_path, split):
    """In one of several files, and in a file that the config names."""
    folder = shutil.copytree(saved[0], tmp_path / "int8")
    if split:
        load_checkpoint(folder)[0].save_pretrained(folder, max_shard_size="2KB")
        (folder / "model.safetensors").unlink()
        path = max(folder.glob("model-*.safetensors"))
    else:
        config = json.loads((folder / "config.json").read_text()) | {"transformers_weights": "other.safetensors"}
        (folder / "config.json").write_text(json.dumps(config))
        path = shutil.copy(folder / "model.safetensors", folder / "other.safetensors")
    load_checkpoint(folder)
    save_file({name: (40 * tensor).to(torch.int8) for name, tensor in load_file(path).items()}, path)
    with pytest.raises(UsageError, match=r"of type torch\.int8"):
        load_checkpoint(folder)


@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForImageClassification])
@pytest.mark.parametrize(
    "change",
    [
        lambda weight: (10 * weight).to(torch.int8), lambda weight: weight.to(torch.float8_e4m3fn),
        lambda weight: weight.to(torch.complex64), lambda weight: weight / 0, lambda weight: weight * torch.nan,
    ],
)  # fmt: skip
@pytest.mark.parametrize("is_sharded", [False, True])
def test_from_pretrained_refuses_weights_that_it_would_cast_or_that_are_not_finite(
    saved, tmp_path, change, is_sharded, auto_class
):
    shutil.copytree(saved[0], tmp_path / "x")
    if is_sharded:
        AutoModelForImageClassification.from_pretrained(saved[0]).save_pretrained(tmp_path / "x", max_shard_size=3000)
        (tmp_path / "x" / "model.safetensors").unlink(missing_ok=True)
    file = max((tmp_path / "x").glob("*.safetensors"))
    state = load_file(file)
    name = max(state)
    save_file(state | {name: change(state[name])}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"{name} holds weights that are not finite floats .*torch.*{file.name}"):
        auto_class.from_pretrained(tmp_path / "x")


@pytest.mark.parametrize("change", [lambda weight: (10 * weight).to(torch.int8), lambda weight: weight * torch.nan])
def test_from_pretrained_refuses_such_weights_in_files_of_torch_too(saved, tmp_path, change):
    shutil.copytree(saved[0], tmp_path / "x")
    state = load_file(tmp_path / "x" / "model.safetensors")
    torch.save(state, tmp_path / "x" / "pytorch_model.bin")
    (tmp_path / "x" / "model.safetensors").unlink()
    AutoModelForImageClassification.from_pretrained(tmp_path / "x")
    torch.save(state | {"head.bias": change(state["head.bias"])}, tmp_path / "x" / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"head\.bias holds weights that are not finite floats .*pytorch_model\.bin"):
        AutoModelForImageClassification.from_pretrained(tmp_path / "x")


@pytest.mark.parametrize("name", ["return_dict", "output_hidden_states"])
def test_what_the_config_says_about_outputs_does_not_stop_the_scripts(saved, tmp_path, name, run_script):
    folder = shutil.copytree(saved[0], tmp_path / "outputs")
    config = json.loads((folder / "config.json").read_text()) | {name: name != "return_dict"}
    (folder / "config.json").write_text(json.dumps(config))
    expected = run_script("run_inference.py", "--model", saved[0], "--image", TINY / "digit-7.png")
    done = run_script("run_inference.py", "--model", folder, "--image", TINY / "digit-7.png")
    assert done.code == 0 and done.out.splitlines()[0] == expected.out.splitlines()[0], done.err


def test_a_checkpoint_without_a_processor_gets_the_default_one(saved, tmp_path, caplog):
    folder = shutil.copytree(saved[0], tmp_path / "bare")
    (folder / PROCESSOR).unlink()
    assert load_checkpoint(folder)[1].to_dict() == VitMnistImageProcessor().to_dict()
    assert "has no preprocessor_config.json: using MNIST's mean" in caplog.text


def test_newly_initialized_weights_are_named(saved, caplog):
    model, _ = load_checkpoint(saved[0], ignore_mismatched_sizes=True, num_labels=3)
    assert model.head.weight.shape == (3, 8)
    assert "differ: head.bias, head.weight." in caplog.text


def test_arguments_of_from_pretrained_reach_their_target(saved, tmp_path):
    shutil.copytree(saved[0], tmp_path / "outer" / "inner")
    options = {"subfolder": "inner", "dtype": torch.bfloat16, "attn_implementation": "eager"}
    model, _ = load_checkpoint(tmp_path / "outer", **options)
    assert model.dtype == torch.bfloat16 and model.config._attn_implementation == "eager"
    with pytest.raises(UsageError, match=r"other holds no checkpoint: config\.json is missing"):
        load_checkpoint(tmp_path / "outer", subfolder="other")


@pytest.mark.parametrize("name", ["model.safetensors", "x" * 300])
def test_what_is_no_folder_is_refused(saved, name):
    with pytest.raises(UsageError, match=r"is a file, not a checkpoint folder|No checkpoint folder"):
        load_checkpoint(saved[0] / name)


NOT_FINITE = {"head.bias": torch.nan, "vit.blocks.1.mlp.fc2.weight": -torch.inf}


@pytest.mark.parametrize("name", NOT_FINITE)
def test_weights_that_are_no_numbers_are_not_saved(finished, name):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    model, processor = load_checkpoint(finished)
    model.get_parameter(name).data.view(-1)[-1] = NOT_FINITE[name]
    with pytest.raises(FloatingPointError, match=f"{name} holds weights that are not finite"):
        save_checkpoint(finished, model, processor, card="new", records={})
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_records_hold_no_numbers_that_json_lacks(finished, number):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    model, processor = load_checkpoint(finished)
    history = {"log_history": [{"grad_norm": number, "loss": 0.5, "steps": (1, 2)}]}
    for name in ("all_results.json", ".eval_results/mnist.yaml"):
        records = {"history.json": history, name: {"test_loss": number}}
        with pytest.raises(FloatingPointError, match=f"Refusing to write {name}"):
            save_checkpoint(finished, model, processor, card="new", records=records)
    with pytest.raises(FloatingPointError, match=r"Refusing to write robustness\.json"):
        card.add_measurement(finished, "robustness", {"accuracy": {"blur": {"1": number}}})
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before
    save_checkpoint(finished, model, processor, card="new", records={"history.json": history})
    read = json.loads((finished / "history.json").read_text(), parse_constant=pytest.fail)
    assert read["log_history"] == [{"grad_norm": None, "loss": 0.5, "steps": [1, 2]}]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("all_results.json", '{"test_loss": NaN}'), ("run.json", '{"model": {"layer_norm_eps": -Infinity}}'),
        ("all_results.json", "{"), ("run.json", "[]"), ("run.json", '{"model": {}}'), ("run.json", "5"),
    ],
)  # fmt: skip
def test_records_of_no_finished_run_are_refused(finished, name, content):
    (finished / name).write_text(content)
    with pytest.raises(UsageError, match="holds no finished run: "):
        card.renew(finished)


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_checkpoints_are_complete_and_current(name, tmp_path):
    """Code, card and results are what `card.renew` writes, and the model reads the digits of its widget."""
    folder, again = ROOT / name, shutil.copytree(ROOT / name, tmp_path / name)
    card.renew(again)
    for path in again.rglob("*"):
        file = path.relative_to(again)
        if path.is_file() and path.suffix != ".png":
            current = (folder / file).is_file() and (folder / file).read_bytes() == path.read_bytes()
            assert current, f"{name}/{file} is out of date: run checkpoints.card.renew({name!r})"
    assert not [*folder.glob("*.bin"), *folder.glob("*.pt")]
    assert {path.name for path in folder.glob("*.py")} == set(CODE_FILES)

    model, processor = load_checkpoint(folder)
    assert model.num_parameters() == (105_546 if name == "vit-mnist-small" else 1850)
    results = json.loads((folder / "all_results.json").read_text())
    assert results["dataset"] == "ylecun/mnist" and results["test_samples"] == 10_000
    readme = ModelCard.load(folder / "README.md")
    assert f"**{100 * results['test_accuracy']:.2f} %**" in readme.text
    (entry,) = parse_eval_result_entries(yaml.safe_load((folder / ".eval_results" / "mnist.yaml").read_text()))
    assert (entry.dataset_id, entry.task_id, entry.date) == ("ylecun/mnist", "mnist", results["ended_at"][:10])
    assert entry.value == readme.data.eval_results[0].metric_value == round(results["test_accuracy"], 4)
    assert len(readme.data.widget) == 3
    for example in readme.data.widget:
        label = model(**processor(str(folder / example["src"]), return_tensors="pt")).logits.argmax().item()
        assert example == {"src": f"digit-{label}.png", "example_title": f"A drawn {label}"}


def test_renew_replaces_code_and_card_only(finished):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    for name in ("README.md", "modeling_vit_mnist.py", "digit-7.png", ".eval_results/mnist.yaml"):
        (finished / name).unlink()
    (finished / "configuration_vit_mnist.py").write_text("outdated")
    card.renew(finished)
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_card_is_filled_and_its_metadata_complete(saved):
    _, header, body = card.fill_card(describe(saved[0]), RESULTS).split("---\n", 2)
    data = yaml.safe_load(header)
    kind = (data["pipeline_tag"], data["library_name"], data["license"])
    assert kind == ("image-classification", "transformers", "mit")
    assert data["datasets"] == ["ylecun/mnist"] and "accuracy" in data["metrics"]
    measured = data["model-index"][0]["results"][0]
    assert measured["dataset"]["split"] == "test" and measured["metrics"][0]["value"] == 0.9512
    assert "95.12" in body and "1,850" in body
    assert not re.search(r"\{\{|\}\}|\{%|None|Undefined", body)


def test_card_of_other_classes_has_no_widget(saved, tmp_path):
    run = describe(saved[0])
    run["model"]["id2label"] = {"0": "cat", "1": "dog"}
    assert ModelCard(card.fill_card(run, RESULTS)).data.get("widget") is None
    draw_examples(tmp_path, ["cat", "dog"])
    assert not list(tmp_path.iterdir())


def test_measurements_enter_the_card(finished, tmp_path):
    with pytest.raises(UsageError, match="holds no finished run"):
        card.add_measurement(tmp_path, "seeds", {})
    assert not (tmp_path / "seeds.json").exists()
    (finished / ".eval_results" / "mnist.yaml").unlink()
    seeds = {"n": 5, "test_mean": 96.5, "test_std": 0.25, "test_lowest": 96.1, "test_highest": 96.8}
    card.add_measurement(finished, "seeds", seeds)
    card.add_measurement(finished, "robustness", {"accuracy": {"blur": {"1 pixel": 0.912, "2 pixels": 0.5}}})
    readme = " ".join((finished / "README.md").read_text().split())
    assert "over 5 seeds" in readme and "96.50 ± 0.25 %" in readme
    assert "| blur | 1 pixel: 91.2 | 2 pixels: 50.0 |" in readme
    assert json.loads((finished / "seeds.json").read_text()).items() >= seeds.items()
    (entry,) = yaml.safe_load((finished / ".eval_results" / "mnist.yaml").read_text())
    assert entry == {
        "dataset": {"id": "ylecun/mnist", "task_id": "mnist"}, "value": 0.9512, "date": "2026-01-01",
        "notes": "accuracy on the 10,000 images of the test split",
    }  # fmt: skip


SEEDS = {"n": 5, "test_mean": 96.5, "test_std": 0.25, "test_lowest": 96.1, "test_highest": 96.8}
ROBUSTNESS = {"accuracy": {"blur": {"1 pixel": 0.912}}}


def other_weights(folder):
    state = weights(folder)
    save_file({name: tensor + 1 for name, tensor in state.items()}, folder / "model.safetensors")


def other_run(part, **values):
    def change(folder):
        run = json.loads((folder / "run.json").read_text())
        run[part] |= values
        (folder / "run.json").write_text(json.dumps(run))

    return change


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        (lambda folder: None, {"seeds", "robustness"}),
        (other_weights, {"seeds"}),
        (other_run("training", seed=1), {"seeds", "robustness"}),
        (other_run("training", learning_rate=1.0), {"robustness"}),
        (other_run("data", source="them/digits"), {"robustness"}),
        (other_run("model", hidden_size=16), {"robustness"}),
        (lambda folder: (folder / "seeds.json").write_text(json.dumps(SEEDS)), {"robustness"}),  # of an older version
    ],
)
def test_a_measurement_of_another_model_is_not_shown(finished, change, shown, caplog):
    card.add_measurement(finished, "seeds", SEEDS)
    card.add_measurement(finished, "robustness", ROBUSTNESS)
    assert "Ignoring" not in caplog.text
    change(finished)
    card.renew(finished)
    text = (finished / "README.md").read_text()
    assert ("96.50 ± 0.25" in text, "1 pixel: 91.2" in text) == ("seeds" in shown, "robustness" in shown)
    for name in {"seeds", "robustness"} - shown:
        assert f"Ignoring {name}.json" in caplog.text


def test_results_of_other_weights_are_refused(finished):
    model, processor = load_checkpoint(finished)
    records = {"run.json": describe(finished), "all_results.json": dict(RESULTS)}
    save_checkpoint(finished, model, processor, card="# card", records=records)
    card.renew(finished)
    other_weights(finished)
    with pytest.raises(UsageError, match=r"all_results\.json describes other weights"):
        card.renew(finished)


@pytest.mark.parametrize("content", ["{", '{"n": NaN}'])
def test_an_unreadable_measurement_is_refused(finished, content):
    (finished / "robustness.json").write_text(content)
    with pytest.raises(UsageError, match=r"Cannot read .*robustness\.json"):
        card.renew(finished)


def test_class_names_stay_in_their_cells(saved):
    names = ["a|b", "c\nd", '"e"', "f: *g*", "<h>", "é漢", "- i", "`j`", "k\\", "#l"]
    run = describe(saved[0])
    run["model"]["id2label"] = {str(index): name for index, name in enumerate(names)}
    text = ModelCard(card.fill_card(run, RESULTS | {"dataset": "a|b\n---\nc"}))
    assert text.data.eval_results[0].dataset_name == "a|b\n---\nc"
    rows = [line for line in text.text.splitlines() if line.startswith(("| class |", "| accuracy, % |"))]
    cells = [re.split(r"(?<!\\)\|", row)[2:-1] for row in rows]
    assert len(cells[0]) == len(cells[1]) == 10
    shown = [re.sub(r"\\(.)", r"\1", cell.strip()) for cell in cells[0]]
    assert shown == [name.replace("\n", " ") for name in names]


SAMPLE_NOTE = re.compile(r"> \*\*Trained on the bundled sample")


def test_card_of_the_bundled_sample_names_it(saved):
    results = RESULTS | {"dataset": SAMPLE.name}
    text = card.fill_card(describe(saved[0]), results)
    assert SAMPLE_NOTE.search(text) and "datasets" not in yaml.safe_load(text.split("---\n", 2)[1])
    assert card.fill_eval_results(results) == {}


def test_card_says_where_the_splits_are_from_and_what_was_fine_tuned(saved):
    run = describe(saved[0])
    text = " ".join(card.fill_card(run, RESULTS).split())
    assert "validation images taken from the training split" in text and "on the test split of ylecun/mnist" in text
    assert "base_model" not in text and "It was trained on single digits" in text
    run["model"]["fine_tuned_from"] = "me/start"
    other = card.fill_card(run, RESULTS | {"dataset": "own", "held_out": ["test"]})
    assert yaml.safe_load(other.split("---\n", 2)[1])["base_model"] == "me/start"
    other = " ".join(other.split())
    assert "images of the validation split" in other and "images held out of the train split of own" in other
    assert "fine-tuned from me/start" in other and "It was fine-tuned on images like those of own only." in other


@pytest.mark.parametrize("dataset", ["fashion-mnist", "them/fashion_mnist"])
def test_card_of_other_images_does_not_mention_digits(saved, dataset):
    """A folder that is neither MNIST nor the sample, and a Hub id that is not MNIST's."""
    text = card.fill_card(describe(saved[0]), RESULTS | {"dataset": dataset})
    assert not SAMPLE_NOTE.search(text) and "handwritten" not in text and "name: MNIST" not in text
    assert f"images of {dataset}" in " ".join(text.split())
    data = yaml.safe_load(text.split("---\n", 2)[1])
    short = dataset.rpartition("/")[2]
    assert "license" not in data and data["tags"] == ["vision", "vit", short, "tiny"]
    assert data["model-index"][0]["name"] == f"vit-{short}" and f"# vit-{short}: an image classifier" in text
    assert data.get("datasets") == ([dataset] if "/" in dataset else None)
    body = text.split("---\n", 2)[2]
    assert "digit" not in body and "MNIST" not in body and "for\n28x28 images" in body
    limits = text.partition("## Limits")[2]
    assert f"images like those of {dataset}" in limits and "digit" not in limits and "MNIST" not in limits
