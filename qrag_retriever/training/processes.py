"""The processes of a run: one, or as many as torchrun has started."""

from __future__ import annotations

import inspect
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch

from qrag_retriever.errors import RecipeError

Value = TypeVar("Value")
# All others wait while the first process validates.
_LONGEST_WAIT = timedelta(hours=6)


@dataclass(frozen=True)
class Processes:
    """This process's place among those of the run.

    Attributes:
        rank: Its number; 0 writes files and logs.
        size: How many there are.
        local_rank: Its number on its machine, which is that of its GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def join(cls, device: str) -> Processes:
        """Join the other processes if torchrun has started this one (NCCL on CUDA, else gloo)."""
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            return cls()
        if not torch.distributed.is_initialized():
            backend = "nccl" if device.startswith("cuda") else "gloo"
            torch.distributed.init_process_group(backend, timeout=_LONGEST_WAIT)
        return cls(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_RANK", "0")))

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and logs."""
        return self.rank == 0

    def own_device(self, device: str) -> str:
        """Return this process's device: of several GPUs each process has its own.

        Raises:
            RecipeError: If all of several processes would share one GPU.
        """
        if device == "cuda":
            return f"cuda:{self.local_rank}"
        if device.startswith("cuda") and self.size > 1:
            raise RecipeError(
                f"run.device is {device!r}, one GPU for all of {self.size} processes; make it 'cuda', and each takes "
                "its own"
            )
        return device

    def share(self, count: int, what: str) -> range:
        """Return this process's part of ``count`` things, the same number for each.

        Raises:
            ValueError: If they cannot be shared equally.
        """
        if count % self.size:
            raise ValueError(f"{count} {what} cannot be shared equally by {self.size} processes; use a multiple")
        own = count // self.size
        return range(self.rank * own, (self.rank + 1) * own)

    def parallel(self, module: torch.nn.Module) -> torch.nn.Module:
        """Return a module whose gradients are the means over all processes; itself if there is but one."""
        if self.size == 1:
            return module
        wrap: Any = torch.nn.parallel.DistributedDataParallel
        # Newer versions of torch have another name for it.
        names = ("forward_sync_buffers", "broadcast_buffers")
        name = next(name for name in names if name in inspect.signature(wrap).parameters)
        wrapped: torch.nn.Module = wrap(module, **{name: False})
        return wrapped

    def any(self, flag: bool) -> bool:
        """Tell whether any process raises the flag."""
        if self.size == 1:
            return flag
        device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
        raised = torch.tensor(float(flag), device=device)
        torch.distributed.all_reduce(raised, torch.distributed.ReduceOp.MAX)
        return bool(raised.item())

    def from_first(self, value: Value) -> Value:
        """Return the first process's value in all of them; anything that can be pickled."""
        if self.size == 1:
            return value
        held = [value]
        torch.distributed.broadcast_object_list(held, src=0)
        return held[0]

    def gathered(self, values: list[Value]) -> list[Value]:
        """Return the values of all processes in the order of their ranks; anything that can be pickled."""
        if self.size == 1:
            return values
        parts: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(parts, values)
        return [value for part in parts for value in part]

    def wait(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            torch.distributed.barrier()

    def leave(self) -> None:
        """Leave the group."""
        if self.size > 1 and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
