"""The README is true: its Python runs, and its commands name existing files and flags."""

import re
import shlex
import subprocess
import sys

import pytest

from modeling_vit_mnist.training.arguments import parse_arguments

from .conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def commands(text: str = README) -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", "").splitlines() if line]
    return [shlex.split(part, comments=True) for line in lines for part in line.split("&&")]


def test_python_snippets_run():
    """In fresh processes: with the package, and the `trust_remote_code` snippet without it."""
    assert len(SNIPPETS) == 4
    with_package = "\n".join(snippet for snippet in SNIPPETS if "trust_remote_code" not in snippet)
    without = next(snippet for snippet in SNIPPETS if "trust_remote_code" in snippet)
    block = "import sys\nsys.modules['modeling_vit_mnist'] = None\n"
    check = "\nfrom PIL import Image\nprint(classify(Image.new('L', (28, 28)))[0])\n"
    for code, says in ((with_package, "[(1, 2, 17, 17), (1, 2, 17, 17)]"), (block + without + check, "'label'")):
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0 and says in done.stdout, done.stderr
        assert "trust_remote" in code or "tensor([False])" in done.stdout  # a letter is no digit


def test_every_file_it_names_exists():
    names = re.findall(r"\]\(([^)#:]+)\)", README) + re.findall(r"configs/[\w/]+\.yaml", README)
    assert len(names) > 20
    for name in names:
        assert (ROOT / name).exists(), name


def test_every_training_command_parses(monkeypatch):
    integrations = "modeling_vit_mnist.training.refusals.get_available_reporting_integrations"
    monkeypatch.setattr(integrations, lambda: ["tensorboard"])
    found = [command for command in commands() if "run_train.py" in command]
    assert len(found) >= 6
    for command in found:
        parse_arguments(command[command.index("run_train.py") + 1 :])


def test_every_row_of_works_with_names_tests():
    table = README.split("## Works with")[1].split("\n## ")[0]
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


def test_no_module_of_the_package_is_over_350_lines():
    lengths = {path: len(path.read_text("utf-8").splitlines()) for path in (ROOT / "modeling_vit_mnist").rglob("*.py")}
    assert len(lengths) > 30 and {path.name: length for path, length in lengths.items() if length > 350} == {}
