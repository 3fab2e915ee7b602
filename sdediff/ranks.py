r"""Several processes of one job, on torch.distributed: who shares the work, one word from the first to all, one sum of all.

A job of W processes does what one process does. Work is split by what it is (a chunk of samples, a row of the global batch), never
by who does it, and randomness belongs to the work: the split changes no result. Sums over processes round in another order, at most.

``torchrun --nproc-per-node W -m sdediff ...`` starts the processes; in Python, ``torch.distributed.init_process_group`` and
``group=torch.distributed.group.WORLD``. What is said between processes is JSON and tensors.
"""
from __future__ import annotations

import contextlib
import datetime
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch import distributed as dist

from .contracts import choice

TIMEOUT = datetime.timedelta(minutes=10)        # of one exchange: all ranks end a chunk, or a training step, at about the same time
_TOLD = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")


class RankError(RuntimeError):
    """Another process of the job failed, ended, or is silent."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of a job: ``rank`` of ``size``, in a torch.distributed ``group`` (None: alone)."""

    rank: int = 0
    size: int = 1
    group: Any = None

    @staticmethod
    def of(group: Any) -> Ranks:
        """The ranks of a process group; None is a process alone. TypeError where it is no group, or not one of ours."""
        if group is None:
            return ALONE
        if not dist.is_available() or not isinstance(group, dist.ProcessGroup):
            raise TypeError(f"group={group!r}: expected a process group with this process in it, such as torch.distributed.group.WORLD "
                            "after torch.distributed.init_process_group().")
        return Ranks(dist.get_rank(group), dist.get_world_size(group), group)

    @property
    def _device(self) -> str:
        return "cuda" if self.group is not None and dist.get_backend(self.group) == "nccl" else "cpu"

    @contextlib.contextmanager
    def _exchange(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise RankError(f"rank {self.rank} of {self.size} waited for one that has ended, or is silent "
                            f"({str(error).splitlines()[0]}).") from None

    def share(self, word: Any) -> Any:
        """Rank 0's JSON document, on every rank."""
        if self.size == 1:
            return word
        text = torch.frombuffer(bytearray(json.dumps(word).encode()), dtype=torch.uint8).to(self._device)
        size = torch.tensor([len(text)], device=self._device)
        self.from_first(size)
        text = text if self.rank == 0 else text.new_empty(int(size))
        self.from_first(text)
        return json.loads(text.cpu().numpy().tobytes())

    def from_first(self, *tensors: Tensor) -> None:
        """Overwrite the tensors by those of rank 0."""
        with self._exchange():
            for tensor in tensors if self.size > 1 else ():
                dist.broadcast(tensor, dist.get_global_rank(self.group, 0), self.group)

    def first(self, do: Callable[[], Any]) -> Any:
        """What ``do()`` returns (JSON) on rank 0, on every rank. Where it raises, all ranks raise: the error itself on rank 0."""
        word = None
        with self.together():
            if self.rank == 0:
                word = do()
        return self.share(word)

    def same(self, document: Mapping[str, Any]) -> None:
        """Raise on every rank where one's JSON document is another than rank 0's: a ValueError that names the entry on that rank."""
        mine = json.loads(json.dumps(document))
        theirs = self.share(mine)
        with self.together():
            for name in sorted(mine.keys() | theirs.keys()):
                if mine.get(name) != theirs.get(name):
                    here, there = (v if len(v := repr(d.get(name))) < 200 else v[:197] + "..." for d in (mine, theirs))
                    raise ValueError(f"{name} of rank {self.rank} is {here}, that of rank 0 {there}; expected the same on all ranks.")

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What each rank does on its own, and all wait for: where one fails all raise, see ``agree``."""
        error = None
        try:
            yield
        except Exception as e:
            error = e
        self.agree(error)

    def agree(self, error: Exception | None = None) -> None:
        """Wait for every rank. Where one comes with an error, it raises that, and the others a ``RankError`` that names it."""
        if self.size > 1:
            flags = torch.zeros(self.size, dtype=torch.int32, device=self._device)
            flags[self.rank] = error is not None
            try:
                self.add(flags)
            except RankError:
                if error is None:
                    raise
            if error is None and bool(flags.any()):
                failed = ", ".join(map(str, flags.nonzero().flatten().tolist()))
                raise RankError(f"rank {failed} of {self.size} failed; its own message says why.")
        if error is not None:
            raise error

    def add(self, tensor: Tensor) -> None:
        """Overwrite the tensor by its sum over ranks: the same bits on every one."""
        with self._exchange():
            if self.size > 1:
                dist.all_reduce(tensor, group=self.group)


ALONE = Ranks()


def launched() -> bool:
    """Whether torchrun started this process."""
    return all(name in os.environ for name in _TOLD)


def current() -> int:
    """The rank of this process in the job that torchrun started, else 0."""
    return int(os.environ["RANK"]) if launched() else 0


def leave(code: int = 0) -> NoReturn:
    """End this process with an exit code. A process of a job ends without the interpreter's own end: threads of gloo that still let go of a
    tensor then are stopped within C++, and one process in some thirty, on a busy machine, aborted with its work done."""
    if launched():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def working() -> bool:
    """Whether the processes have found each other."""
    return dist.is_available() and dist.is_initialized()


@contextlib.contextmanager
def job(device: str = "cpu") -> Iterator[tuple[Ranks, torch.device]]:
    """The processes that torchrun started, and this one's device ("cpu", or the GPU of its local rank); without torchrun this process
    alone. gloo carries what is on the CPU, nccl what is on GPUs. ValueError where there is no such GPU."""
    choice("device", device, ("cpu", "cuda"))
    local = int(os.environ["LOCAL_RANK"]) if launched() else 0
    if device == "cuda" and local >= torch.cuda.device_count():
        raise ValueError(f"device='cuda': process {local} of this machine finds {torch.cuda.device_count()} GPUs; expected one for each "
                         "process, or --device cpu.")
    where = torch.device("cpu") if device == "cpu" else torch.device("cuda", local)
    if not launched() or working():             # alone, or in a job that has begun
        yield Ranks.of(dist.group.WORLD if working() else None), where
        return
    if device == "cuda":
        torch.cuda.set_device(where)
    dist.init_process_group("gloo" if device == "cpu" else "cpu:gloo,cuda:nccl", timeout=TIMEOUT)
    yield Ranks.of(dist.group.WORLD), where
    dist.destroy_process_group()                # after a failure the process ends, and no goodbye is waited for
