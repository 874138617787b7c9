"""Print the licenses of all packages in `constraints.txt`, as their installed metadata names them, as a table.

    python benchmarks/licenses.py > docs/licenses.md

Fails if one may not be combined with a package under the MIT license: that of the GPL or the AGPL, of which no part is
linked here. Licenses that bind only changes of the files they cover (MPL, LGPL) are fine."""

import re
import sys
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REFUSED = re.compile(r"(?<!L)(?<!Lesser )\b(A?GPL|GNU (Affero )?General Public)", re.IGNORECASE)


def license_of(package: str) -> str:
    """The SPDX expression; in older metadata the classifiers, or the first line of the license."""
    found = metadata(package)
    classifiers = [name.rpartition(" :: ")[2] for name in found.get_all("Classifier") or [] if "License ::" in name]
    text = (found.get("License") or "").strip().splitlines()
    return found.get("License-Expression") or ", ".join(classifiers) or (text[0] if text else "unknown")


def main() -> None:
    names = re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    print("# Licenses of the dependencies\n\nWritten by `python benchmarks/licenses.py > docs/licenses.md`.\n")
    print("| package | version | license |\n|---|---|---|")
    problems = []
    for name, version in names:
        try:
            kind = license_of(name)
        except PackageNotFoundError:
            kind = "unknown: not installed"
        print(f"| {name} | {version} | {kind} |")
        if REFUSED.search(kind) or kind.startswith("unknown"):
            problems.append(f"{name}: {kind}")
    if problems:
        sys.exit("Check these licenses: " + "; ".join(problems))


if __name__ == "__main__":
    main()
