"""The four commands, as the scripts `run_*.py` and as `vit-mnist train | predict | visualize | export`."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from .cli.arguments import RecipeParser
from .cli.errors import printable, run_script
from .cli.launcher import watch_launcher


def run(command: Callable[[], None]) -> None:
    """Run a command with one-line errors, and without transformers' progress bars for a few kilobytes. If a launcher
    started several processes, only the first one logs warnings, and all end when the launcher ends."""
    watch_launcher()
    disable_progress_bar()
    if not sys.stderr.isatty():  # read when `datasets` is imported
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if int(os.environ.get("RANK", 0)) > 0:
        logging.getLogger("modeling_vit_mnist").setLevel(logging.ERROR)
    run_script(command)


@contextmanager
def default_model(args: Any, parser: RecipeParser) -> Iterator[None]:
    """Without `--model`, run the block with the checkpoint of [`find_default_model`], and then name it on stderr."""
    from .checkpoints.card import read_run
    from .checkpoints.folder import DEFAULT_MODEL, find_default_model

    if "model" in parser.given:
        yield
        return
    path = find_default_model()
    what = "the bundled vit-mnist-tiny"
    if path != DEFAULT_MODEL:
        what = printable(f"{path}, the newest run, trained on {read_run(path)[1]['dataset']}")
    args.model = str(path)
    yield
    if int(os.environ.get("RANK", 0)) == 0:
        print(f"Model: {what} (--model chooses another)", file=sys.stderr)


def train() -> None:
    """Train the tiny ViT and save it as a complete checkpoint folder."""
    from .data.sources import is_sample
    from .training.arguments import parse_arguments
    from .training.processes import decide
    from .training.train import train

    argv = sys.argv[1:]
    arguments = model_args, data_args, _, args = parse_arguments(argv)
    names_start = "--recipe" in [token.partition("=")[0] for token in argv] or model_args.model_name_or_path
    if not names_start and decide(args, is_sample, data_args):
        if args.process_index == 0:
            print("Recipe: configs/sample.yaml, for the bundled sample (--recipe chooses another)")
        arguments = _, data_args, _, args = parse_arguments(["--recipe=configs/sample.yaml", *argv])
    if args.report:  # imported before the work, for it needs matplotlib
        from .inference.arguments import VisualizeArguments
        from .inference.report import write_report
        from .inference.subject import Subject
    train(*arguments)
    if args.report and args.process_index == 0:
        shown = VisualizeArguments(model=args.output_dir, device="cpu" if args.use_cpu else None)
        write_report(Subject(shown, data_args), Path(args.output_dir))
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # otherwise torch can abort at shutdown


def predict() -> None:
    """Predict digits of a dataset or of image files."""
    from .data.arguments import DataArguments
    from .inference.arguments import InferenceArguments
    from .inference.parts import predict_parts
    from .inference.predict import run_inference

    parser = RecipeParser([InferenceArguments, DataArguments], description=predict.__doc__)
    args, data_args = parser.parse(sys.argv[1:])
    parser.warn_unused(args.used_flags(), "The prediction of files" if args.image else f"The {args.split} split")
    with default_model(args, parser):
        (predict_parts if args.writes_parts else run_inference)(args, data_args)


def visualize() -> None:
    """Show the data, the network, its attention, its training, its mistakes, and how digits are framed."""
    from .data.arguments import DataArguments
    from .inference.arguments import VisualizeArguments
    from .inference.report import write_report
    from .inference.subject import Subject
    from .inference.visualize import VIEWS, show

    parser = RecipeParser([VisualizeArguments, DataArguments], description=visualize.__doc__)
    parser.add_argument("view", choices=[*VIEWS, "report"], help="What to show; report: a page of a finished run.")
    args, data_args, chosen = parser.parse(sys.argv[1:])
    parser.warn_unused(args.used_flags(chosen.view), f"The view {chosen.view!r}")
    with default_model(args, parser) if "model" in args.used_flags(chosen.view) else nullcontext():
        subject = Subject(args, data_args)
        if chosen.view == "report":
            write_report(subject, Path(args.output_dir))
        else:
            show(chosen.view, subject)


def export() -> None:
    """Convert a checkpoint to transformers' own ViT, timm, ONNX or a Space, or back."""
    from .checkpoints.export import ExportArguments, run_export

    parser = RecipeParser(ExportArguments, description=export.__doc__)
    (args,) = parser.parse(sys.argv[1:])
    reads_file = args.format == "import" and args.model is not None and os.path.isfile(args.model)
    used = {*vars(args)} - (set() if reads_file else {"num_attention_heads"})
    parser.warn_unused(used, "The import of a folder" if args.format == "import" else f"--format {args.format}")
    with nullcontext() if args.format == "space" else default_model(args, parser):
        run_export(args)


COMMANDS = {"train": train, "predict": predict, "visualize": visualize, "export": export}


def main() -> None:
    """Entry point of `vit-mnist`."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    sys.argv[:2] = [f"vit-mnist {name}"]
    if name in ("-h", "--help"):
        print("usage: vit-mnist COMMAND [--help] ...\n")
        print("\n".join(f"  {name:<10} {command.__doc__}" for name, command in COMMANDS.items()))
    elif name in COMMANDS:
        run(COMMANDS[name])
    else:
        print(f"error: Unknown command {name!r}: choose from {', '.join(COMMANDS)}.", file=sys.stderr)
        sys.exit(2)
