"""A whole run of `attnzoo bench`: its plan, its folder, its progress and what it prints."""

import argparse
import contextlib
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track

from .. import registry
from . import distributed, record, report, results, run, sweep
from .distributed import Group
from .results import Result
from .row import Failure
from .sweep import Point

FIXED = {"c": "c", "size": "size", "batch": "batch", "steps": "T"}  # options a sweep stands in for


def bench(options: argparse.Namespace) -> int:
    """Measure, keep and print rows; returns the exit status."""
    if options.resume and options.out is None:
        raise ValueError("--resume goes on with the run in --out DIR; there is no --out")
    with distributed.joined() as group, contextlib.ExitStack() as kept:
        folder = group.share(lambda: _folder(options.out, kept))
        return _bench(options, group, folder)


def _bench(options: argparse.Namespace, group: Group, folder: Path) -> int:
    plan = _plan(options, group)
    keys = [results.key(task) for task, _ in plan]
    rows = record.Record(keys, folder, group.rank)
    done = group.share(lambda: rows.begin(plan[0][0].known(), options.resume))
    tasks = {key: task for key, (task, _) in zip(keys, plan, strict=True) if key not in done}
    console = Console(stderr=True)
    mine = track(
        list(tasks.values())[group.rank :: group.size],
        "measuring",
        console=console,
        transient=True,
        disable=group.rank > 0 or not console.is_terminal,
    )
    stopped = ""
    try:
        for task in mine:
            rows.add(run.perform(task))
        group.wait()
    except KeyboardInterrupt:
        stopped = "interrupted"
    except RuntimeError as error:
        stopped = f"a rank has ended early ({error})"
    if group.rank:
        return 1 if stopped else 0
    found = rows.end()
    _print(options, found, list(zip(keys, (point for _, point in plan), strict=True)))
    if stopped:
        there = f"; --resume goes on: {folder}" if options.out else ""
        print(f"attnzoo: {stopped} with {len(rows.own)} rows measured{there}", file=sys.stderr)
        return 130 if stopped == "interrupted" else 1
    return 1 if any(isinstance(row, Failure) for row in found) else 0


def _plan(options: argparse.Namespace, group: Group) -> list[tuple[run.Task, Point]]:
    """Every row that is asked for, in order, with the values its sweeps have there."""
    entries = [registry.find(name) for name in options.names or registry.names()]
    sweeps = [sweep.parse(text) for text in options.sweep]
    sweep.known(sweeps, entries)
    for option, key in FIXED.items():
        if getattr(options, option) is not None and key in (each.key for each in sweeps):
            raise ValueError(f"--{option} and --sweep {key}: give one of the two")
    asked = [
        run.Settings(
            device=group.device(options.device),
            dtype=dtype,
            mode=mode,
            autocast=options.autocast,
            channels_last=options.channels_last,
            threads=options.threads,
            cold=options.cold,
            batch=options.batch,
            size=options.size,
            steps=options.steps,
            min_time=options.time,
        )
        for dtype in options.dtype
        for mode in options.mode
    ]
    fixed = {} if options.c is None else {"c": options.c}
    return [
        (sweep.applied(entry, settings, {**fixed, **point}), point)
        for entry in entries
        for point in sweep.points(sweeps)
        for settings in asked
    ]


def _folder(asked: Path | None, kept: contextlib.ExitStack) -> Path:
    """The folder of the run, kept to it; a temporary one where none is asked for."""
    if asked is None:
        return Path(kept.enter_context(tempfile.TemporaryDirectory(prefix="attnzoo-")))
    if asked.exists() and not asked.is_dir():
        raise ValueError(f"--out {asked} must be a folder; there is a file of that name")
    asked.mkdir(parents=True, exist_ok=True)
    kept.enter_context(results.locked(asked))
    return asked


def _print(
    options: argparse.Namespace, rows: Sequence[Result], points: Sequence[tuple[str, Point]]
) -> None:
    """The table, growth exponents, the files and what failed."""
    output = Console()
    table = report.terminal(rows)
    output.print(table) if output.is_terminal else Console(width=200).print(table)
    found = {results.key(row): row for row in rows}
    grown = sweep.growth((found[key], point) for key, point in points if key in found)
    for line in sweep.told(grown):
        print(line)
    if options.out is not None:
        written = report.write(rows, options.out, shlex.join(["attnzoo", *sys.argv[1:]]))
        for path in (options.out / results.NAME, *written):
            print(f"wrote {path}")
    for failure in (row for row in rows if isinstance(row, Failure)):
        print(f"attnzoo: {failure.block} has no row: {failure.error}", file=sys.stderr)
