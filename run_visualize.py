"""
Look at the data, the network, its attention, its training and its mistakes.

    python run_visualize.py data       # summary, batch shapes, digits and class balance
    python run_visualize.py model      # every parameter, and the shape after every stage
    python run_visualize.py attention  # what the CLS token looks at
    python run_visualize.py training   # the curves of a run
    python run_visualize.py mistakes   # confusion matrix and surest mistakes
"""

import sys

from modeling_vit_mnist.errors import run_script


def main() -> None:
    from modeling_vit_mnist.arguments import DataArguments, Parser
    from modeling_vit_mnist.visualize import VIEWS, VisualizeArguments

    parser = Parser(
        [VisualizeArguments, DataArguments],
        prog="run_visualize.py",
        description="Look at the data, the network, its attention, its training and its mistakes.",
    )
    parser.add_argument("view", choices=VIEWS, help="What to look at.")
    args, data_args, chosen = parser.parse(sys.argv[1:])
    VIEWS[chosen.view](args, data_args)


if __name__ == "__main__":
    run_script(main)
