"""The documents are true: their Python runs and prints what they show, their commands, files and headings exist, their
tables add up, and the notebook runs from top to bottom."""

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from modeling_vit_mnist import VitMnistConfig, VitMnistForImageClassification
from modeling_vit_mnist.checkpoints.export import ExportArguments
from modeling_vit_mnist.cli.arguments import RecipeParser
from modeling_vit_mnist.data.arguments import DataArguments
from modeling_vit_mnist.inference.arguments import InferenceArguments, VisualizeArguments
from modeling_vit_mnist.inference.visualize import VIEWS
from modeling_vit_mnist.training.arguments import parse_arguments

from .conftest import ROOT, TINY

FILES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCS = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in FILES}
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n^```text( varies)?\n(.*?)^```\n)?", re.DOTALL | re.MULTILINE)
NOTEBOOK = ROOT / "notebooks" / "tour.ipynb"


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Path:
    """The current folder: it looks like the repository, and what is written to `outputs/` is temporary."""
    for path in ROOT.iterdir():
        if path.name not in ("outputs", ".git"):
            (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def check_output(printed: str, shown: str, varies: bool) -> None:
    """Everything but decimals must be equal. Decimals may differ by one unit of the last digit shown, and by a tenth
    where an output varies with the processor."""
    texts, numbers = [], []
    for output in (printed, shown):
        parts = re.split(r"(\d+\.\d+)", output.strip())
        texts.append(parts[::2])
        numbers.append(parts[1::2])
    assert texts[0] == texts[1], f"printed:\n{printed}\nshown:\n{shown}"
    for number, expected in zip(*numbers, strict=True):
        unit = 1.01 * 10 ** -len(expected.partition(".")[2])
        assert float(number) == pytest.approx(float(expected), abs=unit, rel=0.1 if varies else 0), shown


@pytest.mark.parametrize("name", [name for name, text in DOCS.items() if BLOCK.search(text)])
def test_snippets_print_what_is_shown(name, repository):
    namespace: dict = {"__name__": "__main__"}
    for code, varies, shown in BLOCK.findall(DOCS[name]):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, f"a snippet of {name}", "exec"), namespace)
        if shown:
            check_output(printed.getvalue(), shown, bool(varies))


def test_outputs_are_compared():
    check_output("a 1.24 2\n", "a 1.23 2", False)
    check_output("accuracy 80.5%", "accuracy 77.0%", True)
    for printed, shown in (("a 1.25", "a 1.23"), ("b 1.23", "a 1.23"), ("a 1.23 3", "a 1.23 2"), ("a", "a 1.23")):
        with pytest.raises(AssertionError):
            check_output(printed, shown, False)


def test_the_patch_adds_a_second_head(tmp_path):
    """As the document says: apply it, train, and load the result in another process without the package."""
    if not (shutil.which("git") and shutil.which("bash")):
        pytest.skip("needs git and bash")
    text = DOCS["docs/own_model.md"]
    for name in ("modeling_vit_mnist", "configs", "data", "docs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.png"))
    for name in ("run_train.py", "model_card.md"):
        shutil.copy(ROOT / name, tmp_path)
    (script,) = re.findall(r"^```sh\n(git apply.*?)```", text, re.DOTALL | re.MULTILINE)
    block = r"^```python second-head\n(.*?)^```\n\n```text varies\n(.*?)```"
    ((code, shown),) = re.findall(block, text, re.DOTALL | re.MULTILINE)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    options = {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 300}
    done = subprocess.run(["bash", "-ec", script], env=os.environ | {"PATH": path, "PYTHONPATH": "."}, **options)
    assert done.returncode == 0 and "Total parameters: 1,859" in done.stdout, done.stderr
    done = subprocess.run([sys.executable, "-I", "-c", code], **options)
    check_output(done.stdout, shown, True)


def test_the_parameters_add_up():
    table = DOCS["docs/tour.md"].split("## 8. The 1,850 parameters")[1].split("\n## ")[0]
    rows = re.findall(r"^\| .* \| `([\w.]+)` \| (.*) \| (\d+) \|$", table, re.MULTILINE)
    model = VitMnistForImageClassification(VitMnistConfig())
    counts = {name: parameter.numel() for name, parameter in model.named_parameters()}
    for name, _, count in rows:
        assert int(count) == sum(counts.pop(key) for key in list(counts) if key.startswith(name)), name
    assert counts == {} and sum(int(count) for *_, count in rows) == 1850


def test_the_table_of_heads_shows_what_exercise_4_prints():
    shown = re.findall(r"^\| .* \| (\d+\.\d) \| (\d+\.\d) \|$", DOCS["docs/tour.md"], re.MULTILINE)
    printed = re.findall(r"average maps (\d+\.\d)%, equal weights (\d+\.\d)%", DOCS["docs/tour.md"])
    assert shown == printed and len(shown) == 8


def test_the_table_of_files_is_complete():
    table = DOCS["docs/tour.md"].split("## 15. The saved folder")[1].split("\n## ")[0]
    named = {name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(.+?)`", row)}
    assert named == {path.relative_to(TINY).as_posix() for path in TINY.rglob("*") if path.is_file()}


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def slugs(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a document."""
    headings = re.findall(r"^#+ (.*)$", without_code(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", DOCS)
def test_links_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(DOCS[name])):
        file, _, anchor = target.partition("#")
        if "://" in target:
            continue
        path = (ROOT / name).parent / file if file else ROOT / name
        assert path.exists(), target
        assert not anchor or anchor in slugs(path.read_text("utf-8")), target


@pytest.mark.parametrize("name", DOCS)
def test_figures_exist_in_light_and_dark(name):
    figures = re.findall(r'(?:src|srcset)="([^"]+)"', DOCS[name])
    assert [figure for figure in figures if not ((ROOT / name).parent / figure).is_file()] == []
    light = re.findall(r'<img [^>]*src="([^"]+)"', DOCS[name])
    assert re.findall(r'srcset="([^"]+)"', DOCS[name]) == [re.sub(r"(\.\w+)$", r"-dark\1", figure) for figure in light]


PARSERS = {
    "run_inference.py": [InferenceArguments, DataArguments],
    "run_visualize.py": [VisualizeArguments, DataArguments],
    "run_export.py": [ExportArguments],
}


def commands(text: str) -> list[list[str]]:
    """The words of each command in blocks of a shell, and in the text."""
    blocks = re.findall(r"^ *```sh\n(.*?)```", text, re.DOTALL | re.MULTILINE)
    inline = re.findall(r"`(python (?:run|benchmarks)[^`\n]+)`", without_code(text))
    lines = [line for block in blocks for line in block.replace("\\\n", "").splitlines() if line]
    return [shlex.split(part, comments=True) for line in [*lines, *inline] for part in line.split("&&")]


@pytest.mark.parametrize("name", DOCS)
def test_commands_name_scripts_and_flags_that_exist(name, monkeypatch):
    integrations = "modeling_vit_mnist.training.refusals.get_available_reporting_integrations"
    monkeypatch.setattr(integrations, lambda: ["tensorboard"])
    for words in filter(None, commands(DOCS[name])):
        for place, word in enumerate(words):
            if not re.fullmatch(r"[\w/]+\.py", word):
                continue
            script, arguments = (
                ROOT / word,
                ["configs/tiny.yaml" if flag == "FILE" else flag for flag in words[place + 1 :]],
            )
            assert script.is_file(), words
            if "--help" in arguments or "--help-all" in arguments:
                continue
            if word == "run_train.py":
                parse_arguments(arguments)
            elif word in PARSERS:
                parser = RecipeParser(PARSERS[word])
                if word == "run_visualize.py":
                    parser.add_argument("view", choices=[*VIEWS, "report"])
                parser.parse(arguments)


def test_commands_are_found():
    assert len(commands(DOCS["README.md"])) > 15
    found = commands("`python run_train.py`\n```sh\na b && c 'd e'  # f\n```")
    assert found == [["a", "b"], ["c", "d e"], ["python", "run_train.py"]]


def test_a_snippet_runs_without_the_package(tmp_path):
    """transformers then runs the code beside the weights."""
    code = BLOCK.search(DOCS["docs/package.md"])[1]
    block = "import sys\nsys.modules['modeling_vit_mnist'] = None\n"
    done = subprocess.run([sys.executable, "-c", block + code], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout) == (0, "7\n"), done.stderr


def test_every_row_of_works_with_names_tests():
    table = DOCS["docs/works_with.md"]
    rows = re.findall(r"^\|.*\| `pytest ([^`]+)` \|$", table, flags=re.MULTILINE)
    assert len(rows) == table.count("\n|") - 2 >= 12  # without the head of the table
    for row in rows:
        files, _, keywords = row.partition(" -k ")
        tests = "\n".join((ROOT / file).read_text("utf-8") for file in files.split())
        assert re.search(r"^(def test_|class \w+Test)", tests, flags=re.MULTILINE), row
        for keyword in keywords.strip('"').split(" or ") if keywords else []:
            assert re.search(rf"^def test_\w*{keyword}", tests, flags=re.MULTILINE), row


@pytest.mark.parametrize("script", ["run_train.py", "run_inference.py", "run_visualize.py", "run_export.py"])
def test_scripts_explain_themselves(script, run_script):
    done = run_script(script, "--help")
    assert done.code == 0 and "usage: " + script in done.out


def cells() -> list[dict]:
    notebook = json.loads(NOTEBOOK.read_text("utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def printed(cell: dict) -> str:
    """What a cell has printed, without what it logs."""
    outputs = [output for output in cell["outputs"] if output.get("name") == "stdout"]
    return "".join("".join(output["text"]) for output in outputs)


def test_the_notebook_is_saved_with_its_outputs():
    assert NOTEBOOK.stat().st_size < 400_000
    assert [cell["execution_count"] for cell in cells()] == list(range(1, len(cells()) + 1))
    outputs = [output for cell in cells() for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} == {"stream", "display_data"}
    assert {output["name"] for output in outputs if "name" in output} == {"stdout"}  # no warning, no path


def test_the_notebook_runs(repository):
    nbformat = pytest.importorskip("nbformat", reason="needs nbformat to run the notebook")
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient to run the notebook")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    run = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(repository)}}).execute()
    fresh = [cell for cell in run.cells if cell.cell_type == "code"]
    for new, saved in zip(fresh, cells(), strict=True):
        tags = saved["metadata"].get("tags", [])
        if "trains" not in tags:
            check_output(printed(new), printed(saved), "varies" in tags)
