"""Deformable interactive attention: its gradient factors in every mode of torch, and odd sizes."""

import copy
import io
import pickle
import warnings
from collections.abc import Callable

import pytest
import torch
from formulas import HookedDIA
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import attnzoo
from attnzoo.registry import find
from attnzoo.testing.closeness import assert_close
from attnzoo.testing.inputs import randomize_parameters
from attnzoo.testing.work import work

from contract import ODD, made, step
from distributions import assert_default

SCALES = [(0.4, 0.1), (0.1, 0.4), (1.0, 1.0), (0.0, -2.5)]


def built(dtype: torch.dtype = torch.float64, **config: object) -> nn.Module:
    block = attnzoo.build("dia", 4, dtype=dtype, **config)
    randomize_parameters(block)
    return block


def image(*shape: int) -> Tensor:
    return torch.randn(shape or (2, 4, 6, 8), dtype=torch.float64)


def gradients(run: Callable[[Tensor], Tensor], x: Tensor, owner: nn.Module) -> dict[str, Tensor]:
    """The output and every gradient of one step, by the parameter's name."""
    leaf = x.clone().requires_grad_()
    owner.zero_grad()
    y = run(leaf)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)).sum().backward()
    named = {k.removeprefix("block."): p.grad.clone() for k, p in owner.named_parameters()}
    return {"y": y.detach(), "x": leaf.grad, **named}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(
            found[key], value, rtol=1e-11, atol=1e-13, msg=lambda m, key=key: f"{key}: {m}"
        )


def wanted_of(block: nn.Module, x: Tensor) -> dict[str, Tensor]:
    hooked = HookedDIA(block)
    return gradients(hooked, x, hooked)


@pytest.mark.parametrize("scales", SCALES, ids=str)
@pytest.mark.parametrize("shape", [(2, 4, 6, 8), (1, 4, 7, 5), (3, 4, 1, 1), (2, 4, 1, 6)])
def test_gradients_are_those_of_module_hooks(scales: tuple, shape: tuple[int, ...]) -> None:
    block, x = built(scales=scales), image(*shape)
    assert_same(gradients(block, x, block), wanted_of(block, x))


def test_the_factors_scale_only_their_gradients() -> None:
    x = image()
    block = built(scales=(1.0, 1.0))
    straight = gradients(block, x, block)
    for scales, moved in (((0.4, 1.0), "downavg"), ((1.0, 0.1), "downmax")):
        block.scales = scales
        scaled = gradients(block, x, block)
        for key, value in straight.items():
            same = torch.equal(scaled[key], value)
            assert same == (key not in ("x", f"{moved}.weight", f"{moved}.bias")), key


def test_without_modulation_no_gradient_is_scaled() -> None:
    block, x = built(modulated=False), image(2, 4, 5, 6)
    assert not hasattr(block, "d_conv")
    wanted = wanted_of(block, x)
    assert_same(gradients(block, x, block), wanted)
    block.scales = (7.0, 7.0)
    assert_same(gradients(block, x, block), wanted)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_blocks_have_the_factors_and_use_changed_ones(backend: str) -> None:
    block, x = built(), image()
    torch.compiler.reset()
    compiled = torch.compile(block, fullgraph=True, backend=backend)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # inductor's own advice and deprecations
        for scales in SCALES:
            block.scales = scales
            assert_same(gradients(compiled, x, block), wanted_of(block, x))


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("saved", [False, True])
def test_exported_blocks_train_with_the_factors(strict: bool, saved: bool) -> None:
    block, x = built(), image()
    program = torch.export.export(block, (x,), strict=strict)
    if saved:
        file = io.BytesIO()
        torch.export.save(program, file)
        file.seek(0)
        program = torch.export.load(file)
    wanted = wanted_of(block, x)
    for stage in (program, program.run_decompositions({}), program.run_decompositions()):
        module = stage.module()
        assert_same(gradients(module, x, module), wanted)


def test_functional_transforms_have_the_factors() -> None:
    block = built()
    x = torch.stack([image(), image()])
    parameters = dict(block.named_parameters())

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        y = torch.func.functional_call(block, parameters, (x,))
        return (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)).sum()

    wanted = [wanted_of(block, each) for each in x]
    own, inner = torch.func.grad(loss, argnums=(0, 1))(parameters, x[0])
    assert_same({"y": wanted[0]["y"], "x": inner, **own}, wanted[0])
    each, inner = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)), (None, 0))(parameters, x)
    for i in range(2):
        mapped = {key: value[i] for key, value in each.items()}
        assert_same({"y": wanted[i]["y"], "x": inner[i], **mapped}, wanted[i])


def test_copies_pickles_and_checkpoints_have_the_factors() -> None:
    block, x = built(scales=(0.25, 3.0)), image()
    wanted = wanted_of(block, x)
    file = io.BytesIO()
    torch.save(block, file)
    file.seek(0)
    twins = [
        copy.deepcopy(block),
        pickle.loads(pickle.dumps(block)),
        torch.load(file, weights_only=False),
    ]
    for twin in twins:
        assert twin.scales == (0.25, 3.0)
        assert_same(gradients(twin, x, twin), wanted)
    for reentrant in (True, False):
        rerun = gradients(lambda x, r=reentrant: checkpoint(block, x, use_reentrant=r), x, block)
        assert_same(rerun, wanted)


def test_gradients_are_derivatives_if_the_factors_are_one() -> None:
    block, x = built(scales=(1.0, 1.0)), image(1, 4, 5, 4).requires_grad_()
    assert torch.autograd.gradcheck(block, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(block, x, fast_mode=True, atol=1e-4)


def test_a_second_derivative_runs_with_any_factors() -> None:
    block, x = built(), image().requires_grad_()
    (first,) = torch.autograd.grad(block(x).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    assert second.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_factors_do_not_change_outputs(dtype: torch.dtype) -> None:
    from attnzoo.blocks.dia import _scale_gradient

    x = (torch.randn(20_000).double() * 10 ** torch.randn(20_000).double()).to(dtype)
    x.requires_grad_()
    back = torch.randn(20_000).to(dtype)
    for factor in (0.4, 0.1, 0.5, 0.0, 1.0, -2.0, 7.5):
        y = _scale_gradient(x, factor)
        assert torch.equal(y, x)
        (grad,) = torch.autograd.grad(y, x, back)
        assert torch.equal(grad, back * factor)


def test_the_gradient_of_equal_channels_goes_to_the_first() -> None:
    block = built()
    x = image().round()  # many equal maxima
    assert_same(gradients(block, x, block), wanted_of(block, x))


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (9, 11), (14, 14)])
@pytest.mark.parametrize("modulated", [True, False])
def test_closed_forms(size: tuple[int, int], modulated: bool) -> None:
    extent = attnzoo.InputSize(2, 1, *size)
    _, block, inputs = made("dia", extent, modulated=modulated)
    form = find("dia").closed_form(extent, c=64, modulated=modulated)
    assert form.params == sum(p.numel() for p in block.parameters()) == 39 + 20 * modulated
    assert form.executed == work(block, inputs).macs
    assert block(inputs["x"]).shape == inputs["x"].shape


def test_autocast_keeps_the_factors() -> None:
    _, block, inputs = made("dia", ODD, scales=(0.0, 3.0))
    hooked = HookedDIA(block)

    def lowered(module: nn.Module) -> Callable[[dict[str, Tensor]], Tensor]:
        def run(leaves: dict[str, Tensor]) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return module(leaves["x"])

        return run

    found, wanted = step(block, inputs, lowered(block)), step(hooked, inputs, lowered(hooked))
    assert_close(
        [found["outputs"], found["inputs"]], [wanted["outputs"], wanted["inputs"]], torch.bfloat16
    )


@pytest.mark.parametrize(
    "config, words",
    [
        ({"c": 0}, "c=0 must be at least 1"),
        ({"c": 4, "scales": (0.4,)}, "must have 2 items, not 1"),
        ({"c": 4, "scales": (0.4, float("nan"))}, "must be finite"),
    ],
)
def test_refusals(config: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        attnzoo.build("dia", **config)


def test_scales_assigned_later_are_checked() -> None:
    block = attnzoo.build("dia", 4)
    assert block.scales == (0.4, 0.1)
    block.scales = [1, 0.5]
    assert block.scales == (1.0, 0.5)
    assert "scales=(1.0, 0.5)" in repr(block)
    for bad, words in (((1,), "must have 2 items"), ("ab", "list or tuple"), ((1, "x"), "scales")):
        with pytest.raises((TypeError, ValueError), match=words):
            block.scales = bad
    assert block.scales == (1.0, 0.5)


def test_initial_gates_do_not_depend_on_the_image() -> None:
    block = attnzoo.build("dia", 4)
    assert not block.d_conv.weight.any()
    assert not block.d_conv1.weight.any()
    assert block.d_conv.bias.abs() <= 1 / 3


def test_other_layers_start_as_torchs_own() -> None:
    blocks = [attnzoo.build("dia", 4) for _ in range(60)]
    assert_default(blocks, but=["d_conv.weight", "d_conv1.weight"])
