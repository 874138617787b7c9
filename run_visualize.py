"""
Show the data, the network, its attention, its training, its mistakes, and how digits are framed.

    python run_visualize.py data       # summary, batch shapes, digits and class balance
    python run_visualize.py model      # every parameter, and the shape after every stage
    python run_visualize.py attention  # the attention of the CLS token
    python run_visualize.py training   # the curves of a run
    python run_visualize.py mistakes   # confusion matrix and most confident errors
    python run_visualize.py framing --image FILE   # how the digit in a picture is found and framed
"""

from modeling_vit_mnist.commands import run, visualize

if __name__ == "__main__":
    run(visualize)
