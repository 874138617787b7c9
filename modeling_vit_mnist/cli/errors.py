"""One-line errors for the scripts: exit code 2 for wrong usage or input, 1 for a failure."""

import io
import logging
import os
import re
import sys
import time
from collections.abc import Callable

# Packages that only some commands need, and the extra of this package that installs each.
EXTRAS = {
    "matplotlib": "plots", "onnx": "onnx", "onnxruntime": "onnx", "onnxscript": "onnx", "tensorboard": "logging",
}  # fmt: skip
LAUNCHER_DELAY = 20  # seconds that other processes wait: if the first one fails, too, the launcher ends them
MAX_MESSAGE = 2000  # characters of an error: a name in it can be of any length
CLOSED_PIPE = 128 + 13  # as a shell reports a process that SIGPIPE ended


class UsageError(ValueError):
    """The user passed something wrong. The message names it, the value seen and what to do."""


def printable(text: str) -> str:
    """`text` on one line, with escapes for what a terminal cannot show or would obey: line breaks, control characters,
    and bytes of file names that are not UTF-8."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def csv_cell(text: str) -> str:
    """`text` for a CSV file: on one line, as [`printable`], and after an apostrophe where a spreadsheet would take
    it for a formula."""
    text = printable(text)
    is_formula = re.match(r"\s*[=+\-@]", text) and not re.fullmatch(r"[+-]?\d+(\.\d*)?", text)
    return f"'{text}" if is_formula else text


class PrintableRecord(logging.LogRecord):
    """A log message as [`printable`]. Other packages log tables of several lines."""

    def getMessage(self) -> str:
        message = super().getMessage()
        is_own = self.name.startswith(__name__.partition(".")[0])
        return "\n".join(map(printable, [message] if is_own else message.splitlines()))


def describe_error(error: Exception) -> str:
    """One line: the message, and the type of anything but a [`UsageError`]."""
    if isinstance(error, ModuleNotFoundError) and (name := str(error.name).partition(".")[0]) in EXTRAS:
        return f"{name} is not installed: run pip install 'vit-mnist[{EXTRAS[name]}]'"
    lines = str(error).strip().splitlines()
    if "Original Traceback (most recent call last):" in lines:  # raised in a worker of a data loader
        lines = [lines[-1].partition(": ")[2]]
    kind = "" if isinstance(error, UsageError) else type(error).__name__
    message = printable(": ".join(filter(None, (kind, " ".join(" ".join(lines).split())))))
    return message if len(message) <= MAX_MESSAGE else f"{message[:MAX_MESSAGE]}..."


def run_script(main: Callable[[], None]) -> None:
    """Run `main` and turn exceptions into one line on stderr and an exit code: 2 for [`UsageError`], 130 for Ctrl-C,
    141 where the reader of the output has gone, 1 for any other exception. `VIT_MNIST_DEBUG=1` shows the traceback
    instead. If all processes of a launcher raise the same error, only the first one reports it."""
    is_first = int(os.environ.get("RANK", 0)) == 0
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # characters that the console's encoding lacks are escaped
            stream.reconfigure(errors="backslashreplace")
    logging.setLogRecordFactory(PrintableRecord)
    try:
        main()
        print(end="", flush=True)
    except KeyboardInterrupt:
        if is_first:
            print("Interrupted.", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _output_is_closed():
            # The reader (`| head`) has closed the pipe. Without this, Python reports an error at shutdown.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(CLOSED_PIPE)  # not 0: files that were to follow the output have not been written
        if not is_first:
            time.sleep(LAUNCHER_DELAY)
        if os.environ.get("VIT_MNIST_DEBUG"):
            raise
        print(f"error: {describe_error(error)}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UsageError) else 1)


def _output_is_closed() -> bool:
    """Whether nobody reads the output any more. Other pipes and connections raise `BrokenPipeError`, too."""
    try:
        print(flush=True)  # a flush alone finds nothing to write
    except BrokenPipeError:
        return True
    return False
