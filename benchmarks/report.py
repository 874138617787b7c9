"""What the benchmarks print in common: the machine, and ratios of measurements made side by side."""

import os
import platform
import statistics
from collections.abc import Sequence

VERSIONED = ("torch", "transformers", "datasets", "accelerate")


def describe_machine() -> str:
    """Cores, system and versions of the packages that matter."""
    from importlib.metadata import version

    versions = ", ".join(f"{name} {version(name)}" for name in VERSIONED)
    machine = f"{os.cpu_count()} cores of {platform.machine()} {platform.system()}"
    return f"{machine}; Python {platform.python_version()}, {versions}"


def compare(over: Sequence[float], under: Sequence[float]) -> str:
    """Median, minimum and maximum of the ratios of measurements of the same round."""
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
