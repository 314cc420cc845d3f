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

import pytest
import torch
import torch.distributed as dist
from formulas import HookedDIA
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import attnzoo
from attnzoo.testing.checks import distributed
from attnzoo.testing.checks.distributed import gradients, half, joint, shard
from attnzoo.testing.closeness import assert_close
from attnzoo.testing.inputs import call
from attnzoo.testing.ranks import WORLD, RankError, Ranks, ranks

from contract import blocks, inner_layers, subject
from matrix import Cell

modes = pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
shards_on_cpu = pytest.mark.left_out_if(
    not hasattr(torch.cpu.Stream, "record_event"),
    "FSDP2 of this torch shards nothing on a CPU, not even nn.Linear",
)

FSDP = Path(torch.__file__).parent / "distributed" / "fsdp" / "_fully_shard" / "_fsdp_state.py"


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
    cell.record(distributed.ddp(subject(name), [train], pair))


@blocks
@modes
@shards_on_cpu
@pytest.mark.capability("fsdp")
def test_fsdp_gives_the_gradients_of_one_process(name: str, train: bool, pair: Ranks) -> None:
    assert distributed.fsdp(subject(name), [train], pair) is None


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
@blocks
@shards_on_cpu
@pytest.mark.capability("dcp")
def test_a_checkpoint_of_two_ranks_loads_on_one(name: str, pair: Ranks) -> None:
    assert distributed.checkpoint_of_ranks(subject(name), pair) is None


@pytest.mark.parametrize(
    "sharded", [pytest.param(False, id="ddp"), pytest.param(True, id="fsdp", marks=shards_on_cpu)]
)
def test_the_gradient_factors_of_dia_equal_module_hooks(sharded: bool, pair: Ranks) -> None:
    pair.run(dia_equals_module_hooks, sharded)


def test_a_network_with_inserted_blocks_trains_on_ranks(pair: Ranks) -> None:
    pair.run(inserted_equals_one_process)


@pytest.mark.slow
@blocks
@shards_on_cpu
def test_fsdp_of_every_inner_layer_gives_the_gradients_of_one_process(
    name: str, pair: Ranks
) -> None:
    pair.run(inner_fsdp_equals_one_process, name)


@shards_on_cpu
def test_fsdp_of_layers_that_are_folded_where_they_are_plain(pair: Ranks) -> None:
    pair.run(inner_fsdp_equals_one_process, "swiftformer")


@shards_on_cpu
@pytest.mark.left_out_if(
    not FSDP.is_file() or "returned a view" not in FSDP.read_text(), "this torch does not warn"
)
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


def dia_equals_module_hooks(sharded: bool) -> None:
    block, inputs = joint(subject("dia"))
    hooked = gradients(HookedDIA(block), inputs)["parameters"]
    wanted = {key.removeprefix("block."): grad / WORLD for key, grad in hooked.items()}
    replica = None if sharded else DistributedDataParallel(block)
    if sharded:
        shard(block)
    mine = half(subject("dia"), dist.get_rank())
    assert_close(gradients(block, mine, replica)["parameters"], wanted)


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


def inner_fsdp_equals_one_process(name: str) -> None:
    """All inner layers sharded each by itself; what is left is replicated, as DDP has it."""
    mine = half(subject(name), dist.get_rank())
    whole = gradients(*joint(subject(name)))["parameters"]
    wanted = gradients(joint(subject(name))[0], mine)
    block, _ = joint(subject(name))
    for layer in inner_layers(block).values():
        shard(layer)
    found = gradients(block, mine)
    largest = max((float(g.abs().max()) for g in whole.values() if g is not None), default=0.0)
    assert_close(found["outputs"], wanted["outputs"])
    assert_close(found["inputs"], wanted["inputs"])
    for key, parameter in block.named_parameters():
        gradient = found["parameters"][key]
        if gradient is not None and not isinstance(parameter, DTensor):
            dist.all_reduce(gradient)
            gradient /= WORLD
        if gradient is None or whole[key] is None:
            assert gradient is whole[key] is None, key
        elif whole[key].abs().max() > 1e-12 * largest:  # else it is zero but for rounding
            assert_close(gradient, whole[key] / WORLD)
        else:
            assert gradient.abs().max() <= 1e-12 * largest, key


def views_are_told() -> None:
    block, inputs = joint(subject("mamba"))
    shard(block)
    with pytest.warns(UserWarning, match="FSDP2-wrapped module .* returned a view"):
        call(block, inputs)


def sync_batch_norm_is_refused() -> None:
    block, inputs = joint(subject("cbam"), True)
    synchronized = nn.SyncBatchNorm.convert_sync_batchnorm(block)
    with pytest.raises(ValueError, match="SyncBatchNorm expected input tensor to be on GPU"):
        call(synchronized, inputs)
