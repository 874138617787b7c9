"""
Predict digits.

    python run_inference.py                                  # the bundled checkpoint on 64 test digits
    python run_inference.py --num_samples 0 --grid grid.png  # all of them, and a picture
    python run_inference.py --image photo.png scans/ --top_k 3      # drawings, scans, photographs
"""

from modeling_vit_mnist.commands import predict, run

if __name__ == "__main__":
    run(predict)
