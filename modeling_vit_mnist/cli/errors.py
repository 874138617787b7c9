"""One-line errors for the scripts: exit code 2 for wrong usage or input, 1 for a failure."""

import os
import sys
from collections.abc import Callable

# Packages that only some commands need, and the extra of this package that installs each.
EXTRAS = {"matplotlib": "plots", "onnx": "onnx", "onnxruntime": "onnx", "onnxscript": "onnx"}


class UsageError(ValueError):
    """The user passed something wrong. The message names it, the value seen and what to do."""


def run_script(main: Callable[[], None]) -> None:
    """Run `main` and turn exceptions into one line on stderr and an exit code: 2 for [`UsageError`], 130 for Ctrl-C, 1
    for any other exception. `VIT_MNIST_DEBUG=1` shows the traceback instead."""
    try:
        main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader (`| head`) has closed the pipe. Without this, Python reports an error at shutdown.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if os.environ.get("VIT_MNIST_DEBUG"):
            raise
        if isinstance(error, ModuleNotFoundError) and error.name in EXTRAS:
            message = f"{error.name} is not installed: run pip install 'vit-mnist[{EXTRAS[error.name]}]'"
        else:
            kind = "" if isinstance(error, UsageError) else f"{type(error).__name__}: "
            message = f"{kind}{' '.join(str(error).split())}"
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UsageError) else 1)
