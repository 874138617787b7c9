"""The launcher of several processes: `accelerate launch` or `torchrun`."""

import os
import sys
import threading
import time

CHECK_SECONDS = 2.0


def watch_launcher() -> None:
    """End this process if the launcher that started it ends: nothing else would."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # of accelerate launch and torchrun
        return
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(CHECK_SECONDS)
        name = f"process {os.environ.get('RANK')}"
        print(
            f"error: The launcher of {name} has ended. Run the same command again to go on.",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
