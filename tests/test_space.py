"""The page as a static Space: what is written, what is refused, and the push to a Hub on this machine."""

import json
import shutil

import pytest
import torch
from huggingface_hub import SpaceCard
from safetensors.torch import load_file, save_file

from modeling_vit_mnist import VitMnistConfig, VitMnistForImageClassification, VitMnistImageProcessor
from modeling_vit_mnist.checkpoints.folder import save_checkpoint
from modeling_vit_mnist.checkpoints.hub import RETRY_WAITS, push_space
from modeling_vit_mnist.checkpoints.space import BUNDLED, export_space
from modeling_vit_mnist.cli.errors import UsageError

from .conftest import ROOT, TINY
from .test_hub import server  # noqa: F401 - a fixture

WEB = ROOT / "demo" / "web"
COPIED = {"config.json", "preprocessor_config.json", "model.safetensors", "all_results.json"}


def files(folder) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def read_table(folder) -> dict:
    text = (folder / "checkpoint_table.js").read_text()
    return json.loads(text.removeprefix("export const CHECKPOINTS = ").removesuffix(";\n"))


def make_checkpoint(folder, settings=None, dtype=torch.float32, **config):
    torch.manual_seed(0)
    model = VitMnistForImageClassification(VitMnistConfig(**config)).to(dtype)
    processor = VitMnistImageProcessor(size=model.config.image_size, do_frame=True, **settings or {})
    save_checkpoint(folder, model, processor, card="---\nlicense: apache-2.0\n---\n", records={})
    return folder


def test_a_space_holds_the_page_and_the_bundled_checkpoints(tmp_path, run_script):
    done = run_script("run_export.py", "--format", "space", "--output", tmp_path)
    assert done.code == 0, done.err
    pages = {path.name for path in WEB.iterdir() if path.name != "package.json"}
    copied = {f"{name}/{file}" for name in BUNDLED for file in COPIED}
    assert files(tmp_path) == pages | copied | {"README.md", "LICENSE-mnist-5k"}
    for name in pages - {"checkpoint_table.js"}:
        assert (tmp_path / name).read_bytes() == (WEB / name).read_bytes()
    for name in copied:
        assert (tmp_path / name).read_bytes() == (ROOT / name).read_bytes()
    names = {"tiny": "vit-mnist-tiny", "best": "vit-mnist-best", "small": "vit-mnist-small"}
    assert read_table(tmp_path) == {name: {"folder": folder} for name, folder in names.items()}
    assert SpaceCard.load(tmp_path / "README.md").data.to_dict() == {
        "title": "vit-mnist", "emoji": "✏️", "colorFrom": "yellow", "colorTo": "red", "sdk": "static",
        "app_file": "index.html", "pinned": False, "license": "mit",
        "short_description": "Draw a digit, see attention",
    }  # fmt: skip


def test_the_page_in_the_repository_has_the_bundled_checkpoints():
    table = (WEB / "checkpoint_table.js").read_text()
    for name in BUNDLED:
        assert f'{name.removeprefix("vit-mnist-")}: {{ folder: "../../{name}" }},' in table
    assert table.count("folder:") == len(BUNDLED)


def test_a_space_of_one_checkpoint_replaces_an_older_one(tmp_path, run_script):
    """Other files stay. Results of other weights are left out."""
    own = make_checkpoint(tmp_path / "my digits #1", hidden_size=12, num_attention_heads=3, patch_size=4)
    (own / "all_results.json").write_text(json.dumps({"weights": "0" * 64, "test_accuracy": 1}))
    space = tmp_path / "space"
    assert run_script("run_export.py", "--format", "space", "--output", space).code == 0
    (space / "notes.txt").write_text("mine")
    done = run_script("run_export.py", "--format", "space", "--output", space, "--model", own)
    assert done.code == 0, done.err
    assert read_table(space) == {"my-digits-1": {"folder": "my-digits-1"}}
    checkpoints = {name for name in files(space) if "/" in name}
    assert checkpoints == {f"my-digits-1/{name}" for name in COPIED - {"all_results.json"}}
    assert (space / "notes.txt").read_text() == "mine"
    assert SpaceCard.load(space / "README.md").data.license == "apache-2.0"


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"image_size": 56}, "Cannot convert image_size=56: the page has no such setting"),
        ({"hidden_act": "relu"}, "Cannot convert hidden_act='relu': the page has no such setting"),
        ({"dtype": torch.float16}, "Cannot convert dtype='float16': the page has no such setting"),
        ({"settings": {"rescale_factor": 0.5}}, "Cannot convert rescale_factor=0.5: the page has no such setting"),
    ],
)
def test_what_the_page_cannot_compute_is_refused(tmp_path, run_script, made, message):
    folder = make_checkpoint(tmp_path / "checkpoint", **made)
    done = run_script("run_export.py", "--format", "space", "--output", tmp_path / "out", "--model", folder)
    assert done.code == 2 and message in done.err and done.err.count("\n") == 1
    assert not files(tmp_path / "out")


def test_what_the_page_ignores_is_said(tmp_path):
    folder = make_checkpoint(tmp_path / "checkpoint", settings={"do_invert": True, "background": 0})
    (tmp_path / "out").mkdir()
    sentences = export_space(tmp_path / "out", [str(folder)])
    assert [sentence.split(".")[0] for sentence in sorted(sentences)] == [
        "background=0 has no counterpart in the page", "do_invert=True has no counterpart in the page"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--format", "vit", "--push_to_hub", "me/page"], "--push_to_hub pushes a Space, got --format vit"),
        (["--format", "space"], "is not empty: choose another --output"),
    ],
)
def test_wrong_usage_is_refused(tmp_path, run_script, flags, message):
    (tmp_path / "index.html").write_text("years of work")
    done = run_script("run_export.py", *flags, "--output", tmp_path)
    assert done.code == 2 and message in done.err and done.err.count("\n") == 1
    assert (tmp_path / "index.html").read_text() == "years of work"


def test_two_checkpoints_of_one_name_are_refused(tmp_path):
    copy = shutil.copytree(TINY, tmp_path / TINY.name)
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="Two checkpoints have the name 'vit-mnist-tiny': rename one"):
        export_space(tmp_path / "out", [str(TINY), str(copy)])


def test_a_space_is_pushed_in_one_commit(tmp_path, run_script, server):  # noqa: F811
    """A second push commits only changes, deletes our files that are gone, and keeps others."""
    space = tmp_path / "space"
    done = run_script("run_export.py", "--format", "space", "--output", space, "--push_to_hub", "me/page")
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == f"Pushed to {server.endpoint}/spaces/me/page"
    pushed = server.files("spaces/me/page")
    assert pushed.keys() == files(space) | {".gitattributes"} and len(server.repositories["spaces/me/page"]) == 2
    assert all(pushed[name] == (space / name).read_bytes() for name in files(space))

    (space / ".env").write_text("private")
    push_space(space, "me/page")
    assert len(server.repositories["spaces/me/page"]) == 2
    server.commit("spaces/me/page", pushed | {"thumbnail.png": b"theirs"})
    done = run_script(
        "run_export.py", "--format", "space", "--output", space, "--model", TINY, "--push_to_hub", "page"
    )
    assert done.code == 0, done.err
    remote = server.files("spaces/me/page")
    assert {name.split("/")[0] for name in remote if "/" in name} == {"vit-mnist-tiny"}
    assert remote["thumbnail.png"] == b"theirs" and ".env" not in remote
    assert b"vit-mnist-small" not in remote["checkpoint_table.js"]


def test_a_space_of_something_else_is_left_alone(tmp_path, run_script, server):  # noqa: F811
    theirs = {"README.md": b"mine", "index.html": b"mine", "about.html": b"mine", "shop/config.json": b"{}"}
    server.commit("spaces/me/portfolio", theirs)
    flags = ["--format", "space", "--model", TINY, "--push_to_hub"]
    done = run_script("run_export.py", *flags, "me/portfolio", "--output", tmp_path / "one")
    assert done.code == 2 and "it holds another Space, with about.html. Pass another --push_to_hub" in done.err
    assert server.files("spaces/me/portfolio") == theirs
    server.commit("spaces/me/new", dict.fromkeys((".gitattributes", "README.md", "index.html", "style.css"), b"new"))
    assert run_script("run_export.py", *flags, "me/new", "--output", tmp_path / "two").code == 0
    # Pages and checkpoints that were added by hand stay.
    server.commit("spaces/me/new", server.files("spaces/me/new") | {"more/config.json": b"{}", "about.html": b"mine"})
    assert run_script("run_export.py", *flags, "me/new", "--output", tmp_path / "two").code == 0
    assert {"more/config.json", "about.html"} <= server.files("spaces/me/new").keys()


def test_what_was_added_to_the_folder_of_a_space_stays(tmp_path, run_script):
    flags = ["--format", "space", "--output", tmp_path / "space", "--model", TINY]
    assert run_script("run_export.py", *flags).code == 0
    added = ("about.html", "my.js", "other/config.json", "other/model.safetensors")
    for name in added:
        (tmp_path / "space" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "space" / name).write_text("mine")
    assert run_script("run_export.py", *flags).code == 0
    assert all((tmp_path / "space" / name).read_text() == "mine" for name in added)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"num_attention_heads": None, "num_heads": 4}, "has num_attention_heads=None, and is loaded"),
        ("config.json", {"num_hidden_layers": None, "depth": 2}, "has num_hidden_layers=None, and is loaded with 2"),
        ("config.json", {"id2label": None}, "has id2label=None, and is loaded with"),
        ("preprocessor_config.json", {"image_mean": None}, "has image_mean=None, and is loaded with"),
        ("model.safetensors", None, "has other names or types than those of the page"),
    ],
)
def test_files_that_the_page_reads_otherwise_are_refused(tmp_path, run_script, file, change, message):
    """By the names and defaults that Python accepts besides."""
    folder = shutil.copytree(TINY, tmp_path / "checkpoint")
    if change is None:
        state = load_file(folder / file)
        save_file({name.removeprefix("vit."): value for name, value in state.items()}, folder / file, {"format": "pt"})
    else:
        record = json.loads((folder / file).read_text()) | change
        (folder / file).write_text(json.dumps({name: value for name, value in record.items() if value is not None}))
    done = run_script("run_export.py", "--format", "space", "--output", tmp_path / "out", "--model", folder)
    assert done.code == 2 and message in done.err and done.err.count("\n") == 1, done.err
    assert not files(tmp_path / "out")


def test_a_failed_push_is_repeated_and_explained(tmp_path, run_script, server, monkeypatch):  # noqa: F811
    server.failures += [("preupload", 503), ("commit", "lost")]
    flags = ["--format", "space", "--output", tmp_path / "space", "--model", TINY, "--push_to_hub"]
    assert run_script("run_export.py", *flags, "me/page").code == 0
    assert server.waits and sum(server.waits) <= sum(RETRY_WAITS)
    assert len(server.repositories["spaces/me/page"]) == 2
    done = run_script("run_export.py", *flags, "them/page")
    assert done.code == 2 and "(403): pass a repository of yours as --push_to_hub" in done.err
    assert done.err.endswith("space is complete. To retry, run the same command.\n")
    monkeypatch.delenv("HF_TOKEN")
    done = run_script("run_export.py", *flags, "me/page")
    assert done.code == 2 and "needs a valid token (401): run `hf auth login` or set HF_TOKEN" in done.err
