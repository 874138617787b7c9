"""What the benchmarks have in common: counts as arguments, the machine, ratios of measurements made side by side."""

import argparse
import os
import platform
import statistics
from collections.abc import Sequence
from importlib.metadata import version

VERSIONED = ("torch", "transformers", "datasets", "accelerate")


def not_negative(text: str, least: int = 0) -> int:
    """An integer of at least `least`, for `argparse`."""
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"must be an integer of at least {least}, got {text!r}")
    return int(text)


def positive(text: str) -> int:
    return not_negative(text, least=1)


def describe_machine() -> str:
    """Cores, system and versions of the packages that matter."""
    versions = ", ".join(f"{name} {version(name)}" for name in VERSIONED)
    machine = f"{os.cpu_count()} cores of {platform.machine()} {platform.system()}"
    return f"{machine}; Python {platform.python_version()}, {versions}"


def compare(over: Sequence[float], under: Sequence[float]) -> str:
    """Median, minimum and maximum of the ratios of measurements of the same round."""
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
