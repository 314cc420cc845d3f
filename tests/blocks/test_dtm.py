"""dtm: the authors' formulas around the mixer, pooled maps of any size, the prior token."""

import pytest
import torch
import torch.nn.functional as F
from formulas import EXACT, errors, gradients, mamba_mixer
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

import attnzoo
from attnzoo.blocks.dtm import DTM
from attnzoo.testing.closeness import assert_close

from distributions import assert_uniform

SIZES = ((3, 5, 4), (6, 2, 3), (2, 1, 1))


def norm(x: Tensor, weights: dict[str, Tensor], path: str) -> Tensor:
    """The authors' norm, with the unbiased deviation."""
    deviation = x.std(-1, keepdim=True) + 1e-6
    scaled = weights[f"{path}.a_2"] * (x - x.mean(-1, keepdim=True)) / deviation
    return scaled + weights[f"{path}.b_2"]


def wiring(block: DTM, maps: list[Tensor], token: Tensor | None, pool: str) -> Tensor:
    """The authors' forward pass on flattened maps, with the official Mamba mixer."""
    weights = dict(block.named_parameters())
    tokens = [
        norm(
            F.linear(
                x.flatten(1), weights[f"tokenizers.{i}.0.weight"], weights[f"tokenizers.{i}.0.bias"]
            ),
            weights,
            f"tokenizers.{i}.1",
        ).relu()
        for i, x in enumerate(maps)
    ]
    series = (
        torch.stack(tokens, 1) if token is None else torch.cat((torch.stack(tokens, 1), token), 1)
    )
    y = mamba_mixer(block.mamba, norm(series, weights, "proj_norm"))
    read = {"last": y[:, -1], "first": y[:, 0], "mean": y.mean(1)}[pool]
    return norm(read, weights, "out_norm").relu()


def leaves_of(block: DTM, prior: int = 1, batch: int = 3) -> tuple[list[Tensor], Tensor | None]:
    maps = [torch.randn(batch, *s, dtype=torch.float64, requires_grad=True) for s in block.sizes]
    if not prior:
        return maps, None
    return maps, torch.randn(batch, prior, block.dim, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("pool", ["last", "first", "mean"])
@pytest.mark.parametrize("prior", [0, 1, 2])
@pytest.mark.parametrize("core", [{}, {"expand": 2, "state": 3, "conv": 2}], ids=["own", "other"])
def test_wiring_is_the_authors(pool: str, prior: int, core: dict[str, int]) -> None:
    block = attnzoo.build("dtm", SIZES, dim=18, c_out=7, pool=pool, **core, dtype=torch.float64)
    maps, token = leaves_of(block, prior)
    leaves = [*maps, *([] if token is None else [token]), *block.parameters()]
    wanted = gradients(lambda *_: wiring(block, maps, token, pool), *leaves)
    assert max(errors(gradients(lambda *_: block(maps, token=token), *leaves), wanted)) < EXACT


def test_the_prior_depends_on_every_depth_and_detaches_on_request() -> None:
    block = attnzoo.build("dtm", SIZES, dim=8, c_out=6, dtype=torch.float64)
    maps, token = leaves_of(block)
    assert token is not None
    output, tokens = block(maps, token=token, need_tokens=True)
    assert tokens.shape == (3, 4, 6)
    assert_close(block.out_norm(tokens[:, -1]).relu(), output)
    output.square().sum().backward()
    assert all(t.grad is not None and t.grad.abs().sum() > 0 for t in (*maps, token))
    cut = attnzoo.build("dtm", SIZES, dim=8, c_out=6, detach=True, dtype=torch.float64)
    cut.load_state_dict(block.state_dict())
    token.grad = None
    again = cut(maps, token=token)
    again.sum().backward()
    assert token.grad is None
    assert_close(again, output)


def test_a_detached_prior_stays_detached_in_a_recorded_graph() -> None:
    block = attnzoo.build("dtm", SIZES, dim=8, c_out=6, detach=True)
    maps = [torch.randn(2, *size) for size in SIZES]
    token = torch.randn(2, 1, 8, requires_grad=True)
    graph = make_fx(lambda prior: block(maps, token=prior))(token)
    recorded = graph(token)
    assert_close(recorded, block(maps, token=token))
    (gradient,) = torch.autograd.grad(recorded.sum(), token, allow_unused=True)
    assert gradient is None or not gradient.any()


def test_pooled_tokens_accept_any_size_and_equal_flattened_ones_on_the_grid() -> None:
    flat = attnzoo.build("dtm", ((3, 2, 2), (5, 2, 2)), dim=8, c_out=6)
    pooled = attnzoo.build("dtm", ((3, 9, 9), (5, 4, 4)), dim=8, c_out=6, tokenizer="pool", grid=2)
    pooled.load_state_dict(flat.state_dict())
    maps = [torch.randn(2, 3, 2, 2), torch.randn(2, 5, 2, 2)]
    assert_close(pooled(maps), flat(maps))
    large = [F.interpolate(x, scale_factor=4) for x in maps]
    assert_close(pooled(large), flat(maps))
    assert pooled([torch.randn(1, 3, 1, 7), torch.randn(1, 5, 13, 3)]).shape == (1, 6)
    record = attnzoo.registry.find("dtm")
    config = {"sizes": ((3, 9, 9), (5, 4, 4)), "dim": 8, "c_out": 6, "tokenizer": "pool", "grid": 2}
    form = record.closed_form(None, **config)
    assert form is not None
    assert form.params == sum(p.numel() for p in pooled.parameters())


def test_example_inputs_have_the_height_and_width_where_maps_are_pooled() -> None:
    entry, size = attnzoo.registry.find("dtm"), attnzoo.InputSize(batch=2, height=20, width=9)
    config = {"sizes": ((3, 8, 8), (5, 4, 4), (2, 1, 1)), "dim": 8, "c_out": 6}
    for tokenizer, sizes in (
        ("pool", [(3, 20, 9), (5, 10, 4), (2, 2, 1)]),
        ("flatten", list(config["sizes"])),
    ):
        bound = entry.bind(**config, tokenizer=tokenizer)
        made = entry.inputs(torch.randn, size, bound)
        assert [tuple(x.shape[1:]) for x in made["features"]] == sizes
        assert made["token"].shape == (2, 1, 8)
        block = attnzoo.build("dtm", **config, tokenizer=tokenizer)
        assert block(made["features"], token=made["token"]).shape == (2, 6)


def test_initial_distributions() -> None:
    """torch's default for the tokenizers; the norms are initially the identity."""
    block = attnzoo.build("dtm", ((16, 4, 4), (96, 2, 2)), dim=128, c_out=64, state=8)
    for tokenizer, numbers in zip(block.tokenizers, (256, 384), strict=True):
        assert_uniform(tokenizer[0].weight.detach(), numbers**-0.5)
        assert_uniform(tokenizer[0].bias.detach(), numbers**-0.5)
    norms = [block.proj_norm, block.out_norm, *(tokenizer[1] for tokenizer in block.tokenizers)]
    for layer in norms:
        assert layer.eps == 1e-6
        assert torch.equal(layer.a_2, torch.ones_like(layer.a_2))
        assert torch.equal(layer.b_2, torch.zeros_like(layer.b_2))
    assert_uniform(block.mamba.out_proj.weight.detach(), 128**-0.5)


def test_closed_form_at_odd_sizes() -> None:
    block = attnzoo.build("dtm", SIZES, dim=18, c_out=7, expand=2, state=3, conv=2)
    mixer = 18 * 72 + 36 * (2 + 2 * 3) + 2 * 36 + 36 * 7 + 36 * 2 + 36 * 3
    assert block.macs(attnzoo.InputSize()) == (60 + 36 + 2) * 18 + 4 * mixer


def test_pooled_tokens_export_with_any_size() -> None:
    block = attnzoo.build("dtm", ((3, 9, 9), (5, 4, 4)), dim=8, c_out=6, tokenizer="pool", grid=2)
    every = dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)
    maps = [torch.randn(2, 3, 12, 10), torch.randn(2, 5, 6, 5)]
    program = torch.export.export(
        block, (maps,), dynamic_shapes={"features": [every, every]}, strict=False
    ).module()
    other = [torch.randn(3, 3, 9, 15), torch.randn(3, 5, 7, 8)]
    assert_close(program(other), block(other))


def test_a_constant_token_has_finite_gradients() -> None:
    block = attnzoo.build("dtm", SIZES, dim=8, c_out=6)
    maps = [torch.zeros(2, *size, requires_grad=True) for size in SIZES]
    block(maps, token=torch.zeros(2, 1, 8)).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in (*maps, *block.parameters()))


@pytest.mark.parametrize("branch", ["Ms", "Pan"])
def test_authors_names_of_both_branches_load(branch: str) -> None:
    sizes = ((3, 4, 4), (4, 2, 2), (3, 2, 2), (3, 2, 2))
    block = attnzoo.build("dtm", sizes, dim=8, c_out=6)
    net = "featnet1" if branch == "Ms" else "featnet2"
    theirs = {
        "proj_norm": f"proj_norm{branch.lower()}",
        "out_norm": "out_proj_norm",
        "mamba": f"{branch}_mb",
        **{f"tokenizers.{i}": f"{net}.{branch}_st{i + 1}" for i in range(3)},
        "tokenizers.3": f"{branch}_st4",
    }
    weights = {
        next(new + key[len(old) :] for old, new in theirs.items() if key.startswith(f"{old}.")): t
        for key, t in block.state_dict().items()
    }
    maps = [torch.randn(2, *size) for size in sizes]
    loaded = attnzoo.from_upstream("dtm", weights, sizes, dim=8, c_out=6)
    assert_close(loaded(maps), block(maps))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"sizes": ()}, "must be non-empty"),
        ({"sizes": ((3, 4, 0),)}, r"sizes\[0\]\[2\]=0"),
        ({"sizes": SIZES, "dim": 1}, "dim=1"),
        ({"sizes": SIZES, "c_out": 1}, "c_out=1"),
        ({"sizes": SIZES, "pool": "cls"}, "pool='cls'"),
        ({"sizes": SIZES, "grid": 0}, "grid=0"),
    ],
)
def test_refusals_of_the_constructor(config: dict[str, object], words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        attnzoo.build("dtm", **config)


def test_refusals_of_a_call() -> None:
    block = attnzoo.build("dtm", SIZES, dim=8, c_out=6)
    maps = [torch.randn(2, *size) for size in SIZES]
    for features, token, words in (
        (maps[:2], None, "list of 3 maps"),
        (maps[0], None, "list of 3 maps"),
        ([torch.randn(2, 3, 5, 5), *maps[1:]], None, "tokenizer='pool'"),
        ([torch.randn(2, 3, 4, 5), *maps[1:]], None, "tokenizer='pool'"),  # as many numbers
        ([*maps[:2], torch.randn(1, 2, 1, 1)], None, r"features\[2\] has 1 samples"),
        (maps, torch.randn(2, 1, 9), "token has 9 channels"),
        (maps, torch.randn(2, 8), "token has shape"),
        (maps, torch.randn(2, 1, 1, 8), "token has shape"),
        (maps, torch.randn(1, 1, 8), "token has 1 samples"),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            block(features, token=token)
