"""
Train the tiny ViT on MNIST.

    python run_train.py                                        # configs/tiny.yaml
    python run_train.py --recipe my.yaml --learning_rate 0.01  # flags override the recipe
    accelerate launch --config_file configs/accelerate/two_cpu_processes.yaml run_train.py
"""

from modeling_vit_mnist.commands import run, train

if __name__ == "__main__":
    run(train)
