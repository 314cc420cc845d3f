"""The rows of one run, in its order, kept in a folder as they come."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import results
from .results import Result
from .row import Row


class Record:
    """One run's rows. Every rank writes after each of its rows, and rank 0 merges.

    Args:
        order: keys of all tasks of the run, as a single process would run them.
        folder: where the files are; every rank sees it.
        rank: this process.
    """

    def __init__(self, order: Sequence[str], folder: Path, rank: int = 0) -> None:
        self.order = order
        self.folder = folder
        self.rank = rank
        self.earlier: list[Result] = []
        self.own: list[Result] = []

    def begin(self, wanted: Mapping[str, Any], resume: bool) -> set[str]:
        """Ready the folder, on rank 0; returns the keys of the rows that are measured already.

        Args:
            wanted: machine and versions of this run, as the fields of a row.
            resume: keep the folder's rows; else they are set aside.

        Raises ValueError where `resume` finds another machine's or version's rows.
        """
        if resume:
            self.earlier = results.resumed(self.folder, wanted)
        else:
            results.set_aside(self.folder)
        self._merge(results.arranged(self.order, self.earlier))
        return {results.key(row) for row in self.earlier if isinstance(row, Row)}

    def add(self, row: Result) -> None:
        """Keep a row, on disk when this returns."""
        self.own.append(row)
        results.save(results.of_rank(self.folder, self.rank), self.rows())

    def rows(self) -> list[Result]:
        """This rank's rows; on rank 0 all that any rank has written, in the run's order."""
        if self.rank:
            return self.own
        others = [row for file in results.of_ranks(self.folder) for row in results.load(file)]
        return results.arranged(self.order, [*self.earlier, *others, *self.own])

    def end(self) -> list[Result]:
        """Merge what all ranks wrote into `bench.json`, once they are done; returns the rows."""
        rows = self.rows()
        self._merge(rows)
        return rows

    def _merge(self, rows: Sequence[Result]) -> None:
        results.save(self.folder / results.NAME, rows)
        for file in results.of_ranks(self.folder):
            file.unlink()
