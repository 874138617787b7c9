"""
Predict digits.

    python run_inference.py                                  # the kept checkpoint on 64 test digits
    python run_inference.py --num_samples 0 --grid grid.png  # all of them, and a picture
    python run_inference.py --image photo.png scans/ --do_center true --do_invert auto --top_k 3
"""

import importlib.util
import sys


# The package's modules without its `__init__`, which imports much of transformers to register classes with the Auto
# classes. Nothing here needs that, and an image file is predicted in half the time.
package = importlib.util.find_spec("modeling_vit_mnist")
sys.modules.setdefault(package.name, importlib.util.module_from_spec(package))

from modeling_vit_mnist.errors import run_script  # noqa: E402


def main() -> None:
    from modeling_vit_mnist.arguments import DataArguments, Parser
    from modeling_vit_mnist.inference import InferenceArguments, run_inference

    parser = Parser(
        [InferenceArguments, DataArguments],
        prog="run_inference.py",
        description="Predict digits of a dataset or of image files with a trained checkpoint.",
    )
    run_inference(*parser.parse(sys.argv[1:]))


if __name__ == "__main__":
    run_script(main)
