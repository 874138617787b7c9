"""A pytest plugin that makes torchvision importable beside a CPU build of torch, for the tests of timm.

The torchvision of PyPI is built for CUDA. Without it, its C++ operators do not load, and the import fails because two
of them are undeclared. This declares them. They compute nothing, and timm's ViT does not call them.
"""

import torch

try:
    import torchvision  # noqa: F401
except RuntimeError:
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
