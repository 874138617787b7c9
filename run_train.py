"""
Train the tiny ViT on MNIST.

    python run_train.py                                        # configs/tiny.yaml
    python run_train.py --recipe my.yaml --learning_rate 0.01  # flags override the recipe
    accelerate launch --config_file configs/accelerate/two_cpu_processes.yaml run_train.py
"""

import sys

from modeling_vit_mnist.errors import run_script


def main() -> None:
    from modeling_vit_mnist.processes import leave_group
    from modeling_vit_mnist.training import parse_arguments, train

    train(*parse_arguments(sys.argv[1:]))
    leave_group()


if __name__ == "__main__":
    run_script(main)
