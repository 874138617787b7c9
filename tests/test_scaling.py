"""More processes, nodes and restarts give what one process gives, and count every image once."""

import itertools
import json
import os
import socket
import subprocess
import sys

import datasets
import numpy as np
import pyarrow.parquet
import pytest
import torch

from modeling_vit_mnist.cli.files import SAVING
from modeling_vit_mnist.data import streaming
from modeling_vit_mnist.inference import parts
from modeling_vit_mnist.training.arguments import parse_arguments
from modeling_vit_mnist.training.train import train

from .conftest import QUICK, ROOT, SAMPLE, TINY, weights

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo needs a POSIX system here")
RECIPES = ROOT / "configs" / "accelerate"
# 301 images in batches of 100: in the last batch of an epoch, all but one process have no image of their own.
TRAINING = [*QUICK, "--max_train_samples=301", "--max_eval_samples=101", "--load_best_model_at_end=False"]
AUGMENTED = ["--max_translate=2", "--max_rotation=10", "--elastic_std=1"]
RUNS = {
    "sgd": ["--optim=sgd", "--learning_rate=0.1", "--warmup_steps=2", *AUGMENTED],
    "stream": ["--optim=sgd", "--learning_rate=0.1", "--warmup_steps=2", *AUGMENTED, "--streaming"],
    "natural": [
        "--optim=natural_gradient", "--learning_rate=0.05", "--warmup_steps=4", "--fisher_update_interval=6",
        "--fisher_batch_size=255", *AUGMENTED,
    ],
}  # fmt: skip
SCRIPT = """
import json, sys
from modeling_vit_mnist.training.arguments import parse_arguments
from modeling_vit_mnist.training.train import train
for flags in json.loads(sys.argv[1]):
    train(*parse_arguments(flags))
"""


def launch(recipe: str, *command, nodes: int = 1, processes: int = 2) -> tuple[int, str]:
    """Run a script by `accelerate launch`, on nodes that are all this machine. Returns the exit code and the output of
    the first node."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name != "ACCELERATE_USE_CPU"}
    launchers = []
    for rank in range(nodes):
        options = ["--machine_rank", rank] if nodes > 1 else []
        arguments = [
            "--config_file", RECIPES / recipe, "--num_processes", processes, "--main_process_port", port, *options,
            *command,
        ]  # fmt: skip
        launchers.append(
            subprocess.Popen(
                [sys.executable, "-m", "accelerate.commands.launch", *map(str, arguments)], text=True,
                env=environment | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )
        )  # fmt: skip
    try:
        outputs = [launcher.communicate(timeout=600)[0] for launcher in launchers]
    finally:
        for launcher in launchers:
            launcher.terminate()
    return launchers[0].returncode, outputs[0]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    for name, flags in RUNS.items():
        train(*parse_arguments([*TRAINING, *flags, f"--output_dir={folder / name}"]))
    return folder


@pytest.mark.parametrize(
    ("recipe", "nodes", "processes"),
    [("several_gpus.yaml", 1, 4), ("several_nodes.yaml", 2, 2)],  # for two processes, see test_distributed.py
)
def test_the_same_global_batch_gives_the_same_weights(one_process, tmp_path, recipe, nodes, processes):
    runs = [
        [*TRAINING, *flags, f"--output_dir={tmp_path / name}", f"--per_device_train_batch_size={100 // processes}"]
        for name, flags in RUNS.items()
    ]
    (tmp_path / "script.py").write_text(SCRIPT)
    code, out = launch(recipe, tmp_path / "script.py", json.dumps(runs), nodes=nodes, processes=processes)
    assert code == 0, out
    for name, noise in (("sgd", 1e-6), ("stream", 1e-6), ("natural", 2e-4)):
        one, several = weights(one_process / name), weights(tmp_path / name)
        for key in one:
            if key.endswith("qkv.bias"):  # softmax cancels the keys' biases: their gradients are noise
                one[key][8:16] = several[key][8:16] = 0
            torch.testing.assert_close(several[key], one[key], rtol=0, atol=noise)
        results = [json.loads((folder / name / "all_results.json").read_text()) for folder in (one_process, tmp_path)]
        for key in ("train_loss", "eval_loss", "test_loss"):
            assert results[1][key] == pytest.approx(results[0][key], rel=1e-3)
        assert results[1]["device"].startswith(f"{processes} processes")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The test split of the sample in five files, of 250 to 150 images."""
    folder = tmp_path_factory.mktemp("files")
    digits = datasets.load_dataset(str(SAMPLE), split="test")
    ends = np.cumsum([0, 250, 225, 200, 175, 150])
    for number, (start, end) in enumerate(itertools.pairwise(ends)):
        digits.select(range(start, end)).to_parquet(folder / f"test-{number}-of-5.parquet")
    return folder


@pytest.fixture(scope="module")
def class_folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folders")
    digits = datasets.load_dataset(str(SAMPLE), split="test").select(range(300))
    for number, row in enumerate(digits):
        place = folder / "test" / str(row["label"])
        place.mkdir(parents=True, exist_ok=True)
        row["image"].save(place / f"{number:03}.png")
    return folder


@pytest.fixture
def infer(run_script):
    def run(folder, output, *flags):
        return run_script("run_inference.py", "--dataset_name", folder, "--output", output, *flags)

    return run


def predicted(folder) -> list[dict]:
    """The rows of all parts, in the order of the split, without the columns that name the place in a part."""
    tables = [pyarrow.parquet.read_table(path) for path in sorted(folder.glob("part-*.parquet"))]
    for part, table in enumerate(tables):
        assert table["part"].to_pylist() == [part] * len(table)
        assert table["index"].to_pylist() == list(range(len(table)))
    return [row for table in tables for row in table.drop_columns(["part", "index"]).to_pylist()]


def expected(infer, folder, tmp_path, *flags) -> list[dict]:
    """The rows that one process writes into one table."""
    assert infer(folder, tmp_path / "table.parquet", "--num_samples", 0, *flags).code == 0
    return pyarrow.parquet.read_table(tmp_path / "table.parquet").drop_columns(["index"]).to_pylist()


def times(folder) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("part-*")}


def test_processes_share_the_files_of_a_stream_and_a_restart_does_what_is_left(files, infer, tmp_path):
    command = [
        ROOT / "run_inference.py", "--dataset_name", files, "--streaming", "--device", "cpu", "--output",
        f"{tmp_path / 'out'}/",
    ]  # fmt: skip
    code, out = launch("two_cpu_processes.yaml", *command)
    assert code == 0, out
    assert out.count("Accuracy: ") == 1 and "of 1,000 test images" in out and "Idx:" not in out
    rows = predicted(tmp_path / "out")
    assert rows == expected(infer, files, tmp_path, "--streaming")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [part["first_index"] for part in manifest["parts"]] == [0, 250, 475, 675, 850]
    correct = sum(row["label"] == row["prediction"] for row in rows)
    assert (manifest["counts"]["images"], manifest["counts"]["correct"]) == (1000, correct)

    # A kill leaves a part out and another one half written. Then three processes go on, and then one.
    part = tmp_path / "out" / "part-00003-of-00005.parquet"
    part.rename(part.with_name(f"{SAVING}0123abcd-{part.name}"))
    (tmp_path / "out" / "part-00001-of-00005.parquet").unlink()
    before = times(tmp_path / "out")
    code, out = launch("several_gpus.yaml", *command, processes=3)
    assert code == 0 and "Parts: 5, 3 of them finished before" in out, out
    assert out.count(f"({correct} of 1,000 test images") == 1
    assert predicted(tmp_path / "out") == rows and before.items() <= times(tmp_path / "out").items()
    before = times(tmp_path / "out")
    done = infer(files, f"{tmp_path / 'out'}/", "--streaming")
    assert done.code == 0 and "5 of them finished before" in done.out and f"({correct} of 1,000" in done.out
    assert times(tmp_path / "out") == before
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*before, "manifest.json"}


def test_an_error_of_all_processes_is_reported_once(files, tmp_path):
    for name, flags in (("run_inference.py", ["--output", "here/"]), ("run_train.py", ["--output_dir", "here"])):
        code, out = launch("two_cpu_processes.yaml", ROOT / name, "--dataset_name", tmp_path / "missing", *flags)
        assert code != 0 and out.count("error: No dataset folder") == 1


def test_several_processes_need_a_folder(infer, files, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = infer(files, tmp_path / "table.csv")
    assert done.code == 2 and "--output FOLDER/" in done.err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("flags", [(), ("--streaming",), ("--top_k", "2", "--reject", "5")])
@pytest.mark.parametrize("source", ["files", "class_folders"])
def test_parts_equal_one_table(request, infer, tmp_path, monkeypatch, source, flags):
    monkeypatch.setattr(streaming, "CHUNK", 100)
    folder = request.getfixturevalue(source)
    done = infer(folder, f"{tmp_path / 'out'}/", *flags)
    assert done.code == 0, done.err
    is_one_shard = source == "class_folders" and "--streaming" in flags
    assert (len(times(tmp_path / "out")) == 1) == is_one_shard
    assert predicted(tmp_path / "out") == expected(infer, folder, tmp_path, *flags)


def test_parts_hold_images_of_classes_that_the_model_does_not_know(infer, tmp_path):
    for name in ("7", "ten", "zero \N{DEVANAGARI DIGIT ZERO}", os.fsdecode(b"\xff")):
        folder = tmp_path / os.fsdecode(b"data \xfe") / "test" / name
        folder.mkdir(parents=True)
        for number, image in enumerate(datasets.load_dataset(str(SAMPLE), split="test[:3]")["image"]):
            image.save(folder / f"{number}.png")
    source = folder.parent.parent
    for _ in range(2):
        done = infer(source, f"{tmp_path / 'out'}/", "--streaming")
        assert done.code == 0 and "does not know the class of 9 images ('%FF', 'ten', 'zero \u0966')" in done.out
    assert predicted(tmp_path / "out") == expected(infer, source, tmp_path, "--streaming")


def test_a_run_that_was_cut_off_does_no_finished_part_again(infer, files, tmp_path, monkeypatch):
    written, limits, write = [], [3, 10], parts.write_part

    def interrupt(folder, part, *args):
        if len(written) == limits[0]:
            raise KeyboardInterrupt
        written.append(part)
        return write(folder, part, *args)

    monkeypatch.setattr(parts, "write_part", interrupt)
    assert infer(files, f"{tmp_path / 'out'}/", "--streaming").code == 130
    before = times(tmp_path / "out")
    torn = tmp_path / "out" / "part-00000-of-00005.parquet"
    torn.write_bytes(torn.read_bytes()[:-100])
    written.clear()
    del limits[0]
    done = infer(files, f"{tmp_path / 'out'}/", "--streaming")
    assert done.code == 0 and written == [0, 3, 4]
    assert times(tmp_path / "out").items() >= {n: t for n, t in before.items() if n != torn.name}.items()
    assert len(predicted(tmp_path / "out")) == 1000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--top_k", "2"], "top_k 1, not 2"),
        (["--reject", "2"], "reject None, not 2.0"),
        (["--do_center", "yes"], "do_center None, not True"),
        (["--model", ROOT / "vit-mnist-best"], "checkpoint "),
        (["--split", "train"], "split 'test', not 'train'"),
        ("touch", "dataset "),
    ],
)
def test_parts_of_another_run_are_refused_in_one_line(infer, tmp_path, change, message):
    folder = tmp_path / "set"
    digits = datasets.load_dataset(str(SAMPLE), split="test")
    for split in ("train", "validation", "test"):
        digits.select(range(50)).to_parquet(folder / f"{split}-0-of-1.parquet")
    assert infer(folder, f"{tmp_path / 'out'}/", "--streaming").code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    if change == "touch":
        digits.select(range(50, 100)).to_parquet(folder / "test-0-of-1.parquet")
        change = []
    done = infer(folder, f"{tmp_path / 'out'}/", "--streaming", *change)
    assert done.code == 2 and done.err.startswith("error: ") and done.err.count("\n") == 1
    assert "holds predictions of another run" in done.err and message in done.err
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--grid", "grid.png"], "--grid does not go with the folder"),
        (["--image", str(TINY)], "--image does not go with the folder"),
        (["--streaming", "--num_samples", "5"], "takes all images of a stream"),
        (["--streaming", "--max_eval_samples", "5"], "takes all images of a stream"),
    ],
)
def test_flags_that_do_not_go_with_parts_are_refused(infer, files, tmp_path, flags, message):
    done = infer(files, f"{tmp_path / 'out'}/", *flags)
    assert done.code == 2 and message in done.err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("differs", [{"checkpoint": "0123456789abcdef"}, {"parts": 7}])
def test_processes_with_other_copies_of_the_inputs_are_refused(infer, files, tmp_path, monkeypatch, differs):
    def from_main(function):
        run, tallies = function()
        return run | differs, tallies

    monkeypatch.setattr(parts, "_from_main", from_main)
    done = infer(files, f"{tmp_path / 'out'}/", "--streaming")
    assert done.code == 2 and "another copy of the checkpoint or the dataset" in done.err
    assert not times(tmp_path / "out")


def test_a_folder_with_other_files_is_refused(infer, files, tmp_path):
    (tmp_path / "mine.txt").touch()
    done = infer(files, f"{tmp_path}/")
    assert done.code == 2 and "is not empty (mine.txt)" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_many_images_are_not_printed_one_by_one(infer, files, tmp_path, monkeypatch):
    monkeypatch.setattr("modeling_vit_mnist.inference.predict.QUIET_BEYOND", 999)
    all_images = ("--num_samples", "0")
    for flags, lines in (
        (all_images, 0), ((*all_images, "--quiet", "no"), 1000), (("--num_samples", "1000"), 0),
        (("--num_samples", "999"), 999), (("--num_samples", "999", "--quiet"), 0),
    ):  # fmt: skip
        for more in ((), ("--streaming",)):
            done = infer(files, tmp_path / "table.csv", *flags, *more)
            assert done.code == 0 and done.out.count("Idx:") == lines
            assert ("--quiet no" in done.out) == (lines == 0 and "--quiet" not in flags)


def test_ray_predicts_what_one_process_predicts(infer, files, tmp_path):
    pytest.importorskip("ray", reason="needs ray: pip install 'vit-mnist[ray]'")
    command = [sys.executable, ROOT / "examples" / "ray_predict.py", files, tmp_path / "out", "--workers", "2"]

    def run(*flags) -> subprocess.CompletedProcess:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
        return subprocess.run([*command, *flags], env=environment, capture_output=True, text=True, timeout=600)

    done = run()
    assert done.returncode == 0, done.stderr
    assert "5 files, 0 of them finished before" in done.stdout and "1,000 images in 5 files" in done.stdout
    tables = {path.name: pyarrow.parquet.read_table(path) for path in sorted((tmp_path / "out").glob("*.parquet"))}
    alone = expected(infer, files, tmp_path)
    rows = [row for table in tables.values() for row in table.to_pylist()]
    assert [row["label"] for row in rows] == [int(row["label"]) for row in alone]
    for name in ("prediction", "probability", "digit_score", "problem"):
        assert [row[name] for row in rows] == [row[name] for row in alone]

    (tmp_path / "out" / "test-2-of-5.parquet").unlink()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    done = run()
    assert "5 files, 4 of them finished before" in done.stdout and "200 images in 1 files" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert pyarrow.parquet.read_table(tmp_path / "out" / "test-2-of-5.parquet") == tables["test-2-of-5.parquet"]
    done = run("--model", ROOT / "vit-mnist-best")  # refused before Ray starts
    assert done.returncode == 2 and done.stderr.count("error: ") == 1 and "of another run" in done.stderr
