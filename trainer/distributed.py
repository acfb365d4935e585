"""One process or many: start of the group, sharding of the model, and a gather that has a gradient.

The plan of batches is the same on all processes; each takes its part of every batch. Losses see the
rows of all processes through `gather`, whose backward sums what every process sends back: a loss of
local queries against gathered documents then has exactly the gradient of one process. (Documents
that are gathered without gradient give one that is wrong by tens of percent.)

`ddp` keeps the whole model on each process, `fsdp` (FSDP2) shards weights, gradients and optimiser
by layer. Where the encoder computes in bf16, shards stay fp32 and are gathered in bf16, which is
half of the traffic; gradients are added up over processes in fp32. Sharded gradients are exchanged
in every backward pass: waiting for the last one, as `ddp` does, would keep the whole gradient, of 4
bytes a weight, on each device.
"""

import contextlib
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedModel

from trainer.packed import PackedEncoder


@contextlib.contextmanager
def process_group() -> Iterator[torch.device]:
    """Join the group that torchrun describes, if it does; gives the device of this process."""
    local, world = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    started = world > 1 and not dist.is_initialized()  # a launcher may have joined already
    if started:
        dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield device
    finally:
        if started:
            dist.destroy_process_group()


def rank() -> int:
    """Number of this process in the group; 0 without one."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Processes in the group; 1 without one."""
    return dist.get_world_size() if dist.is_initialized() else 1


def own_rows(count: int) -> slice:
    """The rows of a batch of `count` that belong to this process: equal parts, the first longer."""
    parts = part_sizes(count)
    begin = sum(parts[: rank()])
    return slice(begin, begin + parts[rank()])


def part_sizes(count: int) -> list[int]:
    """Rows of each process."""
    world = world_size()
    return [count // world + (n < count % world) for n in range(world)]


def parallel(encoder: PackedEncoder, kind: str) -> Any:
    """The encoder wrapped for the group (`ddp` or `fsdp`); as it is without one."""
    if world_size() == 1:
        return encoder
    if kind == "ddp":
        with warnings.catch_warnings():  # the new name of the option is not in older torch
            warnings.filterwarnings("ignore", message="`broadcast_buffers`")
            return torch.nn.parallel.DistributedDataParallel(encoder, broadcast_buffers=False)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (world_size(),))
    computed = torch.bfloat16 if encoder.mixed else None
    policy = MixedPrecisionPolicy(param_dtype=computed, reduce_dtype=torch.float32)
    for layer in layers_of(encoder.model):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    return fully_shard(encoder, mesh=mesh, mp_policy=policy)


def layers_of(model: PreTrainedModel) -> torch.nn.ModuleList:
    """The blocks of a decoder or an encoder."""
    lists = [part for part in model.modules() if isinstance(part, torch.nn.ModuleList)]
    return next(part for part in lists if len(part) == model.config.num_hidden_layers)


@contextlib.contextmanager
def synchronised(model: Any, last: bool) -> Iterator[None]:
    """DDP exchanges gradients in the last backward pass of a step only, so they add up first."""
    with model.no_sync() if hasattr(model, "no_sync") and not last else contextlib.nullcontext():
        yield


def largest(value: int) -> int:
    """The largest of the values that the processes hold."""
    return int(_reduced(float(value), dist.ReduceOp.MAX))


def total(value: float) -> float:
    """The sum of the values that the processes hold."""
    return _reduced(value, dist.ReduceOp.SUM)


def _reduced(value: float, operation: Any) -> float:
    if world_size() == 1:
        return value
    tensor = torch.tensor(value, dtype=torch.float64)
    tensor = tensor.cuda() if torch.cuda.is_available() else tensor
    dist.all_reduce(tensor, operation)
    return tensor.item()


def gather(tensor: Tensor, sizes: Sequence[int]) -> Tensor:
    """The rows of all processes, `sizes[n]` of process n, in their order, with gradient."""
    if world_size() == 1:
        return tensor
    return _Gather.apply(tensor, tuple(sizes))


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, tensor: Tensor, sizes: tuple[int, ...]) -> Tensor:  # type: ignore[override]
        context.sizes = sizes
        # Collectives of gloo know no booleans, and all parts must be of one size.
        sent = tensor.to(torch.uint8) if tensor.dtype == torch.bool else tensor
        room = sent.new_zeros((max(sizes), *sent.shape[1:]))
        room[: len(sent)] = sent
        parts = [torch.empty_like(room) for _ in sizes]
        dist.all_gather(parts, room)
        rows = torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
        return rows.to(tensor.dtype)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        begin = sum(context.sizes[: rank()])
        return gradient[begin : begin + context.sizes[rank()]], None
