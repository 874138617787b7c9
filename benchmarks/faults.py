"""
Faults put into training runs of the bundled sample: what was tried, survived and lost. Takes about half an hour.

    python benchmarks/faults.py                                            # all, as in docs/reliability.md
    python benchmarks/faults.py --kills 40 --signals 0 --torn 0 --full_disks 0   # some of one kind

kills       SIGKILL before a random file operation or at a random time, in a new folder and with --overwrite over a
            finished result. The same command is killed up to four times, and then runs to its end.
torn        a file of the newest checkpoint, or the record of the run, as a power loss can leave it: missing, empty,
            cut in half, zeros, or with a bit flipped. The same command runs to its end.
full disks  a file system (tmpfs) that is full at some point of the run. It is enlarged, and the command runs again.
signals     SIGTERM and Ctrl-C at a random time. The same command runs to its end.

A fault is survived if the message says what happened, the result that was there is whole, the run goes on from its
newest whole checkpoint, its final weights are those of a run without a fault, byte for byte, and nothing is left
behind. Each run is a fork of this process, which has imported everything.
"""

import argparse
import ctypes
import math
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from report import describe_machine

from modeling_vit_mnist.checkpoints.card import read_run
from modeling_vit_mnist.checkpoints.folder import load_checkpoint
from modeling_vit_mnist.cli.errors import UsageError, run_script
from modeling_vit_mnist.training.arguments import parse_arguments
from modeling_vit_mnist.training.run_folder import own_checkpoints
from modeling_vit_mnist.training.train import train

ROOT = Path(__file__).resolve().parents[1]
RUN = [
    f"--recipe={ROOT / 'configs' / 'adam.yaml'}", f"--dataset_name={ROOT / 'data' / 'mnist-5k'}", "--seed=1",
    "--max_train_samples=400", "--max_eval_samples=100", "--num_train_epochs=4", "--per_device_train_batch_size=50",
    "--use_cpu=True", "--disable_tqdm=True", "--load_best_model_at_end=no", "--save_total_limit=3",
]  # fmt: skip
# What changes a file, as Python reports it to audit hooks.
OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate", "shutil.copyfile")
TEARS: dict[str, Callable[[bytes], bytes | None]] = {
    "missing": lambda content: None,
    "empty": lambda content: b"",
    "cut in half": lambda content: content[: len(content) // 2],
    "zeros": lambda content: bytes(len(content)),
    "a bit flipped": lambda content: (
        content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 16]) + content[len(content) // 2 + 1 :]
    ),
}


class Fault(Exception):
    """What a fault has cost, in words."""


def start(folder: Path, *flags: str, prepare: Callable[[], None] = lambda: None) -> int:
    """Train in a fork of this process, with output to `folder`.log. Returns the id of the process."""
    if process := os.fork():
        return process
    code = 70
    try:
        direct_output(log_of(folder))
        prepare()
        run_script(lambda: train(*parse_arguments([*RUN, f"--output_dir={folder}", *flags])))
        code = 0
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    finally:
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(code)


def direct_output(path: Path) -> None:
    """Direct what this process prints to a file."""
    with path.open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)


def wait(process: int) -> int:
    """The exit code of a process, negative for a signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def log_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.log")


def check(is_so: bool, fault: str) -> None:
    if not is_so:
        raise Fault(fault)


def finish(folder: Path, whole: bytes, *flags: str) -> None:
    """Run the command to its end. Raises [`Fault`] if it fails, starts anew, or ends with another result."""
    checkpoints = [path for path in own_checkpoints(folder) if (path / "manifest.json").exists()]
    code = wait(start(folder, *flags))
    said = log_of(folder).read_text()
    check(code == 0, f"exit {code}: {said.splitlines()[-1:]}")
    check(not checkpoints or "Resuming from" in said or "already finished" in said, "started anew")
    check((folder / "model.safetensors").read_bytes() == whole, "other weights")
    read_run(folder)
    check((folder / "history.json").is_file(), "history.json is missing")
    left = [path.name for path in [*folder.glob(".saving*"), *folder.glob(".complete*"), *folder.parent.glob(".*")]]
    left += [path.name for path in [*folder.glob("checkpoint-*"), *folder.glob("unfinished*"), *folder.glob(".re*")]]
    check(not left, f"left behind: {left}")


def check_result(folder: Path, results: tuple[bytes, ...]) -> None:
    """Raise [`Fault`] unless a finished result is one of `results`, and whole."""
    check((folder / "model.safetensors").read_bytes() in results, "the result has other weights")
    load_checkpoint(folder)
    read_run(folder)
    check((folder / "history.json").is_file(), "history.json is missing in the result")


def kill_before(number: int) -> None:
    """Kill this process before the given file operation from now on."""
    count = 0

    def audit(event: str, arguments: tuple) -> None:
        nonlocal count
        if event in OPERATIONS and not (event == "open" and arguments[1] in ("r", "rb", None)):
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(audit)


class Faults:
    """Tries of each kind, and what was lost."""

    def __init__(self, folder: Path, seed: int):
        self.folder, self.draw = folder, random.Random(seed)
        self.tried: dict[str, int] = {}
        self.lost: dict[str, list[str]] = {}
        whole, old = folder / "whole" / "run", folder / "old" / "run"
        for path, flags in ((whole, ()), (old, ("--seed=2",))):
            path.parent.mkdir()
            begun = time.monotonic()
            if wait(start(path, *flags)):
                sys.exit(log_of(path).read_text())
            self.seconds = time.monotonic() - begun
        self.old, self.whole = old, (whole / "model.safetensors").read_bytes()

    def case(self) -> Path:
        """The output folder of a new case, alone in its parent."""
        parent = self.folder / "case"
        shutil.rmtree(parent, ignore_errors=True)
        parent.mkdir()
        return parent / "run"

    def count(self, kind: str, tries: int, run: Callable[[], None]) -> None:
        self.tried[kind] = self.tried.get(kind, 0) + tries
        try:
            run()
        except (Fault, UsageError, OSError) as error:
            self.lost.setdefault(kind, []).append(str(error))
            print(f"LOST {kind}: {error}", flush=True)

    def kill(self, kills: int, overwrite: bool, by_operation: bool) -> None:
        """Kill one command several times, and let it end."""
        folder = self.case()
        flags = ["--overwrite"] if overwrite else []
        results: tuple[bytes, ...] = ((self.old / "model.safetensors").read_bytes(), self.whole)
        if overwrite:
            shutil.copytree(self.old, folder)
        place = "a result that is overwritten" if overwrite else "a new folder"
        done = 0

        def run() -> None:
            nonlocal done
            for _ in range(kills):
                number, seconds = self.draw.randrange(1, 480), self.draw.uniform(0, self.seconds)
                process = start(folder, *flags, prepare=lambda n=number: kill_before(n) if by_operation else None)
                if not by_operation:
                    time.sleep(seconds)
                    with suppress(ProcessLookupError):
                        os.kill(process, signal.SIGKILL)
                if (code := wait(process)) == 0:
                    break  # it had ended before
                check(code == -signal.SIGKILL, f"exit {code}: {log_of(folder).read_text().splitlines()[-1:]}")
                done += 1
                if overwrite:
                    check_result(folder, results)
                elif (folder / "all_results.json").exists():
                    check_result(folder, results[1:])
            finish(folder, self.whole, *flags)

        moment = "before a file operation" if by_operation else "at a random time"
        kind = f"SIGKILL {moment}, {place}"
        self.count(kind, 0, run)
        self.tried[kind] += done

    def tear(self, tries: int) -> None:
        """Tear each file of the newest checkpoint, and the record of the run; or `tries` of them."""
        stopped = self.case().parent.with_name("stopped") / "run"
        stopped.parent.mkdir()
        process = start(stopped)
        while len(own_checkpoints(stopped) if stopped.exists() else []) < 2:
            time.sleep(0.01)
        os.kill(process, signal.SIGTERM)
        check(wait(process) == 128 + signal.SIGTERM, "SIGTERM did not stop the run")
        newest = own_checkpoints(stopped)[0]
        names = [f"{newest.name}/{path.name}" for path in sorted(newest.iterdir())] + ["unfinished_run.json"]
        cases = [(name, kind) for name in names for kind in TEARS]
        for name, kind in cases if tries >= len(cases) else self.draw.sample(cases, tries):
            folder = self.case()
            shutil.copytree(stopped, folder)
            torn = TEARS[kind]((folder / name).read_bytes())
            if torn is None:
                (folder / name).unlink()
            else:
                (folder / name).write_bytes(torn)

            def run(folder: Path = folder, name: str = name) -> None:
                finish(folder, self.whole)
                said = log_of(folder).read_text()
                is_checkpoint = "/" in name
                check(not is_checkpoint or f"Skipping {folder / newest.name}" in said, "no word of the torn file")
                check(not is_checkpoint or Path(name).name in said, "the torn file is not named")

            self.count(f"a torn file: {kind}", 1, run)

    def fill(self, kilobytes: int) -> None:
        """Run in a file system of a size, which is enlarged afterwards."""
        parent = self.case().parent
        folder = parent / "run"

        def run() -> None:
            if process := os.fork():
                if wait(process):
                    raise Fault((self.folder / "report").read_text())
                return
            report = ""
            try:
                mount(parent, kilobytes)
                shutil.copytree(self.old, folder)
                log = self.folder / "full.log"  # elsewhere: there is no space for it
                code = wait(start(folder, "--overwrite", prepare=lambda: direct_output(log)))
                check(code == 1, f"the disk was not full: exit {code}")
                said = log.read_text().splitlines()[-1]
                check("No space left on device" in said, said)
                check_result(folder, ((self.old / "model.safetensors").read_bytes(),))
                mount(parent, 1 << 20, again=True)
                finish(folder, self.whole, "--overwrite")
            except Exception as error:
                report = f"{type(error).__name__}: {error}"
            (self.folder / "report").write_text(report)
            os._exit(bool(report))

        self.count("a full disk", 1, run)

    def interrupt(self, number: signal.Signals) -> None:
        folder = self.case()

        def run() -> None:
            process = start(folder)
            while not own_checkpoints(folder) if folder.exists() else True:
                time.sleep(0.005)
            time.sleep(self.draw.uniform(0, self.seconds / 4))
            os.kill(process, number)
            code, said = wait(process), log_of(folder).read_text()
            if "Saved to" not in said:  # else it had ended before
                check(code == 128 + number, f"exit {code}: {said.splitlines()[-1:]}")
                check(f"Stopped by {number.name}" in said and "Run the same command again" in said, "no word of it")
            finish(folder, self.whole)

        self.count(f"{number.name} while training", 1, run)


def mount(folder: Path, kilobytes: int, again: bool = False) -> None:
    """Mount a tmpfs at `folder`, for this process and its children alone, or change its size."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_user, new_mounts, remount = 0x10000000, 0x00020000, 32  # of <sched.h> and <sys/mount.h>
    private = 1 << 18 | 1 << 14
    if not again and libc.unshare(new_mounts | (new_user if os.geteuid() else 0)):
        raise OSError(ctypes.get_errno(), "no mounts of its own for a process here")
    if not again:
        libc.mount(b"none", b"/", None, private, None)
    options = f"size={kilobytes}k".encode()
    if libc.mount(b"none", os.fsencode(folder), b"tmpfs", remount if again else 0, options):
        raise OSError(ctypes.get_errno(), f"cannot mount {folder}")


def can_mount(folder: Path) -> bool:
    """Whether a process may mount a file system of its own here."""
    if process := os.fork():
        return wait(process) == 0
    try:
        mount(folder, 1000)
    except OSError as error:
        print(f"No full disks: {error.strerror}.", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, number in (("kills", 200), ("torn", 1000), ("full_disks", 20), ("signals", 40)):
        parser.add_argument(f"--{name}", type=int, default=number, help=f"how many to try. Default: {number}")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if sys.platform != "linux":
        raise UsageError("The faults are put in by means of Linux.")
    with tempfile.TemporaryDirectory() as folder:
        faults = Faults(Path(folder), args.seed)
        for overwrite, by_operation in ((False, True), (True, True), (False, False), (True, False)):
            share = math.ceil(args.kills / 4)
            tried = 0
            while tried < share:
                before = sum(faults.tried.values())
                faults.kill(min(4, share - tried), overwrite, by_operation)
                tried += sum(faults.tried.values()) - before
        if args.torn:
            faults.tear(args.torn)
        for number in range(args.full_disks if can_mount(Path(folder)) else 0):
            faults.fill(round(180 + number * 400 / max(args.full_disks, 1)))
        for number in range(args.signals):
            faults.interrupt((signal.SIGTERM, signal.SIGINT)[number % 2])
    print("| fault | tried | survived | lost |\n|---|---|---|---|")
    for kind, tried in faults.tried.items():
        lost = len(faults.lost.get(kind, []))
        print(f"| {kind} | {tried} | {tried - lost} | {lost} |")
    print(f"\n{describe_machine()}")
    sys.exit(bool(faults.lost))


if __name__ == "__main__":
    run_script(main)
