"""A block's data flow as an SVG, drawn from one traced call of the block itself.

Every layer that the block calls, and every torch function outside its layers, is a node with the
shape of its result. Functions that only rearrange values (reshape, permute, ...) are left out. If
there are too many nodes, submodules become one node each, the deepest first; then functions of one
value are joined to what they read.
"""

import functools
import html
import math
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import attnzoo
from attnzoo.autograd import reference_forms
from attnzoo.registry import find
from attnzoo.testing.inputs import make_inputs
from attnzoo.validation.signature import arguments
from attnzoo.validation.tensors import tensors as found_tensors

MAX_NODES = 18
PACKAGE = str(Path(attnzoo.__file__).parent)
# Functions whose result holds the values of their argument, or part of them, in another shape.
MOVES = frozenset(
    word
    for line in (
        "reshape view flatten unflatten permute transpose movedim moveaxis squeeze unsqueeze",
        "expand expand_as contiguous clone to float type_as mT T chunk split split_with_sizes",
        "unbind select narrow dropout detach view_as alias swapaxes broadcast_to __getitem__ tile",
        "repeat repeat_interleave index_select take_along_dim gather roll flip masked_fill where",
        "type double pad unfold",
    )
    for word in line.split()
)
SIGNS = {
    "mul": "×",
    "__mul__": "×",
    "__rmul__": "×",
    "add": "+",
    "__add__": "+",
    "__radd__": "+",
    "iadd": "+",
    "sub": "−",
    "rsub": "−",
    "__sub__": "−",
    "__rsub__": "−",
    "div": "÷",
    "truediv": "÷",
    "__truediv__": "÷",
    "__rtruediv__": "÷",
    "matmul": "matrix product",
    "__matmul__": "matrix product",
    "__rmatmul__": "matrix product",
    "bmm": "matrix product",
    "einsum": "sum of products",
    "cat": "concatenate",
    "concat": "concatenate",
    "stack": "stack",
    "scaled_dot_product_attention": "softmax attention",
    "neg": "negate",
    "lerp": "mix",
    "amax": "maximum",
    "max": "maximum",
    "pow": "power",
    "square": "square",
    "sqrt": "square root",
    "baddbmm": "matrix product",
    "addmm": "matrix product",
    "addcmul": "× and +",
    "vector_norm": "norm",
    "interpolate": "resize",
    "avg_pool2d": "average pooling",
    "adaptive_avg_pool2d": "average pooling",
}
LAYERS = {
    "Linear": "linear",
    "Conv1d": "conv",
    "Conv2d": "conv",
    "Conv3d": "conv",
    "BatchNorm1d": "BatchNorm",
    "BatchNorm2d": "BatchNorm",
    "BatchNorm3d": "BatchNorm",
}


@dataclass
class Node:
    """An input, a layer or a function."""

    label: str
    shape: str = ""
    sources: list[int] = field(default_factory=list)
    kind: str = "function"  # or "input", "layer", "output"
    line: tuple[int, ...] = ()  # of the call, and of the calls that led to it
    times: int = 1


class Trace(TorchFunctionMode):
    """Records the functions that run on values derived from the inputs."""

    def __init__(self, block: nn.Module, opaque: set[str]) -> None:
        super().__init__()
        self.nodes: list[Node] = []
        self.opaque = {m: name for name, m in block.named_modules() if name in opaque}
        self._owner: dict[int, int] = {}
        self._kept: list[Any] = []
        self._inside = 0

    def input(self, name: str, value: Tensor) -> None:
        self._record(Node(name, kind="input"), [], value)

    def hooks(self, stack: ExitStack) -> None:
        """Make each opaque module one node."""
        for module in self.opaque:
            stack.callback(module.register_forward_pre_hook(self._enter).remove)
            hook = module.register_forward_hook(self._leave, with_kwargs=True)
            stack.callback(hook.remove)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        known = [] if self._inside else self._sources((args, kwargs))
        result = func(*args, **kwargs)
        if not known or not tensors(result):
            return result
        name = getattr(func, "__name__", "")
        if name == "__get__":
            name = getattr(getattr(func, "__self__", None), "__name__", "")
        name = name.strip("_") if name.endswith("_") and not name.startswith("__") else name
        if name in MOVES or name.startswith("as_") or not any(map(_floating, tensors(result))):
            first = self._sources((args[:1],)) or known
            for tensor in tensors(result):
                self._own(tensor, first[0])
        else:
            self._record(Node(self._label(name, args, kwargs)), known, result)
        return result

    def _label(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        label = SIGNS.get(name, name.strip("_").replace("_", " "))
        if name in ("mean", "sum", "max", "amax", "softmax", "amin", "prod", "logsumexp"):
            axes = kwargs.get("dim", args[1] if len(args) > 1 else None)
            if isinstance(axes, (int, tuple, list)) and isinstance(args[0], Tensor):
                axes = [axes] if isinstance(axes, int) else list(axes)
                places = [a % args[0].ndim for a in axes]
                label += " over axis " if len(places) == 1 else " over axes "
                label += ", ".join(map(str, places))
        weights = [a for a in args if isinstance(a, nn.Parameter)]
        if weights and label in ("×", "+", "−", "÷", "matrix product"):
            label += " weight" if label != "matrix product" else " with weights"
        return label

    def _enter(self, module: nn.Module, args: Any) -> None:
        self._inside += 1

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        self._inside -= 1
        sources = [] if self._inside else self._sources((args, kwargs))
        if sources and tensors(result):
            name = self.opaque[module]
            if isinstance(module, (nn.Dropout, nn.Identity)):
                self._own(result, sources[0])
            else:
                self._record(Node(_layer(module, name), kind="layer"), sources, result)

    def _sources(self, values: Any) -> list[int]:
        found = [self._owner[id(t)] for t in tensors(values) if id(t) in self._owner]
        return list(dict.fromkeys(found))

    def _record(self, node: Node, sources: list[int], result: Any) -> None:
        outputs = tensors(result)
        node.sources, node.line = sources, _line()
        node.shape = _shape(outputs)
        self.nodes.append(node)
        for tensor in outputs:
            self._own(tensor, len(self.nodes) - 1)

    def _own(self, tensor: Tensor, node: int) -> None:
        self._owner[id(tensor)] = node
        self._kept.append(tensor)  # so that no other tensor gets its id

    def end(self, result: Any) -> None:
        sources = self._sources(result)
        named = tensors(result)
        self.nodes.append(Node("output", _shape(named), sources, "output"))


def tensors(value: Any) -> list[Tensor]:
    """All tensors in a value, lists and mappings included."""
    return list(found_tensors(value))


def _floating(tensor: Tensor) -> bool:
    return tensor.is_floating_point()


def _line() -> tuple[int, ...]:
    """The package's instructions that are being run, the outermost last."""
    frame, lines = sys._getframe(2), []
    while frame is not None:
        if PACKAGE in frame.f_code.co_filename:
            lines.append(frame.f_lasti)
        frame = frame.f_back
    return tuple(lines)


def _shape(outputs: Sequence[Tensor]) -> str:
    shapes = list(dict.fromkeys(" × ".join(map(str, t.shape)) or "1" for t in outputs))
    more = f" (of {len(shapes)})" if len(shapes) > 2 else ""
    return ", ".join(shapes[:2]) + more


def _layer(module: nn.Module, name: str) -> str:
    kind = type(module).__name__
    label = LAYERS.get(kind, kind)
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        size = "×".join(map(str, module.kernel_size))
        depthwise = module.groups == module.in_channels > 1
        label = f"{'depthwise ' if depthwise else ''}{label} {size}"
    return f"{name}: {label}" if name else label


@functools.cache
def flow(name: str) -> list[Node]:
    """The nodes of the block's example, in the order in which they ran."""
    entry = find(name)
    torch.manual_seed(0)
    block = attnzoo.build(entry.name, **entry.example).eval()
    size = entry.input_size
    inputs = make_inputs(entry, dict(entry.example), size)
    names = [name for name, _ in block.named_modules() if name]
    leaves = {n for n in names if _is_layer(block.get_submodule(n))}
    depths = sorted({n.count(".") for n in names}, reverse=True)
    choices = [leaves]
    choices += [leaves | {n for n in names if n.count(".") >= d} for d in depths]
    nodes: list[Node] = []
    for opaque in choices:
        nodes = _pruned(_traced(block, inputs, opaque))
        if len(nodes) <= MAX_NODES:
            break
    if len(nodes) > MAX_NODES:
        nodes = _rolled(nodes)
    return _joined(nodes)


def _is_layer(module: nn.Module) -> bool:
    return not any(module.children()) and type(module).__module__.startswith("torch.")


def _traced(block: nn.Module, inputs: Any, opaque: set[str]) -> list[Node]:
    trace = Trace(block, opaque)
    with torch.no_grad(), reference_forms(), ExitStack() as stack:
        trace.hooks(stack)
        for name, value in inputs.items():
            several = tensors(value)
            for i, tensor in enumerate(several):
                trace.input(f"{name}[{i}]" if len(several) > 1 else name, tensor)
        positional, keywords = arguments(block, inputs)
        with trace:
            result = block(*positional, **keywords)
        trace.end(result)
    return trace.nodes


def _pruned(nodes: list[Node]) -> list[Node]:
    """Only nodes that lead to the output, and no sums or products with a constant."""
    kept: set[int] = set()
    stack = [len(nodes) - 1]
    while stack:
        i = stack.pop()
        if i not in kept:
            kept.add(i)
            stack += nodes[i].sources
    kept |= {i for i, node in enumerate(nodes) if node.kind == "input"}
    return _renumbered(nodes, kept)


def _renumbered(nodes: list[Node], kept: set[int]) -> list[Node]:
    new = {old: i for i, old in enumerate(sorted(kept))}
    return [
        replace(n, sources=[new[s] for s in n.sources if s in new])
        for i, n in enumerate(nodes)
        if i in kept
    ]


def _rolled(nodes: list[Node]) -> list[Node]:
    """The rounds of a loop as one: what one line computes again and again is one node."""
    first: dict[object, int] = {}
    new: list[int] = []
    rolled: list[Node] = []
    for i, node in enumerate(nodes):
        looped = node.kind in ("function", "layer")
        at = first.setdefault((node.line, node.label) if looped else i, len(rolled))
        new.append(at)
        if at == len(rolled):
            rolled.append(replace(node, sources=[]))
        else:
            rolled[at].times += 1
    for i, node in enumerate(nodes):
        read = rolled[new[i]].sources
        read += [new[s] for s in node.sources if new[s] < new[i] and new[s] not in read]
    return rolled


def _joined(nodes: list[Node]) -> list[Node]:
    """Join functions of one value to what they read, then repeated nodes, until there are few."""
    while len(nodes) > MAX_NODES:
        readers: dict[int, list[int]] = defaultdict(list)
        for i, node in enumerate(nodes):
            for source in node.sources:
                readers[source].append(i)
        pairs = [
            (len(nodes[i].label) + len(nodes[s].label), s, i)
            for i, node in enumerate(nodes)
            if node.kind == "function" and len(node.sources) == 1
            for s in node.sources
            if nodes[s].kind in ("function", "layer") and readers[s] == [i]
        ]
        pairs = [pair for pair in pairs if pair[0] < 90]
        if not pairs:
            break
        _, s, i = min(pairs)
        parts = nodes[s].label.split(", ")
        more = nodes[i].label
        nodes[i].label = nodes[s].label if more in parts else f"{nodes[s].label}, {more}"
        nodes[i].kind = nodes[s].kind
        nodes[i].sources = nodes[s].sources
        nodes = _renumbered(nodes, set(range(len(nodes))) - {s})
    return nodes


# ------------------------------------------------------------------------------------- drawing

NODE, GAP_X, GAP_Y, CHARACTER = 40, 18, 30, 6.3


@dataclass
class Box:
    """Where a node stands."""

    lines: list[str]
    width: float
    height: float
    row: int
    x: float = 0.0
    y: float = 0.0


def svg(name: str) -> str:
    """The diagram of one block; its colors follow the page's text color."""
    nodes = flow(name)
    boxes = _placed(nodes)
    detours = [
        x
        for i, node in enumerate(nodes)
        for s in node.sources
        if (x := _detour(nodes, boxes, s, i)) is not None
    ]
    left = min([b.x - b.width / 2 for b in boxes] + detours) - 8
    for box in boxes:
        box.x -= left
    width = max([b.x + b.width / 2 for b in boxes] + [x - left for x in detours]) + 8
    height = max(b.y + b.height for b in boxes) + 8
    title = f"Data flow of {name} at the size of its example"
    parts = [
        f'<svg class="dataflow" role="img" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" xmlns="http://www.w3.org/2000/svg">',
        f"<title>{html.escape(title)}</title>",
        *_edges(nodes, boxes),
        *(part for node, box in zip(nodes, boxes, strict=True) for part in _drawn(node, box)),
        "</svg>",
    ]
    return "".join(parts)


def _placed(nodes: list[Node]) -> list[Box]:
    boxes = [_box(node, nodes) for node in nodes]
    _rows(nodes, boxes)
    rows: dict[int, list[int]] = defaultdict(list)
    for i, box in enumerate(boxes):
        rows[box.row].append(i)
    widest = max(sum(boxes[i].width + GAP_X for i in row) for row in rows.values())
    y = 8.0
    for number in sorted(rows):
        row = rows[number]
        row.sort(key=lambda i: _wanted(nodes[i], boxes, widest / 2))
        _spread(row, nodes, boxes, widest)
        for i in row:
            boxes[i].y = y
        y += max(boxes[i].height for i in row) + GAP_Y
    return boxes


def _box(node: Node, nodes: list[Node]) -> Box:
    lines = _wrapped(f"{node.label} ({node.times} times)" if node.times > 1 else node.label)
    if node.shape:
        lines.append(node.shape)
    width = max(max(len(line) for line in lines) * CHARACTER + 20, 54)
    return Box(lines, width, 12 + 15 * len(lines), 0)


def _wrapped(label: str, width: int = 28) -> list[str]:
    lines = [""]
    for word in label.split(" "):
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def _rows(nodes: list[Node], boxes: list[Box]) -> None:
    """Each node below all that it reads; side inputs just above their first reader."""
    for i, node in enumerate(nodes):
        boxes[i].row = 1 + max((boxes[s].row for s in node.sources), default=-1)
    for i, node in enumerate(nodes):
        readers = [boxes[j].row for j, n in enumerate(nodes) if i in n.sources]
        if node.kind == "input" and i > 0 and readers:
            boxes[i].row = max(min(readers) - 1, 0)


def _wanted(node: Node, boxes: list[Box], middle: float) -> float:
    places = [boxes[s].x for s in node.sources]
    return sum(places) / len(places) if places else middle


def _spread(row: list[int], nodes: list[Node], boxes: list[Box], widest: float) -> None:
    """Side by side, as near as possible to the middle of what each reads."""
    wanted = [_wanted(nodes[i], boxes, widest / 2) for i in row]
    edge = -math.inf
    for i, place in zip(row, wanted, strict=True):
        half = boxes[i].width / 2
        boxes[i].x = max(place, edge + half)
        edge = boxes[i].x + half + GAP_X
    shift = sum(boxes[i].x - place for i, place in zip(row, wanted, strict=True)) / len(row)
    for i in row:
        boxes[i].x -= shift


def _edges(nodes: list[Node], boxes: list[Box]) -> Iterator[str]:
    """Curves from the bottom of a node to the top of its reader, around what stands between."""
    for i, node in enumerate(nodes):
        below = boxes[i]
        for k, s in enumerate(node.sources):
            above = boxes[s]
            x0, y0 = above.x, above.y + above.height
            x1 = below.x + (k - (len(node.sources) - 1) / 2) * min(22, below.width / 4)
            y1 = below.y
            detour = _detour(nodes, boxes, s, i)
            if detour is None:
                middle = (y0 + y1) / 2
                path = (
                    f"M{x0:.0f} {y0:.0f}C{x0:.0f} {middle:.0f} {x1:.0f} {middle:.0f} "
                    f"{x1:.0f} {y1:.0f}"
                )
            else:
                top, bottom = y0 + GAP_Y, y1 - GAP_Y
                path = (
                    f"M{x0:.0f} {y0:.0f}C{x0:.0f} {top:.0f} {detour:.0f} {y0:.0f} {detour:.0f} "
                    f"{top:.0f}L{detour:.0f} {bottom:.0f}C{detour:.0f} {y1:.0f} {x1:.0f} "
                    f"{bottom:.0f} {x1:.0f} {y1:.0f}"
                )
            yield f'<path class="edge" d="{path}"/>'
            yield (
                f'<path class="tip" d="M{x1 - 4:.0f} {y1 - 7:.0f}L{x1:.0f} {y1:.0f}'
                f'L{x1 + 4:.0f} {y1 - 7:.0f}z"/>'
            )


def _detour(nodes: list[Node], boxes: list[Box], source: int, reader: int) -> float | None:
    """The x at which an edge over several rows passes, or None if nothing stands in its way."""
    above, below = boxes[source], boxes[reader]
    if below.row - above.row <= 1:
        return None
    between = [b for b in boxes if above.row < b.row < below.row]
    spans = sorted((b.x - b.width / 2 - 9, b.x + b.width / 2 + 9) for b in between)
    target = (above.x + below.x) / 2
    candidates = [target, *(edge for span in spans for edge in span)]
    free = [x for x in candidates if not any(low < x < high for low, high in spans)]
    return min(free, key=lambda x: abs(x - target))


def _drawn(node: Node, box: Box) -> Iterator[str]:
    left = box.x - box.width / 2
    radius = box.height / 2 if node.kind in ("input", "output") else 5
    yield (
        f'<rect class="{node.kind}" x="{left:.0f}" y="{box.y:.0f}" width="{box.width:.0f}" '
        f'height="{box.height:.0f}" rx="{radius:.0f}"/>'
    )
    for k, line in enumerate(box.lines):
        shape = k == len(box.lines) - 1 and bool(node.shape)
        kind = ' class="shape"' if shape else ""
        yield (
            f'<text{kind} x="{box.x:.0f}" y="{box.y + 18 + 15 * k:.0f}">{html.escape(line)}</text>'
        )
