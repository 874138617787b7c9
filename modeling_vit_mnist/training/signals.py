"""SIGTERM, which schedulers send, and Ctrl-C: training stops after the step and keeps a checkpoint of it."""

import os
import signal
import sys
import threading
import time
from typing import Any

import torch
from transformers import TrainerCallback

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A terminal and a launcher can both send the same one: only a later signal is a second one.
SECOND_AFTER = 0.5  # seconds
# Several processes agree on the step to stop at. A message between them at every step would slow them down.
AGREE_EVERY = 10  # steps


class StopCallback(TrainerCallback):
    """As a context, it receives the signals. As a callback, it ends training after the step at which the first one
    came, and has a checkpoint saved there. At any other time the first one ends the process, with an exception; at
    all times, the second one does, at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.time = 0.0
        self.is_training = self.is_stopping = False
        self.process = os.getpid()

    def __enter__(self) -> "StopCallback":
        is_main_thread = threading.current_thread() is threading.main_thread()  # the only one that may set handlers
        self.previous = {number: signal.signal(number, self._receive) for number in SIGNALS if is_main_thread}
        return self

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: Any) -> None:
        if os.getpid() != self.process:  # a worker of a data loader, which its main process ends
            if number == signal.SIGTERM:
                os._exit(128 + number)
        elif self.received is None:
            self.received, self.time = number, time.monotonic()
            if not self.is_training:
                self._report("Run the same command again to go on.")
                if "RANK" in os.environ:  # the other processes may be waiting for this one
                    os._exit(128 + number)
                sys.exit(128 + number)
        elif time.monotonic() - self.time > SECOND_AFTER:
            print(f"Stopped at once by a second {signal.Signals(number).name}.", file=sys.stderr, flush=True)
            os._exit(128 + number)

    def _report(self, advice: str) -> None:
        if os.environ.get("RANK", "0") == "0":
            print(f"Stopped by {signal.Signals(self.received).name}. {advice}", file=sys.stderr, flush=True)

    def exit_if_received(self, args: Any, state: Any) -> None:
        """End the process after training if a signal came. The exit code is that of a process which the signal ended:
        143 for SIGTERM, 130 for Ctrl-C."""
        if not self._agree(args):
            return
        done = f"A checkpoint of step {state.global_step} of {state.max_steps} is saved."
        self._report(f"{done} Run the same command again to go on from there.")
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()  # otherwise torch can abort at shutdown
        sys.exit(128 + self.received)

    def on_train_begin(self, args, state, control, **kwargs):
        self.is_training = True

    def on_step_end(self, args, state, control, **kwargs):
        is_time = args.world_size == 1 or state.global_step % AGREE_EVERY == 0 or state.epoch % 1 == 0
        if is_time and self._agree(args):
            self.is_stopping = control.should_training_stop = control.should_save = True

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.is_stopping and state.epoch % 1 and state.global_step < state.max_steps:
            control.should_log = control.should_evaluate = control.should_save = False  # the epoch goes on later

    def on_train_end(self, args, state, control, **kwargs):
        self.is_training = False

    def _agree(self, args: Any) -> bool:
        """Whether a signal has come, in any process."""
        if args.world_size > 1:
            number = torch.tensor(self.received or 0, device=args.device)
            torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
            self.received = self.received or int(number) or None
        return self.received is not None
