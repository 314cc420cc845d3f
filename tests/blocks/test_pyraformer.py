"""What is special to pyraformer: the mask, the pairs it leaves, linear growth, and its outputs."""

import contextlib
import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import attnzoo
from attnzoo import reference
from attnzoo.autograd import reference_forms
from attnzoo.autograd.pyramid_attention import pyramid_attention
from attnzoo.blocks.pyraformer import PyramidAttention
from attnzoo.ops import pyramid as pyramid_module
from attnzoo.ops import pyramid_attention as plain
from attnzoo.ops.pyramid import Pyramid, ancestors, level_sizes, neighbors
from attnzoo.testing.closeness import assert_close
from attnzoo.testing.inputs import randomize_parameters

from contract import assert_takes_float32_under_autocast, step
from distributions import assert_uniform

CPU = torch.device("cpu")
PYRAMIDS = [
    Pyramid(length, windows, inner)
    for length, windows, inner in (
        (64, (4, 4, 4), 3), (66, (4, 4, 4), 3), (83, (4, 4, 4), 3), (127, (4, 4, 4), 3),
        (151, (4, 4, 4), 3), (169, (4, 4, 4), 3), (19, (4, 2), 5), (17, (2, 5), 1), (40, (3,), 4),
        (5, (1, 1), 3), (9, (9,), 3), (60, (2, 3, 2, 2), 41), (100, (24,), 2), (1, (1,), 3),
    )
]  # fmt: skip
pyramids = pytest.mark.parametrize("pyramid", PYRAMIDS, ids=str)


def mask_by_loops(pyramid: Pyramid) -> Tensor:
    """The mask by the definition, pair by pair."""
    nodes = [
        (level, i)
        for level, size in enumerate(level_sizes(pyramid.length, pyramid.windows))
        for i in range(size)
    ]
    top = dict(nodes)

    def is_parent(p: tuple[int, int], c: tuple[int, int]) -> bool:
        if p[0] != c[0] + 1:
            return False
        return p[1] == min(c[1] // pyramid.windows[c[0]], top[p[0]])

    return torch.tensor(
        [
            [
                not (
                    (a[0] == b[0] and abs(a[1] - b[1]) <= pyramid.inner // 2)
                    or is_parent(a, b)
                    or is_parent(b, a)
                )
                for b in nodes
            ]
            for a in nodes
        ]
    )


@pyramids
def test_mask_equals_its_definition(pyramid: Pyramid) -> None:
    assert torch.equal(attnzoo.pyraformer_mask(*pyramid), mask_by_loops(pyramid))


@pytest.mark.parametrize(
    ("length", "windows", "inner", "pairs", "nodes"),
    [
        (169, [4, 4, 4], 3, 1103, 223),
        (720, [6, 6, 6], 5, 6011, 863),
        (100, [3, 2, 5], 5, 1034, None),
        (64, [4, 4, 4], 3, 415, None),
    ],
)
def test_mask_leaves_the_published_pairs(
    length: int, windows: list[int], inner: int, pairs: int, nodes: int | None
) -> None:
    mask = attnzoo.pyraformer_mask(length, windows, inner)
    assert (~mask).sum() == pairs
    assert nodes is None or len(mask) == nodes


@pytest.mark.parametrize("path", reference.cases("pyraformer_mask"), ids=lambda path: path.stem)
def test_mask_and_attention_equal_the_authors(path: object) -> None:
    case = reference.Case.load(path)
    config, weights = case.config, case.part("weight")
    pyramid = Pyramid(config["length"], tuple(config["windows"]), config["inner"])
    mask = attnzoo.pyraformer_mask(config["length"], config["windows"], config["inner"])
    assert torch.equal(mask, case.tensors["output.2"])
    assert level_sizes(*pyramid[:2]) == case.tensors["output.3"].tolist()
    assert torch.equal(ancestors(pyramid, CPU), case.tensors["output.4"])

    sizes = (config[key] for key in ("c", "heads", "d_k", "d_v", "dropout"))
    attention = PyramidAttention(*sizes).double().eval()
    names = {"w_qs": "query", "w_ks": "key", "w_vs": "value", "fc": "out", "layer_norm": "norm"}
    for theirs, ours in names.items():
        for kind in ("weight", "bias"):
            if f"{theirs}.{kind}" in weights:
                getattr(getattr(attention, ours), kind).data = weights[f"{theirs}.{kind}"]
    x = case.tensors["input.x"]
    assert_close(attention(x, pyramid, x.shape[1]), case.tensors["output.0"])
    q, k = (
        layer(x).unflatten(-1, (config["heads"], -1)).transpose(1, 2)
        for layer in (attention.query, attention.key)
    )
    scores = (q @ k.mT / math.sqrt(config["d_k"])).masked_fill(mask, float("-inf"))
    assert_close(scores.softmax(-1), case.tensors["output.1"])


@pytest.mark.parametrize("form", ["custom gradient", "reference"])
@pyramids
def test_attention_equals_masked_dense_attention(pyramid: Pyramid, form: str) -> None:
    nodes = sum(level_sizes(*pyramid[:2]))
    mask = attnzoo.pyraformer_mask(*pyramid)
    for asking in (nodes, pyramid.length):
        q = torch.randn(2, asking, 3, 5, dtype=torch.float64, requires_grad=True)
        k = torch.randn(2, nodes, 3, 5, dtype=torch.float64, requires_grad=True)
        v = torch.randn(2, nodes, 3, 4, dtype=torch.float64, requires_grad=True)
        scores = torch.einsum("bihd,bjhd->bhij", q, k)
        weights = scores.masked_fill(mask[:asking], -1e9).softmax(-1)
        wanted = torch.einsum("bhij,bjhd->bihd", weights, v)
        if form == "reference":
            with reference_forms():
                found = pyramid_attention(q, k, v, None, pyramid)
        else:
            found = pyramid_attention(q, k, v, None, pyramid)
        grad = torch.randn_like(wanted)
        assert_close(found, wanted)
        assert_close(
            torch.autograd.grad(found, (q, k, v), grad),
            torch.autograd.grad(wanted, (q, k, v), grad),
        )


@pyramids
def test_dropped_weights_are_those_of_the_reference_form(pyramid: Pyramid) -> None:
    nodes = sum(level_sizes(*pyramid[:2]))
    q, k, v = (torch.randn(2, nodes, 3, 5, dtype=torch.float64) for _ in range(3))
    leaves = [t.requires_grad_() for t in (q, k, v)]
    keep = F.dropout(torch.ones(2, 3, nodes, pyramid.slots, dtype=torch.float64), 0.4)
    found = pyramid_attention(q, k, v, keep, pyramid)
    with reference_forms():
        wanted = pyramid_attention(q, k, v, keep, pyramid)
    assert_close(found, wanted)
    grad = torch.randn_like(wanted)
    assert_close(
        torch.autograd.grad(found, leaves, grad), torch.autograd.grad(wanted, leaves, grad)
    )


class Largest(TorchDispatchMode):
    """Records the number of elements of the largest tensor that an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("length", [8, 11, 21])
def test_a_small_pyramid_by_its_whole_matrix(length: int) -> None:
    """Equal to the form of few pairs, also where only the first nodes ask."""
    pyramid = Pyramid.of(length, (2, 3), 3)
    nodes = sum(level_sizes(length, (2, 3)))
    q, k, v = (torch.randn(2, n, 3, 4, dtype=torch.float64) for n in (length, nodes, nodes))
    assert plain.is_small(k)
    found = plain.whole_attention(q, k, v, pyramid)
    assert_close(found, plain.pyramid_attention(q, k, v, None, pyramid))


@pytest.mark.parametrize("form", ["custom gradient", "reference"])
def test_no_tensor_grows_with_the_square_of_the_steps(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain, "_FEW", 0)
    block = attnzoo.build("pyraformer", c=8, heads=1, d_k=2, d_v=2, output="pyramid")
    largest = []
    for steps in (128, 512, 2048, 8192):
        x = torch.randn(1, steps, 8, requires_grad=True)
        block(x)  # the tables are made once
        with Largest() as seen:
            if form == "reference":
                with reference_forms():
                    block(x).sum().backward()
            else:
                block(x).sum().backward()
        nodes = sum(level_sizes(steps, (4, 4, 4)))
        assert seen.elements < nodes * nodes
        assert seen.elements <= 30 * nodes  # a few widths of c, a few slots a node
        largest.append(seen.elements)
    assert largest[3] <= 4.2 * largest[2] <= 4.2 * 4.2 * largest[1]


LONG = """
import math, resource, time, torch, attnzoo
torch.set_num_threads(1)
block = attnzoo.build("pyraformer", c=64)
times = {4096: [], 65536: []}
for _ in range(4):
    for steps, found in times.items():
        x = torch.randn(1, steps, 64, requires_grad=True)
        start = time.process_time()
        block(x).sum().backward()
        found.append(time.process_time() - start)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(peak, math.log(min(times[65536]) / min(times[4096])) / math.log(16))
"""


@pytest.mark.slow
def test_65536_steps_train_in_linear_time_and_memory() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LONG], capture_output=True, text=True, check=True, timeout=600
    )
    peak, exponent = map(float, done.stdout.split())
    assert peak < 6, f"{peak:.2f} GiB"
    assert exponent < 1.15


def spelled_out(w: dict[str, Tensor], x: Tensor, config: dict, train: bool) -> dict[str, Tensor]:
    """All outputs by dense attention, with weights by the authors' names."""
    pool = {"max": F.max_pool1d, "avg": F.avg_pool1d}.get(config["cscm"])
    t = x
    if config["cscm"] == "bottleneck":
        t = F.linear(t, w["conv_layers.down.weight"], w["conv_layers.down.bias"])
    t, levels = t.mT, []
    for i, window in enumerate(config["windows"]):
        if pool is not None:
            t = pool(t, window)
        else:
            at = {k.removeprefix(f"conv_layers.conv_layers.{i}."): v for k, v in w.items()}
            t = F.conv1d(t, at["downConv.weight"], at["downConv.bias"], stride=window)
            mean, var = at["norm.running_mean"], at["norm.running_var"]
            t = F.batch_norm(
                t, mean.clone(), var.clone(), at["norm.weight"], at["norm.bias"], train
            )
            t = F.elu(t)
        levels.append(t)
    coarse = torch.cat(levels, 2).mT
    if config["cscm"] == "bottleneck":
        coarse = F.linear(coarse, w["conv_layers.up.weight"], w["conv_layers.up.bias"])
    norm = (w["conv_layers.norm.weight"], w["conv_layers.norm.bias"])
    z = F.layer_norm(torch.cat((x, coarse), 1), x.shape[-1:], *norm)
    pyramid = Pyramid(x.shape[1], tuple(config["windows"]), config["inner"])
    mask = mask_by_loops(pyramid)
    for i in range(config["n_layers"]):
        at = {k.removeprefix(f"layers.{i}."): v for k, v in w.items()}
        q, k, v = (
            (z @ at[f"slf_attn.{name}.weight"].T).unflatten(-1, (config["heads"], -1))
            for name in ("w_qs", "w_ks", "w_vs")
        )
        scores = torch.einsum("bihd,bjhd->bhij", q / math.sqrt(q.shape[-1]), k)
        attended = scores.masked_fill(mask, -1e9).softmax(-1)
        y = torch.einsum("bhij,bjhd->bihd", attended, v).flatten(2)
        y = z + F.linear(y, at["slf_attn.fc.weight"], at["slf_attn.fc.bias"])
        norm = (at["slf_attn.layer_norm.weight"], at["slf_attn.layer_norm.bias"], 1e-6)
        y = F.layer_norm(y, y.shape[-1:], *norm)
        hidden = F.gelu(F.linear(y, at["pos_ffn.w_1.weight"], at["pos_ffn.w_1.bias"]))
        z = y + F.linear(hidden, at["pos_ffn.w_2.weight"], at["pos_ffn.w_2.bias"])
        norm = (at["pos_ffn.layer_norm.weight"], at["pos_ffn.layer_norm.bias"], 1e-6)
        z = F.layer_norm(z, z.shape[-1:], *norm)
    sizes = level_sizes(*pyramid[:2])
    rows = []
    for t in range(sizes[0]):
        node, start, found = t, 0, [z[:, t]]
        for level, window in enumerate(config["windows"]):
            node, start = min(node // window, sizes[level + 1] - 1), start + sizes[level]
            found.append(z[:, start + node])
        rows.append(torch.cat(found, -1))
    return {"finest": z[:, : sizes[0]], "gather": torch.stack(rows, 1), "pyramid": z}


def authors_weights(config: dict) -> dict[str, Tensor]:
    c, h, f = config["c"], config["heads"], config["d_inner"]
    k, v = h * config["d_k"], h * config["d_v"]
    shapes: dict[str, tuple[int, ...]] = {}

    def add(path: str, *shape: int, bias: bool = True) -> None:
        shapes[f"{path}.weight"] = shape
        if bias:
            shapes[f"{path}.bias"] = shape[:1]

    d = config["bottleneck"] if config["cscm"] == "bottleneck" else c
    if config["cscm"] == "bottleneck":
        add("conv_layers.down", d, c)
        add("conv_layers.up", c, d)
    if config["cscm"] in ("bottleneck", "conv"):
        for i, window in enumerate(config["windows"]):
            add(f"conv_layers.conv_layers.{i}.downConv", d, d, window)
            add(f"conv_layers.conv_layers.{i}.norm", d)
            shapes[f"conv_layers.conv_layers.{i}.norm.running_mean"] = (d,)
            shapes[f"conv_layers.conv_layers.{i}.norm.running_var"] = (d,)
    add("conv_layers.norm", c)
    for i in range(config["n_layers"]):
        add(f"layers.{i}.slf_attn.w_qs", k, c, bias=False)
        add(f"layers.{i}.slf_attn.w_ks", k, c, bias=False)
        add(f"layers.{i}.slf_attn.w_vs", v, c, bias=False)
        add(f"layers.{i}.slf_attn.fc", c, v)
        add(f"layers.{i}.slf_attn.layer_norm", c)
        add(f"layers.{i}.pos_ffn.w_1", f, c)
        add(f"layers.{i}.pos_ffn.w_2", c, f)
        add(f"layers.{i}.pos_ffn.layer_norm", c)
    return {key: torch.rand(shape) for key, shape in shapes.items()}


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("n_layers", [1, 2])
@pytest.mark.parametrize("cscm", ["bottleneck", "conv", "max", "avg"])
def test_equals_the_formulas(cscm: str, n_layers: int, train: bool) -> None:
    config = {
        "c": 6, "heads": 3, "d_k": 2, "d_v": 5, "windows": [3, 2], "inner": 4, "bottleneck": 3,
        "d_inner": 7, "n_layers": n_layers, "cscm": cscm, "dropout": 0.0,
    }  # fmt: skip
    weights = authors_weights(config)
    exact = {key: weight.double() for key, weight in weights.items()}
    for steps in (12, 23):
        x = torch.randn(2, steps, 6, dtype=torch.float64)
        wanted = spelled_out(exact, x, config, train)
        for output, tensor in wanted.items():
            prefixed = {f"encoder.{key}": weight for key, weight in weights.items()}
            prefixed["encoder.enc_embedding.weight"] = torch.ones(3)
            prefixed["predictor.weight"] = torch.ones(3)
            block = attnzoo.from_upstream("pyraformer", prefixed, output=output, **config)
            assert_close(block.double().train(train)(x), tensor)


def test_every_length_from_one_node_per_level_on_works() -> None:
    block = attnzoo.build("pyraformer", c=8, dtype=torch.float64, output="pyramid").eval()
    randomize_parameters(block)
    for steps in (64, 65, 67, 68, 71, 79, 80, 83, 87, 107, 131, 151):
        x = torch.randn(steps, 8, dtype=torch.float64)
        found = step(block, {"x": x})
        with reference_forms():
            assert_close(found, step(block, {"x": x}))
        assert found["outputs"][0].shape == (sum(level_sizes(steps, (4, 4, 4))), 8)


@pytest.mark.parametrize("output", ["finest", "gather", "pyramid"])
@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (0, 3)])
def test_any_leading_axes(lead: tuple[int, ...], output: str) -> None:
    block = attnzoo.build("pyraformer", c=8, windows=(3, 2), output=output).eval()
    shape = {"finest": (13, 8), "gather": (13, 24), "pyramid": (19, 8)}[output]
    assert block(torch.randn(*lead, 13, 8)).shape == (*lead, *shape)


def test_dropout_acts_only_in_training() -> None:
    block = attnzoo.build("pyraformer", c=8, windows=(3, 2), dropout=0.3).eval()
    x = torch.randn(2, 13, 8, requires_grad=True)
    assert torch.equal(block(x), block(x))
    block.train()
    assert not torch.equal(block(x), block(x))
    attention: nn.Module = block.layers[0].attention
    attention.out = nn.Identity()
    assert not torch.equal(block(x), block(x))
    block(x).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


class Zero(nn.Module):
    """Sets its input to zero and records its shape."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.shapes.append(tuple(x.shape))
        return x * 0


def test_dropout_is_applied_where_the_authors_apply_it() -> None:
    """On the weights, on the attention's output, and twice in the MLP."""
    config = {"c": 8, "heads": 2, "d_inner": 5, "windows": (3, 2), "dropout": 0.3}
    block = attnzoo.build("pyraformer", **config, output="pyramid", n_layers=2)
    rates = [m.p for m in block.modules() if isinstance(m, nn.Dropout)]
    assert rates == [0.3] * 4
    randomize_parameters(block)
    slots = Pyramid(13, (3, 2), 3).slots
    for layer in block.layers:
        layer.attention.dropout, layer.dropout = Zero(), Zero()
        layer.attention.dropout.p = 0.3
    x = torch.randn(2, 13, 8)
    wanted = block.cscm(x)
    for layer in block.layers:  # so that only the residual remains
        wanted = layer.norm(layer.attention.norm(wanted))
    assert_close(block(x), wanted)
    for layer in block.layers:
        assert layer.attention.dropout.shapes == [(2, 2, 19, slots), (2, 19, 8)]
        assert layer.dropout.shapes == [(2, 19, 5), (2, 19, 8)]


def test_initial_distributions() -> None:
    """Xavier's in the attention, as in the authors' code, torch's default elsewhere."""
    block = attnzoo.build("pyraformer", c=96, heads=4, d_k=20, d_v=30, d_inner=128, n_layers=2)
    for layer in block.layers:
        attention = layer.attention
        for linear, widths in (
            (attention.query, 96 + 80), (attention.key, 96 + 80), (attention.value, 96 + 120),
            (attention.out, 120 + 96),
        ):  # fmt: skip
            assert_uniform(linear.weight.detach(), (6 / widths) ** 0.5)
        assert attention.query.bias is attention.key.bias is attention.value.bias is None
        assert_uniform(attention.out.bias.detach(), 120**-0.5)
        for linear, width in ((layer.fc1, 96), (layer.fc2, 128)):
            assert_uniform(linear.weight.detach(), width**-0.5)
            assert_uniform(linear.bias.detach(), width**-0.5)
        for norm in (attention.norm, layer.norm):
            assert norm.eps == 1e-6
            assert torch.equal(norm.weight, torch.ones(96))
            assert torch.equal(norm.bias, torch.zeros(96))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_parameters_accept_float32_inputs_under_autocast(half: torch.dtype) -> None:
    block = attnzoo.build("pyraformer", c=8, windows=(3, 2))
    assert_takes_float32_under_autocast(block, torch.randn(2, 13, 8), half)


def test_training_after_inference() -> None:
    """Cached tables must not be inference tensors."""
    pyramid_module._cached.cache_clear()
    block = attnzoo.build("pyraformer", c=8, windows=(3, 2), output="gather")
    x = torch.randn(2, 13, 8)
    with torch.inference_mode():
        block(x)
    for form in (contextlib.nullcontext, reference_forms):
        with form():
            block(x).sum().backward()


def test_tables_are_cached_per_device() -> None:
    pyramid = Pyramid(13, (3, 2), 3)
    for device in ("cpu", "meta", "cpu"):
        there = torch.device(device)
        assert {t.device.type for t in neighbors(pyramid, there)} == {device}
        assert ancestors(pyramid, there).device.type == device
    assert neighbors(pyramid, CPU)[0] is neighbors(pyramid, CPU)[0]


def test_closed_form_at_an_odd_size() -> None:
    """13 steps give 19 nodes, of which 97 pairs attend to each other."""
    pyramid = Pyramid(13, (3, 2), 3)
    assert pyramid.pairs == int((~attnzoo.pyraformer_mask(*pyramid)).sum())
    config = {"c": 8, "heads": 2, "d_k": 3, "d_v": 5, "windows": (3, 2), "d_inner": 7}
    block = attnzoo.build("pyraformer", **config, n_layers=2)
    size = attnzoo.InputSize(steps=13)
    linear = 19 * (8 * 2 * (3 + 3 + 5 + 5) + 2 * 8 * 7)
    layer = linear + pyramid.pairs * 2 * (3 + 5)
    assert block.macs(size) == block.cscm.macs(size) + 2 * layer


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"c": 3}, "c=3 leaves d_k=c // 4 no channel; give d_k=1, or c=4 or more"),
        ({"c": 3, "d_k": 1, "d_v": 1}, "c=3 leaves bottleneck=c // 4 no channel"),
        ({"windows": ()}, r"windows=\(\) must be non-empty"),
        ({"windows": (4, 0)}, r"windows\[1\]=0 must be at least 1"),
        ({"inner": 0}, "inner=0 must be at least 1"),
        ({"n_layers": 0}, "n_layers=0 must be at least 1"),
        ({"heads": 0}, "heads=0 must be at least 1"),
        ({"d_inner": 0}, "d_inner=0 must be at least 1"),
        ({"bottleneck": 0}, "bottleneck=0 must be at least 1"),
        ({"dropout": 1.0}, "dropout=1.0 must be at least 0 and below 1"),
        ({"cscm": "convolution"}, "cscm='convolution' must be one of"),
        ({"output": "fine"}, "output='fine' must be one of .*did you mean 'finest'"),
    ],
)
def test_invalid_configs_raise_clear_errors(config: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        attnzoo.build("pyraformer", **{"c": 8, **config})


def test_a_series_too_short_for_the_levels_is_refused() -> None:
    words = r"x has 63 steps; windows=\(4, 4, 4\) need at least 64"
    with pytest.raises(ValueError, match=words):
        attnzoo.build("pyraformer", c=8)(torch.randn(1, 63, 8))
    with pytest.raises(ValueError, match=words.replace("x has 63 steps", "length=63")):
        attnzoo.pyraformer_mask(63, [4, 4, 4], 3)
    for arguments, wrong in (
        ((0, [4], 3), "length=0"),
        ((8, [4], 0), "inner=0"),
        ((8, [4, 0], 3), r"windows\[1\]=0"),
    ):
        with pytest.raises(ValueError, match=f"{wrong} must be at least 1"):
            attnzoo.pyraformer_mask(*arguments)
