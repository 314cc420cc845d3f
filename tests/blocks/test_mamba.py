"""mamba and its scan: the recurrence, long series, extreme decays, `step`."""

import time

import pytest
import torch
import torch.nn.functional as F
from formulas import EXACT, errors, gradients, mamba_mixer, selective_recurrence
from torch import Tensor

import attnzoo
from attnzoo.autograd import reference_forms
from attnzoo.autograd.causal_conv import causal_conv
from attnzoo.autograd.selective_scan import CHUNK, selective_scan
from attnzoo.ops.causal_conv import causal_conv as reference_conv
from attnzoo.testing.closeness import assert_close

from distributions import assert_uniform


def leaves_of(samples: int, steps: int, inner: int, state: int) -> list[Tensor]:
    shapes = [(samples, steps, inner)] * 2 + [(inner, state)] + [(samples, steps, state)] * 2
    values = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    values[1], values[2] = F.softplus(values[1]), -values[2].exp()
    return [v.requires_grad_() for v in values]


@pytest.mark.parametrize("form", ["custom gradient", "reference"])
def test_stiff_and_slow_decays_over_a_long_run(form: str) -> None:
    steps, rates = 1500, torch.tensor([1e-8, 1e-3, 1.0, 300.0], dtype=torch.float64)
    leaves = leaves_of(1, steps, 4, 4)
    with torch.no_grad():
        leaves[2].copy_(-rates.expand(4, 4))
        sizes = torch.tensor([0.0, 1e-12, 1e-3, 0.1, 1.0, 30.0, 1e3], dtype=torch.float64)
        leaves[1].copy_(sizes[torch.randint(len(sizes), leaves[1].shape)])
    wanted = gradients(selective_recurrence, *leaves)
    if form == "reference":
        with reference_forms():
            found = gradients(selective_scan, *leaves)
    else:
        found = gradients(selective_scan, *leaves)
    assert all(t.isfinite().all() for t in found)
    assert max(errors(found, wanted)) < EXACT


@pytest.mark.parametrize("steps", [1, 2, 7, 8, 31, 32, 33, 64, 129, 1025])
def test_any_length_equals_the_recurrence(steps: int) -> None:
    leaves = leaves_of(3, steps, 5, 3)
    wanted = gradients(selective_recurrence, *leaves)
    assert max(errors(gradients(selective_scan, *leaves), wanted)) < EXACT
    with reference_forms():
        assert max(errors(gradients(selective_scan, *leaves), wanted)) < EXACT


def test_many_samples_are_processed_in_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    leaves = leaves_of(5, 40, 4, 3)
    wanted = gradients(selective_recurrence, *leaves)
    monkeypatch.setattr("attnzoo.autograd.selective_scan.SLAB", 24)
    assert max(errors(gradients(selective_scan, *leaves), wanted)) < EXACT


def test_saved_memory_grows_with_the_number_of_chunks() -> None:
    leaves = leaves_of(2, 1024, 16, 16)
    held = {leaf.untyped_storage().data_ptr() for leaf in leaves}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        selective_scan(*leaves)
    assert sum(kept.values()) <= 2 * (1024 // CHUNK) * 16 * 16 * 8


@pytest.mark.left_out_if(torch.__version__ < (2, 7), "its Dims cannot express the blocks")
@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_exported_program_accepts_every_length(
    strict: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not strict:  # a smaller graph
        monkeypatch.setattr("attnzoo.ops.selective_scan.LONGEST", 600)
    block = attnzoo.build("mamba", c=6, state=3).eval()
    every = {"x": {0: torch.export.Dim("B"), 1: torch.export.Dim("T")}}  # no length guessed
    x = torch.randn(3, 13, 6)
    program = torch.export.export(block, (x,), dynamic_shapes=every, strict=strict).module()
    for steps in (1, 2, 7, 8, 16, 17, 64, 65, 100, 513):
        x = torch.randn(2, steps, 6)
        assert_close(program(x), block(x))


def test_functional_transforms_give_the_same_gradients() -> None:
    block = attnzoo.build("mamba", c=4, state=3, dtype=torch.float64)
    x = torch.randn(3, 9, 4, dtype=torch.float64)
    weights = dict(block.named_parameters())

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(block, weights, (x,)).square().sum()

    alone = torch.vmap(torch.func.grad(loss), (None, 0))(weights, x)
    block(x).square().sum().backward()
    assert_close({k: g.sum(0) for k, g in alone.items()}, {k: p.grad for k, p in weights.items()})


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("steps", "taps"), [(1, 4), (2, 4), (3, 4), (9, 4), (9, 1), (9, 6)])
def test_causal_convolution_equals_the_padded_one(steps: int, taps: int, bias: bool) -> None:
    leaves = [
        torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for shape in ((2, steps, 5), (5, 1, taps), (5,))[: 2 + bias]
    ]

    def padded(u: Tensor, weight: Tensor, shift: Tensor | None = None) -> Tensor:
        return F.conv1d(u.mT, weight, shift, padding=taps - 1, groups=5)[..., :steps].mT

    def ours(u: Tensor, weight: Tensor, shift: Tensor | None = None) -> Tensor:
        return causal_conv(u, weight, shift)

    assert_close(gradients(ours, *leaves), gradients(padded, *leaves))


def test_causal_convolution_of_float16_sums_in_float32() -> None:
    """Partial sums over taps, and over steps in the backward pass, may exceed 65504."""
    u = torch.tensor([60000.0, 60000.0, -60000.0, 300.0]).half()[None, :, None].requires_grad_()
    weight = torch.ones(1, 1, 4).half().requires_grad_()
    bias = torch.tensor([-60000.0]).half().requires_grad_()
    grad = torch.tensor([2.0, 2.0, 4.0, 1.0]).half()[None, :, None]
    leaves = [u, weight, bias]
    wide = [t.detach().double().requires_grad_() for t in leaves]
    y, exact = causal_conv(*leaves), reference_conv(*wide)
    assert torch.equal(y, exact.half())
    assert exact.abs().max() < 65504
    found = torch.autograd.grad(y, leaves, grad)
    for ours, theirs in zip(found, torch.autograd.grad(exact, wide, grad.double()), strict=True):
        assert torch.equal(ours, theirs.half())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_causal_convolution_rounds_once(dtype: torch.dtype, bias: bool) -> None:
    shapes = ((4, 50, 8), (8, 1, 6), (8,))[: 2 + bias]
    leaves = [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]
    exact = reference_conv(*(t.double() for t in leaves), *(() if bias else (None,)))
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            y = causal_conv(*leaves, *(() if bias else (None,)))
        error = (y.double() - exact).abs() / exact.abs().clamp(min=0.1)
        assert y.dtype == dtype
        assert error.max() <= 0.501 * torch.finfo(dtype).eps


@pytest.mark.parametrize(
    "config",
    [
        {"c": 8},
        {"c": 20, "state": 5, "conv": 2, "bias": True, "conv_bias": False},
        {"c": 6, "state": 4, "conv": 3, "expand": 1, "dt_rank": 3},
        {"c": 7, "expand": 1.5, "conv": 1, "state": 1, "dt_rank": 1},
        {"c": 17, "expand": 0.5, "conv": 7, "c_out": 5, "bias": True},
    ],
    ids=lambda config: "-".join(map(str, config)),
)
def test_mixer_equals_the_formulas(config: dict[str, int]) -> None:
    block = attnzoo.build("mamba", **config, dtype=torch.float64)
    for steps in (1, 3, 37):
        x = torch.randn(2, steps, config["c"], dtype=torch.float64, requires_grad=True)
        leaves = [x, *block.parameters()]
        wanted = gradients(lambda x, *_: mamba_mixer(block, x), *leaves)
        assert max(errors(gradients(lambda x, *_: block(x), *leaves), wanted)) < EXACT


@pytest.mark.parametrize("lead", [(), (3,), (2, 1, 3)], ids=str)
def test_step_by_step_equals_one_call(lead: tuple[int, ...]) -> None:
    block = attnzoo.build("mamba", c=8, conv=3, bias=True, dtype=torch.float64)
    x = torch.randn(*lead, 11, 8, dtype=torch.float64)
    for state in (None, block.initial_state(), block.initial_state(*lead)):
        outputs = []
        for x_t in x.unbind(-2):
            y_t, state = block.step(x_t, state)
            outputs.append(y_t)
        assert max(errors([torch.stack(outputs, -2).detach()], [block(x).detach()])) < EXACT


@pytest.mark.parametrize("lead", [(), (3,)], ids=str)
def test_step_by_step_without_a_convolution(lead: tuple[int, ...]) -> None:
    """With one tap no earlier input is needed: the state of the convolution has no rows."""
    block = attnzoo.build("mamba", c=4, conv=1, dtype=torch.float64)
    x, state = torch.randn(*lead, 5, 4, dtype=torch.float64), block.initial_state(*lead)
    outputs = []
    for x_t in x.unbind(-2):
        y_t, state = block.step(x_t, state)
        outputs.append(y_t)
    assert state.inputs.shape == (*lead, 0, 8)
    assert_close(torch.stack(outputs, -2), block(x))


def test_a_step_does_not_modify_its_state() -> None:
    block = attnzoo.build("mamba", c=4)
    _, state = block.step(torch.randn(2, 4))
    before = [t.clone() for t in state]
    block.step(torch.randn(2, 4), state)
    assert all(torch.equal(a, b) for a, b in zip(state, before, strict=True))


def test_half_precision_keeps_its_states_in_float32() -> None:
    block = attnzoo.build("mamba", c=4, dtype=torch.float16)
    x = torch.randn(2, 300, 4)
    y_t, state = block.step(x[:, 0].half(), block.initial_state(2))
    assert (y_t.dtype, state.inputs.dtype) == (torch.float16, torch.float16)
    assert state.hidden.dtype == torch.float32
    assert_close(block(x.half()).float(), block.float()(x), torch.float16)
    rates = block.bfloat16()._rates()
    assert_close(rates, -block.A_log.float().exp(), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert selective_scan(*(t.bfloat16() for t in leaves_of(1, 5, 4, 3))).dtype == torch.float32


def test_initial_values_are_the_authors() -> None:
    block = attnzoo.build("mamba", c=64)
    assert_close(block.A_log.exp(), torch.arange(1.0, 17).expand(128, 16))
    assert torch.equal(block.D, torch.ones(128))
    constant = attnzoo.build("mamba", c=64, dt_init="constant", dt_scale=2.0)
    assert_close(constant.dt_proj.weight, torch.ones(128, 4))
    marked = {k for k, p in block.named_parameters() if getattr(p, "_no_weight_decay", False)}
    assert marked == {"A_log", "D"}


def test_initial_distributions() -> None:
    """Step sizes log-uniform from dt_min to dt_max, a uniform projection, torch's default else."""
    block = attnzoo.build("mamba", c=256, bias=True, dt_scale=0.5)
    bounds = {
        "in_proj": 256**-0.5, "conv1d": 4**-0.5, "x_proj": 512**-0.5, "out_proj": 512**-0.5,
    }  # fmt: skip
    for path, bound in bounds.items():
        for parameter in block.get_submodule(path).parameters():
            assert_uniform(parameter.detach(), bound)
    assert_uniform(block.dt_proj.weight.detach(), 0.5 * 16**-0.5)
    log_dt = F.softplus(block.dt_proj.bias.detach().double()).log10()  # -3 to -1
    assert_uniform(log_dt + 2, 1.0)


def test_step_sizes_below_the_floor_are_raised_to_it() -> None:
    block = attnzoo.build("mamba", c=256, dt_min=0.001, dt_max=0.1, dt_init_floor=0.01)
    dt = F.softplus(block.dt_proj.bias.detach().double())
    assert abs(float((dt < 0.010001).double().mean()) - 0.5) < 0.1  # half of a log-uniform draw
    assert dt.min() > 0.00999
    assert 0.09 < dt.max() < 0.1001


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"c": 0}, "c=0"),
        ({"c": 4, "state": 0}, "state=0"),
        ({"c": 4, "conv": 0}, "conv=0"),
        ({"c": 4, "expand": 0.1}, "expand=0.1 leaves no inner channel .* take expand=0.25 or more"),
        ({"c": 4, "dt_rank": 0}, "dt_rank=0"),
        ({"c": 4, "dt_rank": "all"}, "'auto'"),
        ({"c": 4, "dt_min": 0.2}, "dt_min=0.2 must be at most dt_max=0.1"),
        ({"c": 4, "dt_min": 0.0}, "dt_min=0.0 must be above 0"),
        ({"c": 4, "dt_max": 2e4}, "dt_max=20000.0 must be above 0 and at most 10000.0"),
        ({"c": 4, "dt_scale": -1.0}, "dt_scale=-1.0 must be at least 0"),
        ({"c": 4, "expand": -1.0}, "expand=-1.0 must be above 0"),
        ({"c": 4, "dt_init_floor": 0.0}, "dt_init_floor=0"),
    ],
)
def test_refusals_of_the_constructor(config: dict[str, object], words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        attnzoo.build("mamba", **config)


def test_one_step_size_for_all() -> None:
    block = attnzoo.build("mamba", c=4, dt_min=0.01, dt_max=0.01)
    assert_close(F.softplus(block.dt_proj.bias), torch.full((8,), 0.01))


def test_refusals_of_a_step() -> None:
    block = attnzoo.build("mamba", c=4)
    for size in (-1, True, 1.0):
        with pytest.raises(ValueError, match=rf"batch\[1\]={size} must be an int of at least 0"):
            block.initial_state(2, size)
    with pytest.raises(ValueError, match="x_t has 5 channels"):
        block.step(torch.randn(2, 5))
    with pytest.raises(ValueError, match=r"state.inputs has shape .* start from"):
        block.step(torch.randn(2, 4), block.initial_state(3))
    with pytest.raises(TypeError, match="state must be"):
        block.step(torch.randn(2, 4), torch.zeros(2))


def authors_scan(u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The authors' reference: coefficients of all steps (B, E, T, S) first, then a loop."""
    u, dt, b, c = (t.mT.contiguous() for t in (u, dt, b, c))
    decay = torch.einsum("bdl,dn->bdln", dt, a).exp()
    drive = torch.einsum("bdl,bnl,bdl->bdln", dt, b, u)
    h = u.new_zeros(u.shape[0], *a.shape)
    ys = []
    for t in range(u.shape[2]):
        h = decay[:, :, t] * h + drive[:, :, t]
        ys.append(torch.einsum("bdn,bn->bd", h, c[:, :, t]))
    return torch.stack(ys, 2).mT


@pytest.mark.slow
def test_a_training_step_is_forty_times_faster_than_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.set_num_threads(1)  # with the processor's own clock: other programs do not count
    block, x = attnzoo.build("mamba", c=256), torch.randn(2, 512, 256)

    def seconds() -> float:
        start = time.process_time()
        block(x).sum().backward()
        return time.process_time() - start

    ours = min(seconds() for _ in range(5))
    monkeypatch.setattr("attnzoo.blocks.mamba.selective_scan", authors_scan)
    assert seconds() > 40 * ours


def test_a_graph_of_dynamic_length_is_correct_up_to_its_longest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("attnzoo.ops.selective_scan.LONGEST", 40)
    block = attnzoo.build("mamba", c=4, state=3).eval()
    shapes = {"x": {1: torch.export.Dim.AUTO}}
    module = torch.export.export(block, (torch.randn(2, 13, 4),), dynamic_shapes=shapes).module()
    x = torch.randn(2, 40, 4)
    assert_close(module(x), block(x))
