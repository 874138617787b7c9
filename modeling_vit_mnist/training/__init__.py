"""Training: from arguments to a finished checkpoint folder. Start reading at `train.py`."""
