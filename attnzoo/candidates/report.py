"""What a survey found, as a table, JSON, CSV, Markdown or a picture."""

import contextlib
import csv
import dataclasses
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .budget import Inside, Limit
from .sampling import Ratio
from .training import Learning


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One block in the network. Ratios are to the plain network; counts are what was added."""

    block: str
    config: dict[str, Any]  # keywords beyond those that each place determines
    places: int
    parameters: int
    macs: int  # of one sample's forward pass
    inference: Ratio
    training: Ratio | None = None  # the time of forward and backward
    compiled_inference: Ratio | None = None
    compiled_training: Ratio | None = None
    saved: float | None = None  # bytes that autograd keeps until backward
    peak: float | None = None  # most bytes of a training step; CUDA only
    inside: Inside | None = None  # the budget
    learning: Learning | None = None

    def cells(self) -> dict[str, str]:
        """The columns of the table, by their titles; absent ones are left out."""
        cells = {
            "block": self.block,
            "parameters": f"{self.parameters:+,}",
            "MACs": f"{self.macs:+,}",
            "inference": str(self.inference),
            "training step": self.training,
            "compiled": self.compiled_inference,
            "compiled step": self.compiled_training,
            "saved": None if self.saved is None else f"{self.saved:.2f}",
            "peak": None if self.peak is None else f"{self.peak:.2f}",
            "budget": self.inside,
            **(self.learning.cells() if self.learning else {}),
        }
        return {title: str(cell) for title, cell in cells.items() if cell is not None}


@dataclass(frozen=True)
class Misfit:
    """A block that has no row, and why."""

    block: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What every block that fits would cost in a network; `str` formats it as a table.

    `rows` are sorted by the time of a training step, or of inference if there is none.
    """

    rows: tuple[Candidate, ...]
    misfits: tuple[Misfit, ...]
    pending: tuple[str, ...]  # not reached when the survey was interrupted
    paths: tuple[str, ...]  # the places, and the rule that proposed them, if any did
    rule: str | None
    other_rules: dict[str, tuple[str, ...]]  # what other rules of where="auto" propose
    how: str
    parameters: int  # of the plain network, like the rest
    macs: int
    inference_ms: float | None
    training_ms: float | None
    saved_bytes: int | None
    budget: tuple[Limit, ...] = ()
    setting: dict[str, Any] = field(default_factory=dict)  # device, threads, versions, inputs

    def __str__(self) -> str:
        return "\n".join(_lines(self))

    def to_json(self) -> str:
        """All of it; keys are the fields of `Survey`, `Candidate` and `Ratio`."""
        return json.dumps(_plain(self), indent=1) + "\n"

    def to_csv(self) -> str:
        """One line for each row, numbers unformatted; misfits have a reason and no numbers."""
        rows = [_flat(row) for row in self.rows]
        rows += [{"block": m.block, "reason": m.reason} for m in self.misfits]
        text = io.StringIO()
        titles = dict.fromkeys(key for row in rows for key in row)
        writer = csv.DictWriter(text, titles, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def to_markdown(self) -> str:
        """The table and, below it, what did not fit."""
        head, *rows = _table(self.rows)
        lines = [_bar(head), _bar("---" if not i else "---:" for i, _ in enumerate(head))]
        lines += [_bar(row) for row in rows]
        notes = [f"- {m.block}: {m.reason}" for m in self.misfits]
        text = [*_caption(self), "", *lines, *(["", "Not measured:", "", *notes] if notes else [])]
        return "\n".join(text) + "\n"

    def save(self, folder: str | Path) -> None:
        """Write survey.json, .csv and .md and, with matplotlib, survey.svg into a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for ending, text in {
            "json": self.to_json(),
            "csv": self.to_csv(),
            "md": self.to_markdown(),
        }.items():
            (folder / f"survey.{ending}").write_text(text, encoding="utf-8")
        with contextlib.suppress(ImportError, ValueError):  # no matplotlib, or no rows
            self.plot(folder / "survey.svg")

    def plot(self, path: str | Path) -> None:
        """Draw the time of a training step against the parameters added, every block labelled."""
        from .picture import draw

        draw(self, Path(path))


def _lines(survey: Survey) -> Iterator[str]:
    yield from _caption(survey)
    if survey.rows:
        yield ""
        yield from _aligned(_table(survey.rows))
    if survey.misfits:
        yield ""
        yield "not measured"
        yield from _aligned([(f"  {m.block}", m.reason) for m in survey.misfits], cut=100)
    if survey.pending:
        yield f"interrupted; not reached: {', '.join(survey.pending)}"


def _caption(survey: Survey) -> Iterator[str]:
    places = f"{len(survey.paths)} place{'s' * (len(survey.paths) != 1)}"
    found = f" ({survey.rule})" if survey.rule else ""
    shown = ", ".join(survey.paths[:4]) + ", ..." * (len(survey.paths) > 4)
    yield f"{survey.how} each of {places}{found}: {shown}"
    for rule, paths in survey.other_rules.items():
        yield f'  where="auto:{rule}" would take {len(paths)}: {paths[0]}, ...'
    times = [
        f"{text} {ms:.4g} ms"
        for text, ms in (("inference", survey.inference_ms), ("step", survey.training_ms))
        if ms is not None
    ]
    numbers = [f"{survey.parameters:,} parameters", f"{survey.macs:,} MACs a sample", *times]
    yield f"the plain network: {', '.join(numbers)}"
    setting = ", ".join(f"{key} {value}" for key, value in survey.setting.items())
    yield f"times and memory as ratios to it (interval of the rounds' ratios); {setting}"


def _table(rows: Sequence[Candidate]) -> list[tuple[str, ...]]:
    cells = [row.cells() for row in rows]
    order = list(dict.fromkeys(title for row in cells for title in row))
    return [tuple(order), *(tuple(row.get(title, "") for title in order) for row in cells)]


def _aligned(rows: Sequence[tuple[str, ...]], cut: int | None = None) -> list[str]:
    """Rows as lines: names to the left, numbers to the right, a last column of words cut."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        words = cut is not None
        cells = rest if words else [c.rjust(w) for c, w in zip(rest, widths[1:], strict=True)]
        line = "  ".join([first.ljust(widths[0]), *cells]).rstrip()
        lines.append(line if cut is None or len(line) <= cut else f"{line[: cut - 3]}...")
    return lines


def _bar(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _flat(row: Candidate) -> dict[str, Any]:
    """A row as numbers in columns: the parts of a ratio beside each other."""
    flat: dict[str, Any] = {}
    for key, value in _plain(row).items():
        if key == "config":
            flat[key] = json.dumps(value)
        elif isinstance(value, dict):
            flat |= {key if part == "value" else f"{key}_{part}": v for part, v in value.items()}
        else:
            flat[key] = value
    return flat


def _plain(value: Any) -> Any:
    """Records as dicts, for JSON."""
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {key: _plain(item) for key, item in value._asdict().items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
