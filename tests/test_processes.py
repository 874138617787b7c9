"""Gradients averaged through shared memory: the mean, the same bits in every process, and only where it should be."""

import contextlib
import mmap
import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from modeling_vit_mnist import processes
from modeling_vit_mnist.optimizers import NaturalGradient
from modeling_vit_mnist.processes import MAX_BYTES, SharedGradients, SharedMean, can_share


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="shared memory is used on Linux alone")

RIGHT = {
    "device": "cpu", "backend": "gloo", "processes": 2, "local_processes": 2, "cores": 2, "dtypes": {torch.float32},
    "num_bytes": MAX_BYTES, "system": "linux x86_64",
}  # fmt: skip
STEPS = range(6)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"cores": 3}, True),
        ({"device": "cuda"}, False),
        ({"backend": "nccl"}, False),
        ({"processes": 4}, False),  # on two machines
        ({"local_processes": 0}, False),  # started by something that does not say
        ({"processes": 1, "local_processes": 1}, False),
        ({"cores": 1}, False),
        ({"dtypes": {torch.float32, torch.bfloat16}}, False),
        ({"num_bytes": MAX_BYTES + 1}, False),
        ({"system": "linux aarch64"}, False),
        ({"system": "win32 AMD64"}, False),
    ],
)
def test_used_only_where_it_is_right(change, expected):
    assert can_share(**RIGHT | change) is expected


SHAPES = [torch.Size([2]), torch.Size([3, 1])]


def shared_mean(rank: int, memory: mmap.mmap, **kwargs) -> SharedMean:
    return SharedMean(memory, rank, processes=2, shapes=SHAPES, **kwargs)


def average_flat(mean: SharedMean, numbers: torch.Tensor) -> torch.Tensor:
    """Of five numbers, by two tensors."""
    return torch.cat([part.flatten() for part in mean.average([numbers[:2].clone(), numbers[2:, None].clone()])])


def test_a_process_may_be_one_tensor_ahead():
    """What it writes while the other still reads must not be what is read."""
    memory = mmap.mmap(-1, SharedMean.num_bytes(SHAPES, 2))
    ahead, behind = shared_mean(0, memory), shared_mean(1, memory)
    read = []
    wait = behind._wait

    def wait_and_dawdle(rank):
        wait(rank)
        time.sleep(0.05)

    behind._wait = wait_and_dawdle
    tensors = torch.randn(2, 4, 5)
    thread = threading.Thread(target=lambda: read.extend(average_flat(behind, numbers) for numbers in tensors[1]))
    thread.start()
    for numbers, mean in zip(tensors[0], tensors.mean(0), strict=True):
        assert torch.equal(average_flat(ahead, numbers), mean)
    thread.join()
    assert torch.equal(torch.stack(read), tensors.mean(0))


def test_a_process_that_does_not_come_is_named():
    mean = shared_mean(0, mmap.mmap(-1, SharedMean.num_bytes(SHAPES, 2)), timeout=0.05)
    with pytest.raises(RuntimeError, match="Process 1 has sent no gradients"):
        average_flat(mean, torch.zeros(5))


class GivenGradients(nn.Module):
    """Parameters whose gradients are the numbers that it is called with."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ParameterList([torch.zeros(3, 70), torch.zeros(11), torch.zeros(400), torch.zeros(2, 2)])

    def forward(self, numbers):  # (parameters,)
        return (torch.cat([part.flatten() for part in self.parts]) * numbers).sum()

    def gradients(self) -> torch.Tensor:
        return torch.cat([part.grad.flatten() for part in self.parts])


def draw(rank: int, step: int) -> torch.Tensor:
    """Two batches of gradients, large and small."""
    generator = torch.Generator().manual_seed(1000 * rank + step)
    return torch.randn(2, 625, generator=generator) * 10.0 ** torch.randint(-6, 6, (2, 625), generator=generator)


@pytest.mark.parametrize("world_size", [2, 3])
def test_several_processes(world_size, tmp_path):
    # Forked from a process that has imported what they need, and done nothing yet.
    multiprocessing.set_forkserver_preload([__name__])
    torch.multiprocessing.start_processes(
        run_process, (world_size, tmp_path), nprocs=world_size, start_method="forkserver"
    )
    first, *others = [torch.load(tmp_path / f"{rank}.pt") for rank in range(world_size)]
    assert len(first) == 4 * len(STEPS)
    for step, got in zip(4 * [*STEPS], first, strict=True):
        given = torch.stack([draw(rank, step) for rank in range(world_size)])[:, : 1 + step % 2]
        error = (got - given.double().sum(1).mean(0)).abs()
        assert (error <= 1e-6 * given.abs().sum((0, 1))).all()
    for other in others:
        assert all(map(torch.equal, first, other))


def run_process(rank: int, world_size: int, folder: Path) -> None:
    """All that is asked of several processes, in one go, since starting them takes the time."""
    torch.set_num_threads(1)
    os.environ["LOCAL_WORLD_SIZE"] = str(world_size)
    os.sched_getaffinity = lambda pid: set(range(world_size))  # whatever this machine has
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    gradients = []
    gradients += averages(rank)
    leaves_nothing_and_waits_without_work(rank)
    for spin in (0, 10):
        can_be_interrupted(rank, spin)
    gradients += falls_back(rank)
    measures_one_fisher_matrix(rank, world_size)
    torch.save(gradients, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def wrap() -> tuple[DistributedDataParallel, SharedGradients]:
    """A model, as accelerate wraps it."""
    model, handler = DistributedDataParallel(GivenGradients()), SharedGradients()
    handler.register_comm_hook(model)
    return model, handler


def average(model: DistributedDataParallel, handler: SharedGradients, rank: int) -> list[torch.Tensor]:
    """The gradients of some steps; odd ones are of two batches, put together."""
    gradients = []
    for step in STEPS:
        first, second = draw(rank, step)
        model.zero_grad(set_to_none=step < 4)
        if step % 2:
            with model.no_sync():
                model(first).backward()
            assert torch.equal(model.module.gradients(), first)
        model(second if step % 2 else first).backward()
        handler.average()
        gradients.append(model.module.gradients())
    return gradients


def averages(rank: int) -> list[torch.Tensor]:
    model, handler = wrap()
    assert handler.mean is not None
    return average(model, handler, rank)


def leaves_nothing_and_waits_without_work(rank: int) -> None:
    model, handler = wrap()
    shared = [line for line in Path("/proc/self/maps").read_text().splitlines() if "/dev/shm" in line]
    assert shared and all(line.endswith("(deleted)") for line in shared)
    dist.barrier()
    if rank == 1:
        time.sleep(0.5)
    started, worked = time.monotonic(), time.process_time()
    model(draw(rank, 0)[0]).backward()
    handler.average()
    if rank == 0:
        assert time.monotonic() - started > 0.4
        assert time.process_time() - worked < 0.2


def can_be_interrupted(rank: int, spin: float) -> None:
    model, handler = wrap()
    if rank == 0:  # the others never come
        processes.SPIN = spin
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background commands lack
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        model(draw(rank, 0)[0]).backward()
        with pytest.raises(KeyboardInterrupt):
            handler.average()
    dist.barrier()


def falls_back(rank: int) -> list[torch.Tensor]:
    gradients = []
    no_memory = mock.patch.object(processes.mmap, "mmap", side_effect=PermissionError)
    no_file = mock.patch.object(processes.tempfile, "TemporaryFile", side_effect=FileNotFoundError)
    one_machine = mock.patch.dict(os.environ, LOCAL_WORLD_SIZE="1")
    for trouble, where in ((no_memory, rank == 1), (no_file, rank == 0), (one_machine, True)):
        with trouble if where else contextlib.nullcontext():
            model, handler = wrap()
        assert handler.mean is None
        gradients += average(model, handler, rank)
    return gradients


def measures_one_fisher_matrix(rank: int, world_size: int) -> None:
    rows = torch.randn(world_size, 40, 7, generator=torch.Generator().manual_seed(0))
    weight = nn.Parameter(torch.zeros(7))
    optimizer = NaturalGradient([weight])
    optimizer.update_fisher(rows[rank])
    expected = torch.einsum("pni,pnj->ij", rows, rows) / (40 * world_size)
    torch.testing.assert_close(optimizer.state[weight]["fisher"], expected)
