"""
Convert a checkpoint to a form that needs none of this code, or back, or make a Space of it.

    python run_export.py --format vit-rgb --output exports/vit-rgb  # for pipeline("image-classification", model=...)
    python run_export.py --format onnx --output exports/onnx        # needs pip install -e '.[onnx]'
    python run_export.py --format import --model old.pth --output exports/imported
    python run_export.py --format space --output exports/space      # the page, with the bundled checkpoints
"""

from modeling_vit_mnist.commands import export, run

if __name__ == "__main__":
    run(export)
