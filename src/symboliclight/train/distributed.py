"""Several processes that train one model together, as `torchrun` starts them.

Every process holds the whole model. The micro-batches of a step are dealt out to them, and their gradients are summed:
the step is that of one process with the same configuration, but for the order of that sum.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from symboliclight.core.errors import InputError

BUCKET = 25 << 20  # bytes of tensors that are summed in one message


@dataclass(frozen=True)
class Group:
    """The processes of a run, and which of them this is. One alone needs no `torch.distributed`."""

    rank: int = 0
    size: int = 1
    device: torch.device | None = None  # where the backend wants its tensors

    @property
    def leads(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def mine(self, count: int) -> range:
        """Which of `count` micro-batches this process takes."""
        return range(self.rank, count, self.size)

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor, in place, by its sum over all processes: the same bits in all of them."""
        if self.size == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([x.flatten() for x in bucket])
            dist.all_reduce(flat)
            for x, total in zip(bucket, flat.split([x.numel() for x in bucket]), strict=True):
                x.copy_(total.view_as(x))

    def mean(self, figures: dict[str, float]) -> dict[str, float]:
        """Each figure's mean over all processes, which must have the same names."""
        if self.size == 1 or not figures:
            return figures
        values = torch.tensor(list(figures.values()), dtype=torch.float64, device=self.device)
        dist.all_reduce(values)
        return dict(zip(figures, (values / self.size).tolist(), strict=True))

    def any(self, flag: bool) -> bool:
        """Whether it is true in any process; all must ask."""
        if self.size == 1:
            return flag
        votes = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(votes)
        return bool(votes)

    def same(self, tensors: Sequence[Tensor]) -> bool:
        """Whether the tensors are the same bits in all processes; all must ask."""
        if self.size == 1:
            return True
        prints = torch.stack([x.detach().flatten().view(torch.int32).sum(dtype=torch.int64) for x in tensors])
        low, high = prints.clone(), prints
        dist.all_reduce(low, dist.ReduceOp.MIN)
        dist.all_reduce(high, dist.ReduceOp.MAX)
        return torch.equal(low, high)


ALONE = Group()


def first_process() -> bool:
    """Whether this is the process that prints: the only one, or the first that `torchrun` started."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def joined(device: torch.device) -> Iterator[tuple[Group, torch.device]]:
    """The group that the environment of `torchrun` describes, and this process's device; alone without one.

    On CUDA each process of a machine takes the device of its local rank. Raises `InputError` if there is none left.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE, device
        return
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    if device.type == "cuda":
        if local >= torch.cuda.device_count():
            raise InputError(f"this machine has {torch.cuda.device_count()} CUDA devices and more processes; start one "
                             "for each: torchrun --nproc-per-node N")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Group(rank, size, device), device
    finally:
        dist.destroy_process_group()


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one dtype in messages of about BUCKET bytes."""
    bucket: list[Tensor] = []
    for x in tensors:
        if bucket and (x.dtype != bucket[0].dtype or sum(b.nbytes for b in bucket) + x.nbytes > BUCKET):
            yield bucket
            bucket = []
        bucket.append(x)
    if bucket:
        yield bucket
