"""Files that the package needs at run time: recipes, the card template, bundled digits, the page, a checkpoint."""

from pathlib import Path


def asset(name: str) -> Path:
    """Path of an asset, named as in the repository: `configs/tiny.yaml`, `model_card.md`, `data/mnist-5k`,
    `demo/web`, `vit-mnist-tiny`. A wheel holds them in the package's folder `assets`, a checkout at its top."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "assets" / name
    return installed if installed.exists() else package.parent / name
