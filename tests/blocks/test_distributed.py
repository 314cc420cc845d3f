"""Two ranks on the CPU: DistributedDataParallel, FSDP2 and a checkpoint that both write.

Each rank has half of the batch. In eval mode the averaged gradients are half of those that one
process computes on the joint batch. In train mode BatchNorm takes the statistics of its rank, so
that there the gradients are the average of those that one process computes on each half;
SyncBatchNorm, which would join them, runs on no CPU.
"""

import copy
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from formulas import HookedDIA
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import attnzoo
from attnzoo.registry import Inputs, find
from attnzoo.testing.closeness import assert_close
from attnzoo.testing.inputs import arguments, call, leaves, samples, tensors

from contract import blocks, made
from matrix import Cell
from ranks import WORLD, RankError, Ranks, ranks

BATCH = attnzoo.InputSize(batch=3 * WORLD, steps=13, height=9, width=11)
modes = pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
shards_on_cpu = pytest.mark.left_out_if(
    not hasattr(torch.cpu.Stream, "record_event"),
    "FSDP2 of this torch shards nothing on a CPU, not even nn.Linear",
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    with ranks(tmp_path_factory.mktemp("ranks")) as processes:
        yield processes


@blocks
@modes
@pytest.mark.capability("ddp")
def test_ddp_gives_the_gradients_of_one_process(
    name: str, train: bool, pair: Ranks, cell: Cell
) -> None:
    if next(made(name)[1].parameters(), None) is None:
        cell.not_applicable("it has no parameters, which DistributedDataParallel refuses")
        return
    pair.run(ddp_equals_one_process, name, train, module=find(name).cls.__module__)


@blocks
@modes
@shards_on_cpu
@pytest.mark.capability("fsdp")
def test_fsdp_gives_the_gradients_of_one_process(name: str, train: bool, pair: Ranks) -> None:
    pair.run(fsdp_equals_one_process, name, train, module=find(name).cls.__module__)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
@blocks
@shards_on_cpu
@pytest.mark.capability("dcp")
def test_a_checkpoint_of_two_ranks_loads_on_one(name: str, pair: Ranks, tmp_path: Path) -> None:
    pair.run(save_sharded, name, tmp_path, module=find(name).cls.__module__)
    wanted, inputs = trained(name)
    fresh = attnzoo.build(name, **find(name).example, dtype=torch.float64).eval()
    state = fresh.state_dict()
    dcp.load(state, checkpoint_id=tmp_path, no_dist=True)
    fresh.load_state_dict(state, strict=True)
    for key, value in wanted.state_dict().items():
        assert torch.equal(fresh.state_dict()[key], value), key
    assert_close(call(fresh, inputs), call(wanted, inputs))


@pytest.mark.parametrize(
    "sharded", [pytest.param(False, id="ddp"), pytest.param(True, id="fsdp", marks=shards_on_cpu)]
)
def test_the_gradient_factors_of_dia_equal_module_hooks(sharded: bool, pair: Ranks) -> None:
    pair.run(dia_equals_module_hooks, sharded)


def test_a_network_with_inserted_blocks_trains_on_ranks(pair: Ranks) -> None:
    pair.run(inserted_equals_one_process)


@shards_on_cpu
def test_fsdp_refuses_layers_whose_weights_are_folded(pair: Ranks) -> None:
    pair.run(folded_layers_are_refused)


@shards_on_cpu
def test_fsdp_warns_of_an_output_that_is_a_view(pair: Ranks) -> None:
    pair.run(views_are_told)


def test_sync_batch_norm_does_not_train_on_a_cpu(pair: Ranks) -> None:
    pair.run(sync_batch_norm_is_refused)


@pytest.mark.parametrize(
    "check, words",
    [
        ("fails", "rank 1: Traceback(.|\n)*KeyError: 'gone'"),
        pytest.param("dies", "rank 1: the process ended with exit code 7", marks=pytest.mark.slow),
        pytest.param("hangs", "rank 1 gave no answer within 5 s", marks=pytest.mark.slow),
    ],
    ids=["fails", "dies", "hangs"],
)
def test_a_failing_rank_is_reported_and_the_next_check_runs(
    check: str, words: str, pair: Ranks
) -> None:
    pair.run(misbehaves, "")
    with pytest.raises(RankError, match=words):
        pair.run(misbehaves, check, timeout=5)
    pair.run(misbehaves, "")


def misbehaves(how: str) -> None:
    if dist.get_rank() == 1 and how == "fails":
        raise KeyError("gone")
    if dist.get_rank() == 1 and how == "dies":
        os._exit(7)
    if dist.get_rank() == 1 and how == "hangs":
        time.sleep(60)


def ddp_equals_one_process(name: str, train: bool) -> None:
    wanted = reference(name, train)
    block, _ = same(name, train)
    state = copy.deepcopy(block.state_dict())
    replica = DistributedDataParallel(block)
    for _ in range(2):  # DDP fails in the second step if a parameter had no gradient in the first
        block.load_state_dict(state)
        assert_close(gradients(block, half(name, dist.get_rank()), replica), wanted)


def fsdp_equals_one_process(name: str, train: bool) -> None:
    wanted = reference(name, train)
    block, _ = same(name, train)
    fully_shard(block, mesh=init_device_mesh("cpu", (WORLD,)))
    assert_close(gradients(block, half(name, dist.get_rank())), wanted)
    assert all(isinstance(p, DTensor) for p in block.parameters())


def dia_equals_module_hooks(sharded: bool) -> None:
    block, inputs = same("dia")
    hooked = gradients(HookedDIA(block), inputs)["parameters"]
    wanted = {key.removeprefix("block."): grad / WORLD for key, grad in hooked.items()}
    replica = None if sharded else DistributedDataParallel(block)
    if sharded:
        fully_shard(block, mesh=init_device_mesh("cpu", (WORLD,)))
    assert_close(gradients(block, half("dia", dist.get_rank()), replica)["parameters"], wanted)


def inserted_equals_one_process() -> None:
    images = torch.randn(2 * WORLD, 3, 9, 11, dtype=torch.float64)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 1))
    net.double().eval()
    for where, name, how in (("1", "cbam", "after"), ("2", "se", "before"), ("3", "se", "instead")):
        attnzoo.insert(net, where, name, example_input=images, how=how)
    replica = DistributedDataParallel(copy.deepcopy(net))
    net(images).square().sum().backward()
    replica(images.chunk(WORLD)[dist.get_rank()]).square().sum().backward()
    theirs = dict(replica.module.named_parameters())
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.any()
        assert_close(WORLD * theirs[name].grad, parameter.grad)


def folded_layers_are_refused() -> None:
    block, inputs = same("swiftformer")
    fully_shard(block.to_query, mesh=init_device_mesh("cpu", (WORLD,)))
    with pytest.raises(RuntimeError, match=r"mixed torch\.Tensor and DTensor"):
        call(block, inputs)


def views_are_told() -> None:
    block, inputs = same("mamba")
    fully_shard(block, mesh=init_device_mesh("cpu", (WORLD,)))
    with pytest.warns(UserWarning, match="FSDP2-wrapped module .* returned a view"):
        call(block, inputs)


def sync_batch_norm_is_refused() -> None:
    block, inputs = same("cbam", True)
    synchronized = nn.SyncBatchNorm.convert_sync_batchnorm(block)
    with pytest.raises(ValueError, match="SyncBatchNorm expected input tensor to be on GPU"):
        call(synchronized, inputs)


def save_sharded(name: str, folder: Path) -> None:
    block, _ = trained(name)
    fully_shard(block, mesh=init_device_mesh("cpu", (WORLD,)))
    dcp.save(block.state_dict(), checkpoint_id=folder)


def reference(name: str, train: bool) -> dict[str, Any]:
    """The results of one process on the whole batch, or in train mode on each half."""

    def alone(inputs: Inputs) -> dict[str, Any]:
        return gradients(same(name, train)[0], inputs)

    halves = [alone(half(name, rank)) for rank in range(WORLD)]
    whole = alone(same(name)[1])
    summed = {
        key: sum(each["parameters"][key] for each in halves) if train else value
        for key, value in whole["parameters"].items()
    }
    return {**halves[dist.get_rank()], "parameters": {k: v / WORLD for k, v in summed.items()}}


def same(name: str, train: bool = False) -> tuple[nn.Module, Inputs]:
    """The block and the whole batch, the same in every call and process."""
    torch.manual_seed(0)
    return made(name, BATCH, torch.float64, train)[1:]


def trained(name: str) -> tuple[nn.Module, Inputs]:
    """The same after a step that changed the buffers."""
    block, inputs = same(name)
    for buffer in block.buffers():
        buffer += 1
    return block, inputs


def half(name: str, rank: int) -> Inputs:
    """The samples of one rank."""
    share = slice(rank * BATCH.batch // WORLD, (rank + 1) * BATCH.batch // WORLD)
    return samples(*same(name), share)


def gradients(block: nn.Module, inputs: Inputs, replica: nn.Module | None = None) -> dict[str, Any]:
    """Outputs and every gradient of a loss that is a sum over the samples."""
    torch.manual_seed(0)  # dropout
    block.zero_grad()
    points = leaves(inputs)
    positional, keywords = arguments(block, points)
    outputs = list(tensors((replica or block)(*positional, **keywords)))
    sum((3 * output).sin().sum() for output in outputs).backward()
    return {
        "outputs": [output.detach() for output in outputs],
        "inputs": [t.grad for t in tensors(points) if t.grad is not None],
        "parameters": {key: _whole(p.grad) for key, p in block.named_parameters()},
    }


def _whole(grad: Tensor | None) -> Tensor | None:
    return grad.full_tensor() if isinstance(grad, DTensor) else grad
