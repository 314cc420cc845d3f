"""The page of one block."""

import html
import inspect
from collections.abc import Iterable, Sequence

import attnzoo
from attnzoo import capabilities, reference
from attnzoo.registry import Description, find

from . import dataflow, equation, facts

LAYOUTS = {
    "image": "an image `(B, C, H, W)`",
    "sequence": "a sequence `(..., T, C)`",
    "image_series": "an image series `(B, T, C, H, W)`",
    "pair": "two feature maps of one shape",
    "features": "a list of feature maps",
    "upsampler": "an image to enlarge and, for most, a larger one as guidance",
}


def page(name: str, pictured: bool = False) -> str:
    """Markdown of the page of one block, with its picture if there is one."""
    record = attnzoo.describe(name)
    sections = {
        "": _head(record),
        "Picture": _picture(name) if pictured else "",
        "Equation": _equation(record),
        "Data flow": _flow(record),
        "Arguments": _arguments(record),
        "Cost": _cost(record),
        "Paper and code": _paper(record),
        "Verification": _verification(name),
        "Speed": _speed(name),
        "What works": _capabilities(record),
        "The authors' weights": _weights(name),
        "Citation": _citation(name),
    }
    called, colon, _ = record.title.partition(": ")
    title = f"{name}: {called}" if colon else name
    parts = [f'---\ntitle: "{title}"\nsearch: {{boost: 3}}\n---\n\n# {name}\n']
    for title, body in sections.items():
        if body:
            unsearched = " { data-search-exclude }" if title == "Data flow" else ""
            parts.append(f"## {title}{unsearched}\n\n{body}" if title else body)
    return "\n".join(parts)


def prose(text: str) -> str:
    """A docstring's text as HTML: `code` in backticks, all else as it stands."""
    pieces = html.escape(" ".join(text.split()), quote=False).split("`")
    return "".join(f"<code>{p}</code>" if i % 2 else p for i, p in enumerate(pieces))


def sentence(record: Description) -> str:
    """The block's title without the name before the colon, as a sentence."""
    _, _, text = record.title.rpartition(": ")
    text = text or record.title
    return text[0].upper() + text[1:] + "."


def when(record: Description) -> str:
    """What the block is for, as a sentence; empty if the docstring does not say."""
    if not record.when:
        return ""
    text = " ".join(record.when.split())
    return f"Use it {text}" if text.startswith("as ") else f"Use it when {text}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = ["".join(f"<th>{cell}</th>" for cell in head)]
    cells += ["".join(f"<td>{cell}</td>" for cell in row) for row in rows]
    body = "".join(f"<tr>{row}</tr>\n" for row in cells)
    return f'<div class="scroll"><table>\n{body}</table></div>\n'


def _head(record: Description) -> str:
    layouts = ", or ".join(LAYOUTS[layout] for layout in record.layouts)
    shapes = facts.example_shapes(record.name)
    inputs = "\n".join(f"# {key}: {shape}" for key, shape in shapes.items())
    call = f"import attnzoo\n\nblock = {facts.example_line(record.name)}\n{inputs}"
    return (
        f"<p class=lead>{prose(record.title)}.</p>\n\n<p>{prose(when(record))}</p>\n\n"
        f"It takes {layouts}. Family: {record.family}.\n\n```python\n{call}\n```\n"
    )


def _picture(name: str) -> str:
    if name in attnzoo.names(family="upsampler"):
        what = (
            "What it makes of features of 16 × 16 patches of a photograph, before training: "
            "[all upsamplers](../upsamplers.md)."
        )
    else:
        what = (
            f"What `attnzoo.plot_attention` draws for {name} with its initial weights, on features "
            "of a photograph or on a series. Training changes the weights, not the mechanism."
        )
    return f"![What {name} gives weight to](../pictures/{name}.jpg)\n\n{what}\n"


def _equation(record: Description) -> str:
    names = [*record.defaults, "c"]
    shapes = prose(record.shapes)
    return (
        f'<div class="equation">\n{equation.render(record.math, names)}</div>\n\n'
        f"<p>Shapes: {shapes}</p>\n"
    )


def _flow(record: Description) -> str:
    return (
        f'<div class="scroll">{dataflow.svg(record.name)}</div>\n\n'
        "Drawn from a traced call of the example. Layers are shaded, other boxes are functions; "
        "each box shows the shape of its result. Changes of shape alone are left out.\n"
    )


def _arguments(record: Description) -> str:
    cls = find(record.name).cls
    meanings = facts.argument_meanings(cls)
    rows = []
    for key, parameter in find(record.name).signature.parameters.items():
        required = parameter.default is inspect.Parameter.empty
        default = "required" if required else f"<code>{html.escape(repr(parameter.default))}</code>"
        legal = prose(record.ranges.get(key, ""))
        rows.append((f"<code>{key}</code>", default, legal, prose(meanings.get(key, ""))))
    table = _table(("argument", "default", "legal values", "meaning"), rows)
    return f"```python\n{record.signature}\n```\n\n{table}"


def _cost(record: Description) -> str:
    names = [*record.defaults, "c"]
    common = facts.common(record.name)
    where = "the common size of its layout" if common.standard else "the size of its example"
    formulas = equation.render(record.cost, names)
    macs = "no formula" if common.cost.macs is None else f"{common.cost.macs:,}"
    return (
        f'<div class="equation">\n{formulas}</div>\n\n'
        f"At {where}, {common.shapes}: {common.cost.params:,} parameters, {macs} multiply-adds for "
        f"each sample. [What is counted](../counting.md).\n"
    )


def _paper(record: Description) -> str:
    differs = prose(record.differs)
    return (
        f"<p><b>Paper.</b> {prose(record.paper)}</p>\n<p><b>Code.</b> {prose(record.code)}</p>\n"
        f"<p><b>Where paper and code differ</b>, and what this block does: {differs}</p>\n"
    )


def _verification(name: str) -> str:
    verdicts = reference.verify(name)
    if not verdicts:
        return "This name has no reference vectors; its derivatives are checked numerically.\n"
    worst = max(verdict.error for verdict in verdicts)
    rows = [
        (v.case, str(v.tensors), f"{v.error:.1e}", f"<code>{v.worst}</code>", prose(v.source))
        for v in verdicts
    ]
    head = ("case", "tensors", "largest relative error", "in", "source")
    cases = "1 case" if len(verdicts) == 1 else f"{len(verdicts)} cases"
    return (
        f"{cases}, computed once in float64 and "
        f"run again when this page was built. The largest relative error is **{worst:.1e}**; the "
        f"limit is {reference.TOLERANCE:.0e}. `attnzoo verify {name}` repeats it.\n\n"
        f"{_table(head, rows)}"
    )


def _speed(name: str) -> str:
    if name not in facts.measured():
        return "Not measured yet. `attnzoo bench " + name + "` measures it on your machine.\n"
    row, folder = facts.measured()[name]
    shapes = row["shape"]
    shown = ", ".join(f"{key} {_shape(shape)}" for key, shape in shapes.items())
    cells = (
        f"{row['latency_forward_ms']:.3g} ms",
        f"{row['latency_training_ms']:.3g} ms",
        f"{facts.short(row['memory_saved_bytes'])}B",
        shown,
    )
    head = ("forward", "forward and backward", "saved for backward", "input")
    machine = (
        f"{row['device_name']}, {row['threads']} "
        f"{'thread' if row['threads'] == 1 else 'threads'}, {row['dtype']}, {row['mode']}, "
        f"torch {row['torch']}"
    )
    busy = " Other programs were running on it, so this is an order of magnitude." * (
        (row.get("load") or 0) > 1.5
    )
    return (
        f"{_table(head, [cells])}\nMachine: {machine}.{busy} [All rows](../results/{folder}.md).\n"
    )


def _shape(shape: object) -> str:
    if isinstance(shape, list) and shape and isinstance(shape[0], list):
        return ", ".join(_shape(one) for one in shape)
    return "×".join(map(str, shape)) if isinstance(shape, list) else str(shape)


def _capabilities(record: Description) -> str:
    rows = []
    for group, members in capabilities.GROUPS.items():
        for key, meaning in members.items():
            cell = record.supported.get(key, "")
            rows.append((group, key, prose(cell), prose(meaning)))
    passed = sum(row[2] == "yes" for row in rows)
    table = _table(("", "capability", "result", "what yes means"), rows)
    return (
        f"{passed} of {len(rows)} capabilities are a plain yes, as the test run recorded.\n\n"
        f"<details><summary>All {len(rows)} results</summary>\n{table}</details>\n"
    )


def _weights(name: str) -> str:
    entry = find(name)
    config = "".join(f", {key}={value!r}" for key, value in entry.example.items())
    parts = [
        "```python\nimport torch\nimport attnzoo\n\n"
        'weights = torch.load("checkpoint.pth", weights_only=True)\n'
        f'block = attnzoo.from_upstream("{name}", weights{config})\n```\n'
    ]
    renamed = [
        (f"<code>{html.escape(theirs)}</code>", f"<code>{ours}</code>" if ours else "not used")
        for naming in entry.upstream
        for theirs, ours in naming.items()
    ]
    if renamed:
        parts.append("The authors' names of layers are translated:\n")
        parts.append(_table(("theirs", "here"), dict.fromkeys(renamed)))
    if entry.known_variants:
        parts.append("These look alike, compute something else, and are refused by name:\n")
        rows = [(prose(v.whose), prose(v.computes)) for v in entry.known_variants]
        parts.append(_table(("whose", "difference"), rows))
    return "\n".join(parts)


def _citation(name: str) -> str:
    entry = facts.bibtex(name)
    if not entry:
        return "This block has no paper of its own.\n"
    return f"```bibtex\n{entry}\n```\n\nSurnames and venue are those of the docstring.\n"
