"""Checks on two ranks of the CPU: DistributedDataParallel, FSDP2, a checkpoint that both write.

Each rank has half of the batch. In eval mode the averaged gradients are half of those that one
process computes on the joint batch. In train mode BatchNorm takes the statistics of its rank, so
that there the gradients are the average of those that one process computes on each half;
SyncBatchNorm, which would join them, runs on no CPU.
"""

import copy
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ...registry import Inputs, InputSize
from ..closeness import assert_close
from ..inputs import arguments, call, leaves, tensors
from ..outcome import check, not_applicable, require
from ..ranks import WORLD, RankError, Ranks
from ..resize import batch_size
from ..step import assert_same
from ..subject import Subject
from .calls import BOTH

BATCH = InputSize(batch=3 * WORLD, steps=13, height=9, width=11)
NO_SPEC = "other processes cannot build this object; `attnzoo check` can"


@check(
    "ddp",
    capability="ddp",
    remedy="let every parameter act in every step, and keep no state between steps",
    slow=True,
)
def ddp(subject: Subject, modes: Sequence[bool] = BOTH, pair: Ranks | None = None) -> str | None:
    """DistributedDataParallel on two ranks: the gradients of one process"""
    if next(subject.build().parameters(), None) is None:
        return not_applicable("it has no parameters, which DistributedDataParallel refuses")
    if subject.spec is None:
        return not_applicable(NO_SPEC)
    if not dist.is_available():
        return not_applicable("this torch has no torch.distributed")
    for train in modes:
        _on_ranks(pair, ddp_equals_one_process, subject, train)
    return None


@check("fsdp", capability="fsdp", remedy="call layers, and read no weight of another", slow=True)
def fsdp(subject: Subject, modes: Sequence[bool] = BOTH, pair: Ranks | None = None) -> str | None:
    """fully_shard (FSDP2) on two ranks: the gradients of one process"""
    if not subject.registered:
        return not_applicable("held of registered blocks alone")
    for train in modes:
        _on_ranks(pair, fsdp_equals_one_process, subject, train)
    return None


@check("dcp", capability="dcp", remedy="keep all state in parameters and buffers", slow=True)
def checkpoint_of_ranks(subject: Subject, pair: Ranks | None = None) -> str | None:
    """a torch.distributed.checkpoint that two ranks wrote loads on one"""
    import torch.distributed.checkpoint as dcp

    if not subject.registered:
        return not_applicable("held of registered blocks alone")
    with tempfile.TemporaryDirectory() as folder:
        _on_ranks(pair, save_sharded, subject, folder)
        wanted, inputs = trained(subject)
        torch.manual_seed(8)
        fresh = subject.build().double().eval()
        state = fresh.state_dict()
        dcp.load(state, checkpoint_id=folder, no_dist=True)  # type: ignore[attr-defined]
    fresh.load_state_dict(state, strict=True)
    assert_same(fresh.state_dict(), wanted.state_dict())
    assert_close(call(fresh, inputs), call(wanted, inputs))
    return None


def _on_ranks(pair: Ranks | None, what: Any, subject: Subject, *options: Any) -> None:
    """Run it on ranks that wait for work, or on some that are started for it."""
    module = subject.entry.cls.__module__ if subject.entry is not None else ""
    by_import = "" if subject.spec and ":" in subject.spec["target"] else module
    if pair is not None:
        pair.run(what, subject.spec, *options, module=by_import)
        return
    with tempfile.TemporaryDirectory() as folder:
        started = Ranks(Path(folder))
        try:
            started.run(what, subject.spec, *options, module=by_import)
        except RankError as error:
            last = [line for line in str(error).splitlines() if line.strip()][-1]
            raise RuntimeError(last) from error
        finally:
            started.close()


def ddp_equals_one_process(spec: Mapping[str, Any], train: bool) -> None:
    """What each rank does, and asserts."""
    subject = _subject(spec)
    wanted = reference(subject, train)
    module, _ = joint(subject, train)
    state = copy.deepcopy(module.state_dict())
    replica = DistributedDataParallel(module)
    for _ in range(2):  # in the second step DDP refuses what had no gradient in the first
        module.load_state_dict(state)
        assert_close(gradients(module, half(subject, dist.get_rank()), replica), wanted)


def fsdp_equals_one_process(spec: Mapping[str, Any], train: bool) -> None:
    """What each rank does, and asserts."""
    from torch.distributed.tensor import DTensor

    subject = _subject(spec)
    wanted = reference(subject, train)
    module, _ = joint(subject, train)
    shard(module)
    assert_close(gradients(module, half(subject, dist.get_rank())), wanted)
    require(all(isinstance(p, DTensor) for p in module.parameters()), "a parameter is not sharded")


def save_sharded(spec: Mapping[str, Any], folder: str) -> None:
    """What each rank does."""
    import torch.distributed.checkpoint as dcp

    module, _ = trained(_subject(spec))
    shard(module)
    dcp.save(module.state_dict(), checkpoint_id=folder)  # type: ignore[attr-defined]


def shard(module: nn.Module) -> None:
    """Shard a module's parameters over all ranks."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    fully_shard(module, mesh=init_device_mesh("cpu", (WORLD,)))


def _subject(spec: Mapping[str, Any]) -> Subject:
    from ..targets import Spec, subjects

    return subjects(cast(Spec, spec))[0]


def reference(subject: Subject, train: bool) -> dict[str, Any]:
    """What one process computes: on the joint batch, or in train mode on one half at a time."""

    def alone(inputs: Inputs) -> dict[str, Any]:
        return gradients(joint(subject, train)[0], inputs)

    halves = [alone(half(subject, rank)) for rank in range(WORLD)]
    whole = alone(joint(subject)[1])
    summed = {
        key: sum(each["parameters"][key] for each in halves) if train else value
        for key, value in whole["parameters"].items()
    }
    return {**halves[dist.get_rank()], "parameters": {k: v / WORLD for k, v in summed.items()}}


def joint(subject: Subject, train: bool = False) -> tuple[nn.Module, Inputs]:
    """The module and the joint batch, alike in every call and process."""
    torch.manual_seed(0)
    if subject.registered:
        return subject.made(BATCH, torch.float64, train)
    module, inputs = subject.in_float64(train=train)
    return module, subject.samples(inputs, slice(batch_size(inputs) // WORLD * WORLD))


def trained(subject: Subject) -> tuple[nn.Module, Inputs]:
    """The same with buffers, too, that are no fresh module's."""
    module, inputs = joint(subject)
    for buffer in module.buffers():
        buffer += 1
    return module, inputs


def half(subject: Subject, rank: int) -> Inputs:
    """The samples of one rank."""
    _, inputs = joint(subject)
    count = batch_size(inputs)
    return subject.samples(inputs, slice(rank * count // WORLD, (rank + 1) * count // WORLD))


def gradients(
    module: nn.Module, inputs: Inputs, replica: nn.Module | None = None
) -> dict[str, Any]:
    """Outputs and every gradient of a loss that is a sum over the samples."""
    torch.manual_seed(0)  # dropout
    module.zero_grad()
    points = leaves(inputs)
    positional, keywords = arguments(module, points)
    outputs = list(tensors((replica or module)(*positional, **keywords)))
    losses = [(3 * output).sin().sum() for output in outputs]
    sum(losses, torch.zeros(())).backward()  # type: ignore[no-untyped-call]
    return {
        "outputs": [output.detach() for output in outputs],
        "inputs": [t.grad for t in tensors(points) if t.grad is not None],
        "parameters": {
            key: _whole(p.grad) for key, p in module.named_parameters() if p.grad is not None
        },
    }


def _whole(grad: Tensor) -> Tensor:
    whole = getattr(grad, "full_tensor", None)  # of a sharded one
    return grad if whole is None else whole()
