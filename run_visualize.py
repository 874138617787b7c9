"""
Show the data, the network, its attention, its training, its mistakes, and how digits are framed.

    python run_visualize.py data          # summary, batch shapes, images and class balance
    python run_visualize.py model         # every parameter, and the shape after every stage
    python run_visualize.py architecture  # the network, drawn from its config
    python run_visualize.py parameters    # where the parameters are
    python run_visualize.py patches       # an image cut into patches, and its tokens
    python run_visualize.py filters       # the filters of the patch embedding, and their responses
    python run_visualize.py positions     # how similar the position embeddings are
    python run_visualize.py attention     # the attention of the CLS token
    python run_visualize.py rollout       # attention per layer, and through all layers
    python run_visualize.py warps         # training images as the run augmented them
    python run_visualize.py training      # the curves of a run
    python run_visualize.py mistakes      # confusion matrix and most confident errors
    python run_visualize.py calibration   # whether the probabilities are right as often as they say
    python run_visualize.py framing --image FILE   # how the digit in a picture is found and framed
    python run_visualize.py report --model RUN     # one HTML page of a finished run
"""

from modeling_vit_mnist.commands import run, visualize

if __name__ == "__main__":
    run(visualize)
