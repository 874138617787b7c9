"""
Averages the gradients of CPU processes on one machine through memory that they share.

PyTorch's DistributedDataParallel (DDP) averages by gloo, whose receivers sleep until a message wakes them. That can
take half as long as a step of this network on a virtual machine, for 7 KB. Here every process writes its gradients
where all can read them, and watches for the others'. DDP still starts all processes from the same weights, and is left
out of the steps, where its bookkeeping takes longer than the averaging.
"""

import logging
import math
import mmap
import os
import platform
import sys
import tempfile
import time
from collections.abc import Collection, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import torch
import torch.distributed as dist
from accelerate.utils import DistributedDataParallelKwargs
from torch.nn.parallel import DistributedDataParallel


logger = logging.getLogger(__name__)

MAX_BYTES = 2**20  # for more, waking up is no longer what takes the time
LINE = 64  # bytes of a cache line
SPIN = 0.01  # seconds of watching before sleep: a step of 256 images


def can_share(
    *,
    device: str,
    backend: str,
    processes: int,
    local_processes: int,
    cores: int,
    dtypes: Collection[torch.dtype],
    num_bytes: int,
    system: str = f"{sys.platform} {platform.machine()}",
) -> bool:
    """
    Whether gradients should go through shared memory, by the conditions alone.

    Args:
        device, backend: Of the model and of the processes' messages: `"cpu"` and `"gloo"`.
        processes, local_processes: Their number in all, and on this machine: the same.
        cores: CPU cores that they may use, no fewer than there are processes: watching keeps a core busy.
        dtypes, num_bytes: Of all gradients: float32 alone, at most 1 MiB.
        system: Linux, for its `/proc`, on x86-64, where a core's writes are seen in the order that it made them:
            elsewhere, a count could be seen before the gradients that it announces, and Python has no barrier for it.
    """
    return (
        (device, backend, system) == ("cpu", "gloo", "linux x86_64")
        and 1 < processes == local_processes <= cores
        and set(dtypes) == {torch.float32}
        and num_bytes <= MAX_BYTES
    )


def open_memory(num_bytes: int, group: dist.ProcessGroup) -> mmap.mmap | None:
    """
    Zeros that all processes of a group map, without a name: nothing is left of them however the processes end. `None`,
    in all of them, where one cannot have it.
    """
    path, memory = [""], None
    with ExitStack() as files:
        with suppress(OSError):
            if group.rank() == 0:
                file = files.enter_context(tempfile.TemporaryFile(dir="/dev/shm"))
                os.posix_fallocate(file.fileno(), 0, num_bytes)  # fails here if there is no room, not when it is used
                path = [f"/proc/{os.getpid()}/fd/{file.fileno()}"]
        dist.broadcast_object_list(path, group_src=0, group=group)
        with suppress(OSError), open(path[0], "r+b") as file:
            memory = mmap.mmap(file.fileno(), num_bytes)
        reached = [False] * group.size()
        dist.all_gather_object(reached, memory is not None, group=group)
    return memory if all(reached) else None


class SharedMean:
    """
    The mean of tensors over processes that share memory.

    Each process has a count of what it has written, on a cache line of its own, and two places for its tensors, used
    in turns. It may write its next tensors while others still read its last ones, but not those after: for that it has
    to have seen that they have written their next, too.

    Args:
        memory (`mmap.mmap`): Zeros, at least `num_bytes(shapes, processes)`.
        rank, processes (`int`): Of this process, and how many there are.
        shapes (sequence of `torch.Size`): Of the tensors, the same in every process.
        timeout (`float`): Seconds to wait for another process.
    """

    def __init__(
        self, memory: mmap.mmap, rank: int, processes: int, shapes: Sequence[torch.Size], timeout: float = 1800.0
    ):
        self.rank, self.timeout, self.count = rank, timeout, 0
        self.counts = memoryview(memory).cast("q")[: processes * LINE // 8 : LINE // 8]
        sizes = [shape.numel() for shape in shapes]

        def divide(flat: torch.Tensor) -> list[torch.Tensor]:
            return [piece.view(shape) for piece, shape in zip(flat.split(sizes), shapes, strict=True)]

        places = (2, processes, sum(sizes))
        slots = torch.frombuffer(memory, dtype=torch.float32, count=math.prod(places), offset=processes * LINE)
        self.slots = slots.view(places)
        self.own = [divide(slot) for slot in self.slots[:, rank]]
        self.mean = torch.empty(sum(sizes))
        self.means = divide(self.mean)

    @staticmethod
    def num_bytes(shapes: Sequence[torch.Size], processes: int) -> int:
        """Of the memory that tensors of these shapes need."""
        return processes * (LINE + 2 * sum(shape.numel() for shape in shapes) * torch.float32.itemsize)

    def average(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """
        The means of tensors over the processes, the same to the last bit in all of them.

        Args:
            tensors (sequence of `torch.Tensor`, float32): Of the shapes given at first.

        Returns:
            `list[torch.Tensor]` of these shapes: the same memory at every call.

        Raises:
            RuntimeError: another process has not come within `timeout`.
        """
        self.count += 1
        turn = self.count % 2
        torch._foreach_copy_(self.own[turn], tensors)
        self.counts[self.rank] = self.count  # after the numbers, which it announces
        for rank in range(len(self.counts)):
            self._wait(rank)
        torch.mean(self.slots[turn], dim=0, out=self.mean)
        return self.means

    def _wait(self, rank: int) -> None:
        """Watch at first; then sleep a tenth of the time already waited, as the other may be saving or evaluating."""
        started = time.monotonic()
        while self.counts[rank] < self.count:
            waited = time.monotonic() - started
            if waited > self.timeout:
                raise RuntimeError(f"Process {rank} has sent no gradients for {waited:.0f} s.")
            if waited < SPIN:
                os.sched_yield()  # on a busy machine, to the one that is waited for
            else:
                time.sleep(min(waited / 10, 0.01))


def share_memory(model: DistributedDataParallel, timeout: float = 1800.0) -> SharedMean | None:
    """
    The mean of a model's gradients through shared memory, where [`can_share`] says so and there is such memory; DDP
    then averages them no more. Every process must call it, once.

    Args:
        model: As DDP has wrapped it, before its first backward.
        timeout: Seconds that one process waits for another's gradients.

    Returns:
        [`SharedMean`], or `None`, the same in every process.
    """
    group, parameters = model.process_group, [param for param in model.parameters() if param.requires_grad]
    shapes, device = [param.shape for param in parameters], parameters[0].device.type
    cores = [set()] * group.size()
    if device == "cpu" and hasattr(os, "sched_getaffinity"):
        dist.all_gather_object(cores, os.sched_getaffinity(0), group=group)
    memory = None
    if can_share(
        device=device,
        backend=dist.get_backend(group),
        processes=group.size(),
        local_processes=int(os.environ.get("LOCAL_WORLD_SIZE", 0)),
        cores=len(set().union(*cores)),
        dtypes={param.dtype for param in parameters},
        num_bytes=sum(param.nbytes for param in parameters),
    ):
        memory = open_memory(SharedMean.num_bytes(shapes, group.size()), group)
    if memory is None:
        return None
    model.require_backward_grad_sync = False  # as under `no_sync`, for good
    model.zero_grad = model.module.zero_grad  # DDP's own walks over all modules in search of the weights
    return SharedMean(memory, group.rank(), group.size(), shapes, timeout)


def leave_group() -> None:
    """Leave the other processes, where there are any: torch aborts now and then if Python shuts down before that."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


@dataclass
class SharedGradients(DistributedDataParallelKwargs):
    """accelerate's arguments of DDP, and what averages in its place. The timeout is a `comm_state_option`."""

    def __post_init__(self):
        self.mean, self.parameters = None, []

    def register_comm_hook(self, model: DistributedDataParallel) -> None:
        """Called by accelerate, once, for the model that it has wrapped."""
        self.mean = share_memory(model, **self.comm_state_option)
        self.parameters = [param for param in model.parameters() if param.requires_grad]
        if self.mean is not None:
            logger.info("Averaging gradients through shared memory.")

    def average(self) -> None:
        """After the backward of a step: its gradients' mean over the processes, where DDP has not averaged them."""
        if self.mean is not None:
            means = self.mean.average([param.grad for param in self.parameters])
            for param, mean in zip(self.parameters, means, strict=True):
                param.grad = mean
