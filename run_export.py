"""
Turn a checkpoint into a form that needs none of this code, or back.

    python run_export.py --format vit-rgb --output exports/vit-rgb  # for pipeline("image-classification", model=...)
    python run_export.py --format onnx --output exports/onnx        # needs pip install -e '.[onnx]'
    python run_export.py --format import --model old.pth --output exports/imported
"""

import sys

from modeling_vit_mnist.errors import run_script


def main() -> None:
    from modeling_vit_mnist.arguments import Parser
    from modeling_vit_mnist.export import ExportArguments, run_export

    parser = Parser(
        ExportArguments,
        prog="run_export.py",
        description="Turn a checkpoint into transformers' own ViT, a timm model or ONNX, or back.",
    )
    run_export(*parser.parse(sys.argv[1:]))


if __name__ == "__main__":
    run_script(main)
