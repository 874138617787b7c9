"""Push to the Hub and pull from it, against a Hub on this machine."""

import errno
import json
import os
import re
import shutil

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub import ModelCard, constants

from modeling_vit_mnist import VitMnistConfig
from modeling_vit_mnist.checkpoints.card import add_measurement, fill_eval_results
from modeling_vit_mnist.checkpoints.folder import CHECKPOINT_FILES, load_checkpoint, save_checkpoint
from modeling_vit_mnist.checkpoints.hub import RETRY_WAITS, push
from modeling_vit_mnist.cli.errors import UsageError

from .conftest import ROOT, SAMPLE, TINY
from .loopback_hub import TOKEN, loopback_hub
from .test_checkpoints import LOAD_ALL, RESULTS, add_records, describe, run_python, save_new

PUSHED = {
    *CHECKPOINT_FILES, "run.json", "all_results.json", ".eval_results/mnist.yaml", "digit-2.png", "digit-4.png",
    "digit-7.png",
}  # fmt: skip


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """A checkpoint with the records of a finished run, and the logits of its model for an image of ones."""
    folder = tmp_path_factory.mktemp("hub") / "run"
    logits = save_new(folder)
    add_records(folder)
    return folder, logits


@pytest.fixture
def finished(complete, tmp_path):
    """The folder of a finished run, with private files that must not be pushed."""
    folder = shutil.copytree(complete[0], tmp_path / "run")
    for name in ("checkpoint-1/optimizer.pt", "checkpoint-1/config.json", "checkpoint-1/README.md", "optimizer.pt",
                 "training_args.bin", "trainer_state.json", "runs/events.out.tfevents.1", "runs/log.json", ".env",
                 "token.json", "train.log", "notes.py", ".git/config", "README.md.orig"):  # fmt: skip
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"private {TOKEN}")
    return folder


@pytest.fixture
def server(monkeypatch):
    """The Hub of this process. `server.waits`: the seconds of every `time.sleep`, which returns at once."""
    with loopback_hub() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.endpoint)
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # which keeps the address of an earlier test
        template = running.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        running.waits = []
        monkeypatch.setattr("time.sleep", running.waits.append)
        yield running


def test_the_hub_accepts_the_card(finished, server):
    card = ModelCard.load(finished / "README.md")
    card.validate()
    assert [result.metric_type for result in card.data.eval_results] == ["accuracy", "f1", "loss"]
    assert {example["src"] for example in card.data.widget} <= PUSHED


def test_push_uploads_only_what_a_checkpoint_needs(finished, server):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    assert push(finished, "me/vit-mnist") == f"{server.endpoint}/me/vit-mnist"
    files = server.files("me/vit-mnist")
    del files[".gitattributes"]
    assert files == {name: (finished / name).read_bytes() for name in PUSHED}
    assert TOKEN.encode() not in b"".join(files.values())
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_a_second_push_commits_only_changes(finished, server):
    push(finished, "vit-mnist")  # in the namespace of the token
    push(finished, "me/vit-mnist")
    assert len(server.repositories["me/vit-mnist"]) == 2  # the empty repository's commit, and one
    add_measurement(finished, "robustness", {"accuracy": {"blur": {"1 pixel": 0.912}}})
    push(finished, "me/vit-mnist")
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
def test_push_repeats_after_temporary_failures(finished, server, monkeypatch, failures, xet):
    """The result is always one commit with every file. Without hf_xet, huggingface_hub itself repeats less."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", not xet)
    server.failures += failures
    push(finished, "me/vit-mnist")
    assert not server.failures and server.waits and sum(server.waits) <= sum(RETRY_WAITS)
    assert server.files("me/vit-mnist").keys() == PUSHED | {".gitattributes"}
    assert len(server.repositories["me/vit-mnist"]) == 2


@pytest.mark.parametrize(("failure", "reason"), [(500, "the Hub answered 500"), ("cut", "disconnected|reset|closed")])
def test_after_a_lasting_failure_the_push_can_be_repeated(finished, server, failure, reason):
    server.failures += [("repos/create", failure)] * 3
    with pytest.raises(
        ConnectionError, match=rf"(?s)me/vit-mnist failed: .*({reason}).*The checkpoint in .*run is complete"
    ):
        push(finished, "me/vit-mnist")
    assert server.waits == list(RETRY_WAITS) and not server.repositories
    push(finished, "me/vit-mnist")
    assert server.files("me/vit-mnist").keys() > PUSHED


@pytest.mark.parametrize("token", [None, "hf_expired"])
def test_a_missing_or_wrong_token_gives_a_one_line_error(finished, server, monkeypatch, token):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UsageError, match=r"me/vit-mnist needs a valid token \(401\): run `hf auth login`") as raised:
        push(finished, "me/vit-mnist", token=token)
    assert "hf_expired" not in str(raised.value) and "\n" not in str(raised.value)
    assert server.waits == []


@pytest.mark.parametrize("exists", [False, True])
def test_a_namespace_of_others_is_refused(finished, server, exists):
    if exists:
        server.commit("them/vit-mnist", {})
    with pytest.raises(UsageError, match=r"Pushing to them/vit-mnist .*\(403\): pass .* --hub_model_id"):
        push(finished, "them/vit-mnist")
    assert server.waits == []


def test_offline_push_names_the_setting(finished):
    with pytest.raises(
        ConnectionError, match=r"me/vit-mnist failed: .*HF_HUB_OFFLINE.*\. The checkpoint in .* is complete"
    ):
        push(finished, "me/vit-mnist")


@pytest.mark.parametrize("name", ["them/me/vit-mnist", "vit mnist"])
def test_impossible_names_are_refused_before_training(finished, name, tmp_path, run_script):
    with pytest.raises(UsageError, match="Repo id must"):
        push(finished, name)
    done = run_script("run_train.py", "--push_to_hub", "--hub_model_id", name, "--output_dir", tmp_path / "new")
    assert done.code == 2 and "error: Repo id must" in done.err and not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", sorted(CHECKPOINT_FILES))
def test_an_incomplete_folder_is_not_pushed(finished, server, name):
    (finished / name).unlink()
    with pytest.raises(UsageError, match=f"is not a complete checkpoint: {name} is missing"):
        push(finished, "me/vit-mnist")
    assert not server.requests


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("config.json", lambda content: b"", "config.json is missing or empty"),
        ("modeling_vit_mnist.py", lambda content: b"", "modeling_vit_mnist.py is missing or empty"),
        ("model.safetensors", lambda content: content[:2000], "Cannot read the checkpoint"),
        ("model.safetensors", lambda content: content[:-4] + b"\xff" * 4, "holds weights that are not finite"),
        ("model.safetensors", lambda content: content[:-4] + b"\0" * 4, "all_results.json describes other weights"),
    ],
)
def test_a_damaged_folder_is_not_pushed(finished, server, name, change, message):
    results = json.loads((finished / "all_results.json").read_text())
    model, processor = load_checkpoint(finished)
    records = {"run.json": describe(finished), "all_results.json": results}
    save_checkpoint(finished, model, processor, card="# card", records=records)
    (finished / name).write_bytes(change((finished / name).read_bytes()))
    with pytest.raises(UsageError, match=message):
        push(finished, "me/vit-mnist")
    assert not server.requests


def test_an_export_of_a_checkpoint_on_the_hub_keeps_license_tags_and_data(finished, server, tmp_path, run_script):
    push(finished, "me/vit-mnist")
    done = run_script("run_export.py", "--format", "vit", "--model", "me/vit-mnist", "--output", tmp_path / "vit")
    assert done.code == 0, done.err
    data = ModelCard.load(tmp_path / "vit" / "README.md").data
    assert (data.license, data.datasets) == ("mit", ["ylecun/mnist"]) and "tiny" in data.tags


def test_a_model_of_the_bundled_sample_needs_permission(finished, server):
    run = describe(finished) | {"data": {"source": SAMPLE.name}}
    (finished / "run.json").write_text(json.dumps(run))
    with pytest.raises(UsageError, match=r"Refusing to push .*bundled 5,000-image sample.*--push_sample_model"):
        push(finished, "me/vit-mnist")
    assert not server.requests
    push(finished, "me/vit-mnist", allow_sample=True)
    assert server.files("me/vit-mnist")


def test_a_card_that_the_hub_rejects_is_an_error(finished, server):
    (finished / "README.md").write_text("---\nmodel-index: 5\n---\n")
    with pytest.raises(UsageError, match=r"Invalid metadata in README\.md"):
        push(finished, "me/vit-mnist")


def test_the_same_command_pushes_a_finished_run(server, tmp_path, run_script, monkeypatch):
    """A push that fails after training loses nothing, and no path of this machine gets to the Hub."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(SAMPLE, tmp_path / "alice" / "digits")  # looks like a Hub id
    (tmp_path / "recipe.yaml").write_text("optim: adam\nmax_steps: 2\nsave_strategy: steps\nsave_steps: 1\n"
                                          "eval_strategy: steps\neval_steps: 1\n")  # fmt: skip
    command = [
        "run_train.py", "--recipe", tmp_path / "recipe.yaml", "--dataset_name", "alice/digits", "--output_dir",
        tmp_path / "run", "--keep_checkpoints", "--model_name_or_path", TINY, "--hub_model_id", "me/vit-mnist",
    ]  # fmt: skip
    server.failures += [("repos/create", 500)] * 3
    done = run_script(*command, "--push_to_hub")
    assert done.code == 1 and f"in {tmp_path / 'run'} is complete" in done.err.splitlines()[-1], done.err
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
    assert b"alice" not in everything and ModelCard.load(tmp_path / "run" / "README.md").data.datasets is None
    for private in (tmp_path, ROOT, os.path.expanduser("~"), os.getcwd(), TOKEN):
        assert len(str(private)) < 5 or str(private).encode() not in everything, private


def test_pull_of_a_pinned_revision(complete, finished, server, tmp_path):
    """By the package in this process, and by `trust_remote_code` in a fresh one."""
    push(finished, "me/pulled")
    first = server.head("me/pulled")
    model, processor = load_checkpoint(finished)
    with torch.no_grad():
        model.head.bias.add_(torch.arange(10.0))
    processor.image_mean = [0.5]
    results = RESULTS | {"test_accuracy": 0.97}
    records = {"run.json": describe(finished), **fill_eval_results(results), "all_results.json": results}
    save_checkpoint(finished, model, processor, card="# card", records=records)
    push(finished, "me/pulled")
    assert yaml.safe_load(server.files("me/pulled")[".eval_results/mnist.yaml"])[0]["value"] == 0.97
    code = "sys.modules['modeling_vit_mnist'] = None\n"
    for revision, mean, logits in ((first, 0.1307, complete[1]), ("main", 0.5, complete[1] + torch.arange(10.0))):
        model, processor = load_checkpoint("me/pulled", revision=revision)
        torch.testing.assert_close(model.eval()(torch.ones(1, 1, 28, 28)).logits, logits)
        assert list(processor.image_mean) == [mean]
        options = {"trust_remote_code": True, "revision": revision}
        code += LOAD_ALL.format(folder="me/pulled", options=options, logits=logits.tolist())
        code += f"assert list(processor.image_mean) == [{mean}]\n"
    online = {"HF_ENDPOINT": server.endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf")}
    assert run_python(code, tmp_path, env=os.environ | online).count("loaded transformers_modules.") == 2


@pytest.fixture
def pushed(finished, server):
    push(finished, "me/pulled")
    server.requests.clear()
    server.tokens.clear()
    return "me/pulled"


def requested(server, suffix=""):
    """The checkpoint's files that were requested, by name."""
    found = [re.search(r"/resolve/[^/]+/(.+)$", request) for request in server.requests if suffix in request]
    return {match[1] for match in found if match}


NEEDED = {"config.json", "model.safetensors", "preprocessor_config.json"}


def test_all_files_come_from_the_place_that_was_asked_for(pushed, finished, server, tmp_path):
    files = {name: (finished / name).read_bytes() for name in NEEDED}
    sha = server.commit("me/nested", {f"inner/{name}": content for name, content in files.items()})
    server.commit("me/nested", {})
    options = {"revision": sha, "subfolder": "inner", "token": "hf_mine", "cache_dir": tmp_path / "cache"}
    load_checkpoint("me/nested", **options)
    assert requested(server, f"resolve/{sha}/") >= {f"inner/{name}" for name in NEEDED}
    assert set(server.tokens) == {"Bearer hf_mine"}
    cached = {path.name for path in (tmp_path / "cache").glob("models--me--nested/snapshots/*/inner/*")}
    assert cached == NEEDED

    server.requests.clear()
    load_checkpoint("me/nested", local_files_only=True, **options)
    assert not server.requests
    load_checkpoint("me/nested", force_download=True, **options)
    assert requested(server, "GET ") >= {f"inner/{name}" for name in NEEDED}


def test_a_commit_during_loading_changes_nothing(pushed, finished, server, monkeypatch):
    _, processor = load_checkpoint(finished)
    original = VitMnistConfig.get_config_dict

    def get_config_dict(name, **kwargs):
        answer = original(name, **kwargs)
        if server.head("me/moving") == first:
            changed = (finished / "preprocessor_config.json").read_bytes().replace(b"0.1307", b"0.9")
            server.commit("me/moving", server.files("me/moving") | {"preprocessor_config.json": changed})
        return answer

    first = server.commit("me/moving", server.files(pushed))
    monkeypatch.setattr(VitMnistConfig, "get_config_dict", get_config_dict)
    assert load_checkpoint("me/moving")[1].image_mean == processor.image_mean
    assert list(load_checkpoint("me/moving")[1].image_mean) == [0.9]


def test_a_repository_without_a_processor_gets_the_default_one(pushed, server, caplog):
    files = server.files(pushed)
    server.commit("me/bare", {name: files[name] for name in NEEDED - {"preprocessor_config.json"}})
    load_checkpoint("me/bare")
    assert "me/bare has no preprocessor_config.json" in caplog.text
    server.commit("me/cut", {name: files[name] for name in NEEDED})
    server.failures += [("preprocessor_config", 500)] * 20
    with pytest.raises(ConnectionError, match="downloading it from the Hub failed"):
        load_checkpoint("me/cut")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"revision": "v9"}, "Cannot read the checkpoint in me/pulled: v9 is not a valid git identifier"),
     ({"subfolder": "other"}, "Cannot read the checkpoint in me/pulled|holds a model of type None")],
)  # fmt: skip
def test_what_the_hub_does_not_have_is_no_connection_error(pushed, options, message):
    with pytest.raises(UsageError, match=message):
        load_checkpoint(pushed, **options)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_repository_that_is_no_checkpoint_is_no_connection_error(pushed, server, missing):
    name = f"me/without-{missing}"
    server.commit(name, {file: content for file, content in server.files(pushed).items() if file != missing})
    with pytest.raises(UsageError, match=f"{name} holds a model of type None|checkpoint in {name}: .*{missing}"):
        load_checkpoint(name)


def test_a_download_that_cannot_be_stored_names_the_disk(pushed, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"Cannot store .*: (Not a directory|File exists)") as raised:
        load_checkpoint(pushed, cache_dir=tmp_path / "file" / "cache")
    assert not isinstance(raised.value, (ConnectionError, UsageError))

    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(huggingface_hub.file_download, "http_get", fail)
    with pytest.raises(OSError, match="Cannot store me/pulled from the Hub: No space left on device") as raised:
        load_checkpoint(pushed, cache_dir=tmp_path / "new")
    assert not isinstance(raised.value, ConnectionError)


@pytest.mark.parametrize("name", sorted(NEEDED))
def test_a_damaged_file_in_the_cache_is_no_connection_error(pushed, name, tmp_path):
    load_checkpoint(pushed, cache_dir=tmp_path)
    (path,) = tmp_path.glob(f"models--me--pulled/snapshots/*/{name}")
    path.resolve().write_bytes(b"{")
    with pytest.raises(UsageError, match=r"Cannot read the checkpoint in me/pulled: .* or pass force_download=True"):
        load_checkpoint(pushed, cache_dir=tmp_path)
    load_checkpoint(pushed, cache_dir=tmp_path, force_download=True)


def test_an_unreadable_local_file_is_no_connection_error(finished, server):
    (finished / "history.json").symlink_to("/proc/self/mem")  # reading it fails, even for root
    with pytest.raises(OSError, match="Cannot read the folder to push to me/vit-mnist: Input/output error") as raised:
        push(finished, "me/vit-mnist")
    assert not isinstance(raised.value, (ConnectionError, UsageError)) and not server.waits


def test_what_describes_other_weights_is_neither_pushed_nor_left(finished, server, caplog):
    add_measurement(finished, "robustness", {"accuracy": {"blur": {"1 pixel": 0.912}}})
    push(finished, "me/vit-mnist")
    assert {"robustness.json", ".eval_results/mnist.yaml"} <= server.files("me/vit-mnist").keys()
    server.commit("me/vit-mnist", server.files("me/vit-mnist") | {"notes.md": b"of the user"})

    model, processor = load_checkpoint(finished)
    model.head.bias.data += 1
    results = RESULTS | {"dataset": "clothes"}
    records = {"run.json": describe(finished), "all_results.json": results}
    old = {name: (finished / name).read_bytes() for name in ("robustness.json", ".eval_results/mnist.yaml")}
    save_checkpoint(finished, model, processor, card="# card", records=records)
    for name, content in old.items():  # as an interrupted run or an older version leaves them
        (finished / name).parent.mkdir(exist_ok=True)
        (finished / name).write_bytes(content)
    push(finished, "me/vit-mnist")
    assert "Not pushing .eval_results/mnist.yaml, robustness.json" in caplog.text
    files = server.files("me/vit-mnist")
    assert not {"robustness.json", ".eval_results/mnist.yaml"} & files.keys()
    assert files["notes.md"] == b"of the user" and files["README.md"] == b"# card"


def test_an_unreachable_hub_is_a_failure(run_script):
    done = run_script("run_inference.py", "--model", "someone/vit-mnist")
    assert done.code == 1
    assert "No folder 'someone/vit-mnist', and downloading it from the Hub failed: " in done.err
