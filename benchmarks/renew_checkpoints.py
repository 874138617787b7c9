"""
Write the code and the card of the bundled checkpoints again, from the package and the records in their folders.

    python benchmarks/renew_checkpoints.py
"""

from pathlib import Path

from modeling_vit_mnist.checkpoints.card import renew

if __name__ == "__main__":
    for folder in sorted(Path(__file__).resolve().parents[1].glob("vit-mnist-*")):
        renew(folder)
        print(f"Renewed {folder.name}")
