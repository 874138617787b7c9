"""The wheel works alone in an empty folder, and the source distribution is complete."""

import os
import subprocess
import sys
import tarfile
import zipfile

import pytest

from .conftest import ROOT

COMMANDS = [
    [
        "train", "--num_train_epochs=1", "--max_train_samples=400", "--num_font_digits=20", "--output_dir=run",
        "--use_cpu=True",
    ],
    ["predict", "--num_samples=8", "--output=predictions.csv"],
    ["visualize", "model", "--model=run"],
    ["export", "--format=vit", "--model=run", "--output=exported"],
    ["export", "--format=space", "--output=space"],
]  # fmt: skip
RUN_COMMANDS = f"""
import sys
import modeling_vit_mnist.commands
for command in {COMMANDS}:
    sys.argv = ["vit-mnist", *command]
    modeling_vit_mnist.commands.main()
print("modules:", *(module.__file__ for name, module in sys.modules.items() if name.startswith("modeling_vit_mnist")))
"""


def test_the_commands_of_the_wheel_run_in_an_empty_folder(tmp_path):
    """They need no file of the repository: recipes, card template, digits and checkpoint come from the wheel."""
    for name in ("pip", "hatchling"):
        pytest.importorskip(name, reason=f"needs {name} to build")
    build = ["pip", "wheel", str(ROOT), "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path)]
    done = subprocess.run([sys.executable, "-m", *build], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("vit_mnist-*.whl")
    package, empty = tmp_path / "package", tmp_path / "empty"
    empty.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(package)
        entry_points = archive.read(next(name for name in archive.namelist() if name.endswith("entry_points.txt")))
    assert b"vit-mnist = modeling_vit_mnist.commands:main" in entry_points

    done = subprocess.run(
        [sys.executable, "-c", RUN_COMMANDS],
        cwd=empty, env=os.environ | {"PYTHONPATH": str(package)}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    modules = done.stdout.splitlines()[-1].removeprefix("modules: ").split()
    assert len(modules) > 20 and all(module.startswith(f"{package}{os.sep}") for module in modules)
    assert str(ROOT) not in done.stdout + done.stderr
    assert "bundled sample" in done.stderr and "420 train" in done.stdout and "1,850" in done.stdout
    assert {path.name for path in empty.iterdir()} == {"run", "predictions.csv", "exported", "space"}
    assert {"model.safetensors", "README.md", "all_results.json"} <= {path.name for path in (empty / "run").iterdir()}
    assert len((empty / "predictions.csv").read_text().splitlines()) == 1 + 8
    assert (empty / "exported" / "model.safetensors").is_file()
    assert {"index.html", "app.js", "vit-mnist-tiny"} <= {path.name for path in (empty / "space").iterdir()}


def test_the_source_distribution_is_complete(tmp_path, monkeypatch):
    build = pytest.importorskip("hatchling.build", reason="needs hatchling to build")
    monkeypatch.chdir(ROOT)
    with tarfile.open(tmp_path / build.build_sdist(str(tmp_path))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    expected = {
        "LICENSE", "model_card.md", "run_train.py", "tests/conftest.py", "configs/tiny.yaml", "demo/web/index.html",
        "benchmarks/training.py", "data/mnist-5k/LICENSE", "data/font-digits/README.md",
        "vit-mnist-tiny/model.safetensors",
    }  # fmt: skip
    assert expected <= names
    assert not [name for name in names if name.split("/")[0] == "outputs" or "cache" in name]


def test_no_module_of_the_package_is_over_350_lines():
    lengths = {path: len(path.read_text("utf-8").splitlines()) for path in (ROOT / "modeling_vit_mnist").rglob("*.py")}
    assert len(lengths) > 30 and {path.name: length for path, length in lengths.items() if length > 350} == {}
