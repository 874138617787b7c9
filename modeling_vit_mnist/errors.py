"""What a person sees when something goes wrong: one line and an exit code, 2 for wrong input, 1 for a failure."""

import os
import sys
from collections.abc import Callable


# The packages that only some commands need, and the extras of this package that install them.
EXTRAS = {"matplotlib": "plots", "onnx": "onnx", "onnxruntime": "onnx", "onnxscript": "onnx"}


class InputError(ValueError):
    """Something the person passed in is wrong; the message names it, the value seen and what to do."""


def run_script(main: Callable[[], None]) -> None:
    """
    Run a script's `main`, turning what it raises into one line on stderr and an exit code: 2 for [`InputError`], 1 for
    any other failure, 130 for Ctrl-C. `VIT_MNIST_DEBUG=1` shows the traceback instead.
    """
    try:
        main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader (`| head`) has gone; Python must not complain about it while it shuts down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if os.environ.get("VIT_MNIST_DEBUG"):
            raise
        if isinstance(error, ModuleNotFoundError) and error.name in EXTRAS:
            message = f"this needs {error.name}: pip install -e '.[{EXTRAS[error.name]}]'"
        else:
            kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
            message = f"{kind}{' '.join(str(error).split())}"
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 1)
