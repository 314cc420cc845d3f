"""What each block's published arithmetic costs, written from the papers and the authors' code.

A second statement of the closed forms, apart from the package's own: the functions are named as the
blocks, take the extent and the whole config, and give parameters and multiply-adds of one sample.
What the authors compute and throw away, masked or cut off, is not in it.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import ceil, prod
from typing import Any

from attnzoo import InputSize

Counts = tuple[int, int]


def adcd_net(at: InputSize, **o: Any) -> Counts:
    """Both stages; the loss and the tokenizers that nobody reads are not run."""
    pooled, (w1, w2, w3), hidden = o["tokenizer"] == "pool", o["widths"], o["hidden"]
    rows, columns = (at.height, at.width) if pooled else o["size"]

    def sizes(h: int, w: int) -> list[tuple[int, int, int]]:
        """Maps of the multispectral image of that size, then of the panchromatic one."""
        half = [(c, ceil(h / 2), ceil(w / 2)) for c in (w2, w3, w3)]
        return [(w1, h, w), *half, (w1, 2 * h, 2 * w), (w2, h, w), *half[1:]]

    convs = [9 * a * b for c in (o["c"], o["c_y"]) for a, b in pairwise((c, w1, w2, w3))]
    maps = sizes(rows, columns)
    last = at._replace(height=rows, width=columns)
    last = last._replace(height=maps[-1][1], width=maps[-1][2])
    gates, scaled = dia(last, modulated=True)
    images = sum(convs) + 6 * (w1 + w2 + w3) + 2 * gates
    macs = 2 * 2 * scaled
    for weights, (_, h, w) in zip(convs, maps[:3] + maps[4:7], strict=True):
        macs += 2 * weights * h * w
    built = sizes(*o["size"])
    cells = 16 if pooled else built[-1][1] * built[-1][2]
    params = 2 * images + w3 * cells * hidden + hidden + 2 * hidden
    macs += w3 * cells * hidden + 3 * hidden * o["num_classes"]
    params += (hidden + 1) * o["num_classes"]
    if o["loss_widths"] is not None:
        params += 9 * sum(a * b for a, b in pairwise((w3, *o["loss_widths"])))
    for d, depths in zip(o["dims"], (built[:4], built[4:]), strict=True):
        params += w3 * cells * d + d + 2 * d
        macs += w3 * cells * d
        keys = ("tokenizer", "conv", "state", "expand")
        options = {key: o[key] for key in keys} | {"grid": 4, "c_out": hidden}
        more = dtm(at, sizes=depths, dim=d, readout_norm=False, **options)
        params, macs = params + more[0], macs + more[1]
    return params, macs


def agent(at: InputSize, **o: Any) -> Counts:
    c, h, a, r, variant = o["c"], o["heads"], o["agents"], o["sr_ratio"], o["variant"]
    rows, columns = (at.height, at.width) if o["layout"] == "image" else o["window"]
    N, M = rows * columns, ceil(rows / r) * ceil(columns / r)
    bias = {None: variant == "swin"}.get(o["qkv_bias"], o["qkv_bias"])
    H, W = o["window"]
    params = 4 * c**2 + c + 10 * c + h * a * (98 + ceil(H / r) + ceil(W / r) + H + W)
    macs = 9 * N * c
    if variant == "deit":
        params, N, M = params + 2 * h * a, N + 1, M + 1
    if bias:
        params += 3 * c
    if r > 1:
        params, macs = params + r**2 * c**2 + 3 * c, macs + M * r**2 * c**2
    return params, macs + 2 * N * c**2 + 2 * M * c**2 + 2 * a * M * c + 2 * a * N * c


def carafe(at: InputSize, **o: Any) -> Counts:
    c, cc, ke, K2, G, s2 = (
        *(o["c"], o["compressed"], o["encoder_kernel"]),
        *(o["kernel"] ** 2, o["groups"], o["scale"] ** 2),
    )
    params = c * cc + cc + cc * ke**2 * K2 * G * s2 + K2 * G * s2
    HW = at.height * at.width
    return params, HW * (c * cc + cc * ke**2 * K2 * G * s2) + s2 * HW * K2 * c


def carafe_stack(at: InputSize, **o: Any) -> Counts:
    steps = [
        carafe(
            at._replace(height=at.height * 2**i, width=at.width * 2**i),
            **{**o, "scale": 2, "groups": 1, "encoder_kernel": 3},
        )
        for i in range(4)
    ]
    return sum(p for p, _ in steps), sum(m for _, m in steps)


def cbam(at: InputSize, **o: Any) -> Counts:
    c, k = o["c"], o["kernel_size"]
    hidden = c // o["reduction"]
    params, macs = 2 * c * hidden + hidden + c, len(o["pool_types"]) * 2 * c * hidden
    if o["spatial"]:
        params, macs = params + 2 * k**2 + 2, macs + 2 * k**2 * at.height * at.width
    return params, macs


def coordatt(at: InputSize, **o: Any) -> Counts:
    c, m = o["c"], max(8, o["c"] // o["reduction"])
    out = c if o["c_out"] is None else o["c_out"]
    return c * m + m + 2 * m + 2 * (m * out + out), (at.height + at.width) * m * (c + out)


def ct_msa(at: InputSize, **o: Any) -> Counts:
    c, depth, T = o["c"], o["depth"], at.steps
    m = 2 * c if o["mlp_dim"] is None else o["mlp_dim"]
    W = T if o["window"] in (0, T) else min(o["window"], T)
    padded = ceil(T / W) * W  # attention runs over whole windows
    attention = 4 * c**2 + c + (3 * c if o["qkv_bias"] else 0)
    if o["attention_only"]:
        return attention, 4 * T * c**2 + 2 * padded * W * c
    layer = attention + 2 * c + (c * m + m) + (m * c + c)
    return o["length"] * c + depth * layer, depth * (
        4 * T * c**2 + 2 * padded * W * c + 2 * T * c * m
    )


def danet(at: InputSize, **o: Any) -> Counts:
    c, N = o["c"], at.height * at.width
    i = c // 4 if o["head"] else c
    q = i // o["reduction"]
    params = 2 * q * (i + 1) + i * (i + 1) + 1 + 1
    macs = N * (2 * i * q + i**2) + N**2 * (q + i) + 2 * i**2 * N
    if o["head"]:
        params, macs = params + 18 * c * i + 18 * i**2 + 8 * i, macs + N * (18 * c * i + 18 * i**2)
    return params, macs


def danet_channel(at: InputSize, c: int) -> Counts:
    return 1, 2 * c**2 * at.height * at.width


def danet_position(at: InputSize, c: int, reduction: int) -> Counts:
    q, N = c // reduction, at.height * at.width
    return 2 * q * (c + 1) + c * (c + 1) + 1, N * (2 * c * q + c**2) + N**2 * (q + c)


def dia(at: InputSize, **o: Any) -> Counts:
    n = ceil(at.height / 2) * ceil(at.width / 2)
    return (59, n * (9 + 9 + 18 + 18)) if o["modulated"] else (39, n * (9 + 9 + 18))


def dilated_inception(at: InputSize, **o: Any) -> Counts:
    c, kernels = o["c"], o["kernels"]
    out = c if o["c_out"] is None else o["c_out"]
    lost = (max(kernels) - 1) * o["dilation"] if o["padding"] == "valid" else 0
    branches = [c * (out // len(kernels)) * k for k in kernels]
    times = 2 if o["gated"] else 1
    return times * (sum(branches) + out), times * (at.steps - lost) * sum(branches)


def dtm(at: InputSize, **o: Any) -> Counts:
    d, out, k, n = o["dim"], o["c_out"], o["conv"], o["state"]
    e, r, T = int(o["expand"] * d), ceil(d / 16), len(o["sizes"]) + 1
    pooled = o["tokenizer"] == "pool"
    numbers = [c * (o["grid"] ** 2 if pooled else h * w) for c, h, w in o["sizes"]]
    core = {"c": d, "expand": o["expand"], "state": n, "conv": k, "dt_rank": r, "c_out": None}
    params, _ = mamba(at, **core, bias=False, conv_bias=True)
    params += sum(x * d + d + 2 * d for x in numbers) + 2 * d - e * d + e * out
    params += 2 * out * o["readout_norm"]
    macs = sum(x * d for x in numbers) + T * (2 * d * e + e * (r + 2 * n) + r * e + e * out)
    return params, macs + T * e * k + T * e * n


def ifa(at: InputSize, c: int) -> Counts:
    params = (c + 82) * c + c + 2 * c + c * c + c
    return params, 4 * at.height * at.width * ((c + 82) * c + c * c)


def jbu(at: InputSize, **o: Any) -> Counts:
    """At twice the source's height and width."""
    g, k, C, P = o["guidance"], o["key_dim"], o["c"], (2 * o["radius"] + 1) ** 2
    params = 2 + (g * k + k) + (k * k + k) + ((g + P) * P + P) + (P * P + P)
    return params, 4 * at.height * at.width * (g * k + k * k + k * P + (g + 2 * P) * P + C * P)


def jbu_stack(at: InputSize, **o: Any) -> Counts:
    steps = [
        jbu(at._replace(height=at.height * 2**i, width=at.width * 2**i), **o) for i in range(4)
    ]
    C, hw = o["c"], at.height * at.width
    return sum(p for p, _ in steps) + C * C + C, sum(m for _, m in steps) + 256 * hw * C * C


def jbu_one(at: InputSize, **o: Any) -> Counts:
    params, macs = jbu_stack(at, **o)
    return params - 3 * jbu(at, **o)[0], macs


def ltae(at: InputSize, **o: Any) -> Counts:
    c, h, d_k, mlp = o["c"], o["heads"], o["d_k"], o["mlp"]
    D = c if o["d_model"] is None else o["d_model"]
    pixels = at.height * at.width if o["layout"] == "image_series" else 1
    params = 2 * c + (D * h * d_k + h * d_k) + h * d_k + 2 * mlp[-1]
    params += sum(a * b + 3 * b for a, b in pairwise(mlp))
    step = D * h * d_k + h * d_k + D
    if o["d_model"] is not None:
        params, step = params + c * D + D, step + c * D
    if o["variant"] == "original":  # the table of codes, and the second norm over (D, T)
        own = isinstance(o["positions"], (tuple, list))
        params += (len(o["positions"]) if own else o["length"] + 1) * D
        params += 0 if o["d_model"] is None else 2 * D * o["length"]
    return params, pixels * (at.steps * step + sum(a * b for a, b in pairwise(mlp)))


def m_gtu(at: InputSize, **o: Any) -> Counts:
    c, T, kernels = o["c"], o["length"], o["kernels"]
    params = sum(2 * c**2 * k + 2 * c for k in kernels)
    if o["gtu_only"]:
        (k,) = kernels
        return params, ((at.steps - k) // o["stride"] + 1) * 2 * c**2 * k
    L = sum((T - k + 1) // (o["pool"] or 1) for k in kernels)
    return params + L * T + T, sum((T - k + 1) * 2 * c**2 * k for k in kernels) + c * L * T


def mamba(at: InputSize, **o: Any) -> Counts:
    d, n, k, T = o["c"], o["state"], o["conv"], at.steps
    e, out = int(o["expand"] * d), o["c_out"] or o["c"]
    r = ceil(d / 16) if o["dt_rank"] == "auto" else o["dt_rank"]
    params = 2 * d * e + e * k + (e if o["conv_bias"] else 0) + e * (r + 2 * n) + r * e + e
    params += e * n + e + e * out + (2 * e + out if o["bias"] else 0)
    return params, T * (2 * d * e + e * (r + 2 * n) + r * e + e * out) + T * e * k + T * e * n


def pyraformer(at: InputSize, **o: Any) -> Counts:
    c, h, f = o["c"], o["heads"], o["d_inner"] or o["c"]
    d_k, d_v = o["d_k"] or c // 4, o["d_v"] or c // 4
    params, macs = pyraformer_cscm(at, c, o["windows"], o["cscm"], o["bottleneck"])
    S = sum(_levels(at.steps, o["windows"]))
    P = _pairs(at.steps, o["windows"], o["inner"])
    params += o["n_layers"] * (c * h * (2 * d_k + d_v) + h * d_v * c + c + 2 * c)
    params += o["n_layers"] * (2 * c * f + f + c + 2 * c)
    layer = S * c * h * (2 * d_k + 2 * d_v) + h * P * (d_k + d_v) + 2 * S * c * f
    return params, macs + o["n_layers"] * layer


def pyraformer_cscm(
    at: InputSize, c: int, windows: Sequence[int], kind: str, bottleneck: int | None
) -> Counts:
    T, *coarser = _levels(at.steps, windows)
    if kind in ("max", "avg"):
        return 2 * c, 0
    d = c if kind == "conv" else bottleneck or c // 4
    params = sum(d**2 * w + 3 * d for w in windows) + 2 * c
    macs = sum(n * d**2 * w for n, w in zip(coarser, windows, strict=True))
    if kind == "conv":
        return params, macs
    return params + c * d + d + d * c + c, macs + T * c * d + sum(coarser) * d * c


def _levels(steps: int, windows: Sequence[int]) -> list[int]:
    return [steps // prod(windows[:i]) for i in range(len(windows) + 1)]


def _pairs(steps: int, windows: Sequence[int], inner: int) -> int:
    """Neighbours on a level one by one, and each node with its parent, both ways."""
    sizes, a = _levels(steps, windows), inner // 2
    near = sum(abs(i - j) <= a for size in sizes for i in range(size) for j in range(size))
    return near + 2 * sum(sizes[:-1])


def relu_linear(at: InputSize, **o: Any) -> Counts:
    c, dim, scales = o["c"], o["dim"], o["scales"]
    heads, S, N = int(c // dim * o["heads_ratio"]), len(o["scales"]), at.height * at.width
    t, out = heads * dim, o["c_out"] or c
    weights = 3 * t * c + sum(3 * t * s**2 + 3 * t * dim for s in scales) + (1 + S) * t * out
    linear, quadratic = 2 * (1 + S) * heads * N * dim * (dim + 1), 2 * (1 + S) * heads * N**2 * dim
    return weights + 2 * out, N * weights + (linear if dim < N else quadratic)


def sapa(at: InputSize, **o: Any) -> Counts:
    """Every query, and all that it is made of, at the guidance's size."""
    Dx, Dy, e, K, s = o["c"], o["guidance"], o["dim"], o["kernel"], o["scale"]
    out, mode = o["c_out"] or Dx, o["q_mode"]
    HW, biases = at.height * at.width, (2 + (mode == "gate")) * e
    params, macs = 2 * Dy + 2 * Dx + e * (Dy + Dx), s * s * HW * (Dy * e + K * K * (e + out))
    macs += HW * Dx * e
    if mode != "encoder_only":
        params, macs = params + Dx * e, macs + s * s * HW * Dx * e
    if mode == "gate":
        params, macs, biases = params + Dx, macs + HW * Dx, biases + 1
    if o["v_embed"] or out != Dx:
        params, macs, biases = params + Dx * out, macs + HW * Dx * out, biases + out
    return params + biases * o["bias"], macs


def sapa_stack(at: InputSize, **o: Any) -> Counts:
    options = {"scale": 2, "bias": True, "q_mode": "encoder_only", "v_embed": False, "c_out": None}
    steps = [
        sapa(at._replace(height=at.height * 2**i, width=at.width * 2**i), **{**o, **options})
        for i in range(4)
    ]
    return sum(p for p, _ in steps), sum(m for _, m in steps)


def se(at: InputSize, c: int, reduction: int, bias: bool) -> Counts:
    hidden = c // reduction
    return 2 * c * hidden + (c + hidden if bias else 0), 2 * c * hidden


def segearth_ov(at: InputSize, **o: Any) -> Counts:
    """Five texts; the ordinary last block, which theirs drops, is not run."""
    c, D, L, p, up = o["c"], o["dim"], o["layers"], o["patch"], o["upsampler"]
    sides = [max(1, n * (4 if L is None else 1) // p) for n in (at.height, at.width)]
    windows, crop, stride = 1, o["crop"], o["stride"] or o["crop"] // 2
    if L is not None and crop:
        windows = prod(ceil(max(n * p - crop, 0) / stride) + 1 for n in sides)
        sides = [ceil(min(n * p, crop) / p) for n in sides]
    hw = sides[0] * sides[1]
    N, grid = hw + 1, at._replace(height=sides[0], width=sides[1], steps=hw + 1)
    one = self_self(grid, c=c, mode="qk")
    last = self_self(grid, c=c, mode=o["mode"])
    mlp, ordinary = 8 * c**2 + 5 * c + 2 * c, (L or 1) - 1
    params = ordinary * (one[0] + 2 * c + mlp) + last[0] + 2 * c + o["residual"] * mlp
    macs = ordinary * (one[1] + 8 * N * c**2) + last[1] + o["residual"] * 8 * N * c**2
    params, macs = params + 2 * c + c * D, macs + N * c * D
    if L is not None:
        params += 3 * p**2 * c + c + (1 + (o["image_size"] // p) ** 2) * c + 2 * c
        macs += hw * 3 * p**2 * c
    if up is not None:
        keys = {key: o[key] for key in ("key_dim", "radius")}
        upsampled = {"jbu_one": jbu_one, "jbu_stack": jbu_stack}[up]
        more = upsampled(grid, c=D, guidance=3, **keys)
        params, macs = params + more[0], macs + more[1]
    macs += 5 * D * (hw * (1 if up is None else 256) + (o["global_bias"] != 0))
    return params, windows * macs


def self_self(at: InputSize, **o: Any) -> Counts:
    c, T = o["c"], at.steps
    logits = {"qk": 1, "qq": 1, "csa": 2, "qkv": 3}
    macs = 4 * T * c**2
    if o["mode"] == "gem":  # two projections of outputs; ordinary attention; q, k and v in turn
        macs += T * c**2 + 2 * T * T * c + 3 * (2 * o["iters"] + 2) * T * T * c
    elif o["mode"] != "identity":
        macs += (logits[o["mode"]] + 1) * T * T * c  # the weights are added up before the values
    return 4 * c**2 + 4 * c, macs


def sknet(at: InputSize, **o: Any) -> Counts:
    c, M, d = o["c"], o["branches"], max(int(o["c"] / o["reduction"]), o["min_dim"])
    convs = 9 * M * c**2 // o["groups"]
    pixels = ceil(at.height / o["stride"]) * ceil(at.width / o["stride"])
    return convs + 2 * c * M + c * d + 2 * d + M * d * c, convs * pixels + c * d + M * d * c


def swiftformer(at: InputSize, **o: Any) -> Counts:
    c, token = o["c"], o["token_dim"] or o["c"]
    D = token * o["heads"]
    N = at.height * at.width if o["layout"] == "image" else at.steps
    params = 2 * (c * D + D) + D + (D**2 + D) + (D * token + token)
    return params, N * (2 * c * D + D + D**2 + D * token)


def trend_aware(at: InputSize, **o: Any) -> Counts:
    c, k, T = o["c"], o["kernel_size"], at.steps
    params = 2 * (c**2 * k + c) + 2 * (c**2 + c)
    return params, 2 * T * c**2 * k + 2 * T * c**2 + 2 * T * T * c


def triplet(at: InputSize, **o: Any) -> Counts:
    c, k, H, W = o["c"], o["kernel_size"], at.height, at.width
    gates = [c * W, H * c] + ([H * W] if o["spatial"] else [])
    return len(gates) * (2 * k**2 + 2), 2 * k**2 * sum(gates)


def utae_aggregator(at: InputSize, **o: Any) -> Counts:
    """The weighted sum over the dates, which runs as elementwise operations."""
    return 0, at.steps * (o["c"] or 1) * at.height * at.width


def paps(at: InputSize, **o: Any) -> Counts:
    """Without the masks, whose boxes depend on values; a center is a step."""
    c, K, S, E = sum(o["dims"]), o["num_classes"], o["shape_size"] ** 2, o["dims"][-1]
    half, quarter = max(1, c // 2), max(1, c // 4)
    convs = 2 * 9 * (E * 32 + 32)
    linear = 3 * c * half + half * S + 2 * half * quarter + quarter * (2 + K)
    params = convs + 2 * (32 + 2 * 32 + 1 + 2) + linear + 9 * half + 4 * quarter + S + 2 + K
    params += o["mask_conv"] * (9 * 16 + 16 + 32 + 9 * 16**2 + 16 + 9 * 16 + 1)
    return params, at.height * at.width * convs + at.steps * linear


def tsvit(at: InputSize, **o: Any) -> Counts:
    """The product with the one-hot dates counts, and every token of the last layer."""
    D, K, p, c, i = o["dim"], o["num_classes"], o["patch_size"], o["c"], o["heads"] * o["dim_head"]
    P, T, h = (o["image_size"] // p) ** 2, at.steps, int(D * o["mlp_ratio"])
    depth, wide = o["temporal_depth"] + o["spatial_depth"], not (o["heads"] == 1 and i == D)
    layer = 2 * D + 3 * D * i + wide * (i * D + D) + 2 * D + 2 * h * D + h + D
    params = p**2 * c * D + D + 367 * D + K * D + P * D + depth * layer + 6 * D + p**2 * (D + 1)

    def macs(N: int, L: int) -> int:
        return N * (L * ((3 + wide) * D * i + 2 * h * D) + 2 * L**2 * i)

    stacks = o["temporal_depth"] * macs(P, K + T) + o["spatial_depth"] * macs(K, P)
    return params, P * T * p**2 * c * D + 366 * T * D + stacks + K * P * D * p**2


def u_mixformer(at: InputSize, **o: Any) -> Counts:
    """The joined maps are multiplied at the first one's size."""
    C, D, dim, K = o["dims"], sum(o["dims"]), o["dim"], o["num_classes"]
    city = o["variant"] == "city"
    pools = [(1 + city) * p for p in o["pools"]]
    sizes = [(ceil(at.height * p / pools[0]), ceil(at.width * p / pools[0])) for p in pools]
    M = ceil(at.height / max(pools)) * ceil(at.width / max(pools))
    pooled = [c for c, p in zip(C, pools, strict=True) if p > 1]
    params = D * dim + 2 * dim + dim * K + K + len(C) * sum(c**2 + c for c in pooled)
    macs = at.height * at.width * (D * dim + dim * K) + len(C) * sum(c**2 * M for c in pooled)
    for c, (h, w) in zip(C, sizes, strict=True):
        hidden, N = int(c * o["mlp_ratio"]), h * w
        Q = max(1, h // 2) * max(1, w // 2) if city else N
        params += 4 * c + 2 * D + 2 * c**2 + 2 * c * D + c + 2 * c * hidden + 11 * hidden + c
        params += city * (c**2 + 3 * c + 2 * D)
        macs += 2 * Q * c**2 + 2 * M * D * c + 2 * Q * M * c + city * Q * c**2
        macs += N * (2 * c * hidden + 9 * hidden)
    return params, macs


def utae(at: InputSize, **o: Any) -> Counts:
    """One run of the encoder, over sizes that every level can halve and reflect."""
    e, n, outs = o["encoder_widths"], len(o["encoder_widths"]), o["out_conv"]
    d, c, K = o["decoder_widths"] or e, o["c"], 2 ** (n - 1)
    H, W = (K * max(2, ceil(size / K)) for size in (at.height, at.width))
    affine = 2 if o["norm"] in ("group", "batch") else 0
    each = [(c, e[0], 3, 0), (e[0], e[0], 3, 0)]
    for i, (a, b) in enumerate(pairwise(e)):
        each += [(a, a, 4, i + 1), (a, b, 3, i + 1), (b, b, 3, i + 1)]
    shared = [(a, b, 3, 0) for a, b in pairwise((d[0], *outs))]
    for i, (a, b) in enumerate(pairwise(d)):
        shared += [(a + e[i], a, 3, i), (a, a, 3, i), (e[i], e[i], 1, i)]
        shared += [(b, a, 4, i + 1)]  # transposed: its weights act on every pixel it reads
    low = at._replace(height=H // K, width=W // K)
    config = {"heads": o["heads"], "d_k": o["d_k"], "mlp": (o["d_model"], e[-1])}
    config |= {"layout": "image_series", "variant": "utae", "positions": True}
    params, macs = ltae(low, c=e[-1], d_model=o["d_model"], **config)
    for layers, steps, norm in ((each, at.steps, affine), (shared, 1, 2)):
        for a, b, k, level in layers:
            params += a * b * k**2 + b + norm * b
            macs += steps * a * b * k**2 * (H * W // 4**level)
    return params, macs
