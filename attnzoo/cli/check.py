"""The command `attnzoo check`."""

import argparse
import json
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from pathlib import Path

from ..testing.api import chosen
from ..testing.outcome import Outcome
from ..testing.targets import Spec
from ..testing.worker import Runner, as_json
from .common import columns

EPILOG = """\
examples:
  attnzoo check my_block.py                       the blocks and modules that a file defines
  attnzoo check cbam --c 256                      a registered block
  attnzoo check my.package:MyAttention --config '{"c": 64}' --example 2x64x14x14
  attnzoo check my_block.py --fast --junit report.xml

The exit status is 0 if no check says no, 1 if one does, 2 if the target cannot be checked.
"""


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the command line."""
    command = commands.add_parser(
        "check",
        help="hold a module of yours, or a block, to the contract",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("target", help="a block's NAME, FILE.py, FILE.py:CLASS or PACKAGE:CLASS")
    command.add_argument("--c", type=int, help="channels, the argument c of the constructor")
    command.add_argument("--config", default="{}", help="arguments of the constructor, as JSON")
    command.add_argument("--example", help="shapes of the inputs: 2x64x14x14, several with commas")
    command.add_argument("--fast", action="store_true", help="leave out export, ONNX and inductor")
    command.add_argument("--only", help="names of the checks to run, with commas")
    command.add_argument("--skip", default="", help="names of checks to leave out, with commas")
    command.add_argument("--timeout", type=float, default=60.0, help="seconds for a check (60)")
    command.add_argument("--json", action="store_true", help="print JSON in place of the table")
    command.add_argument("--junit", type=Path, metavar="FILE", help="write a JUnit report, too")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Check every subject of the target; returns the exit status."""
    config = as_json(options.config) | ({} if options.c is None else {"c": options.c})
    if options.timeout <= 0:
        raise ValueError(f"--timeout {options.timeout:g} must be a positive number of seconds")
    only = None if options.only is None else _split(options.only)
    names = [one.name for one in chosen(only, _split(options.skip), options.fast)]
    spec = Spec(target=options.target, config=config, example=options.example)
    runner = Runner(spec, names, options.timeout)
    found: dict[str, list[Outcome]] = {}
    try:
        for index, subject in enumerate(runner.subjects()):
            found[subject] = list[Outcome]()
            progress = _progress(subject, len(names))
            found[subject].extend(runner.run(index, progress))
            progress("")
            if not options.json:
                _print(subject, found[subject])
    finally:
        runner.close()
    if options.json:
        print(json.dumps({s: [o.to_json() for o in each] for s, each in found.items()}, indent=1))
    if options.junit is not None:
        options.junit.write_bytes(junit(found))
    return int(any(o.verdict == "no" for each in found.values() for o in each))


def _split(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _progress(subject: str, count: int) -> Callable[[str], None]:
    """A line on a terminal that says which check is running; nothing elsewhere."""
    done = 0

    def show(name: str) -> None:
        nonlocal done
        done += 1
        if not sys.stderr.isatty():
            return
        filled = 20 * min(done, count) // max(1, count)
        bar = f"{subject} [{'#' * filled}{'.' * (20 - filled)}] {done} of {count}, {name}"
        print(f"\r\033[K{bar if name else ''}", end="", file=sys.stderr, flush=True)

    return show


def _print(subject: str, outcomes: Sequence[Outcome]) -> None:
    rows = [(o.check, o.verdict, f"{o.seconds:.1f} s", o.text) for o in outcomes]
    for line in columns([(subject, "", "time", ""), *rows]):
        print(line)
    wrong = [o for o in outcomes if o.verdict == "no"]
    for outcome in wrong:
        print(f"\n{outcome.check}: {outcome.text}\n    {outcome.remedy}")
    passed = sum(o.verdict == "yes" for o in outcomes)
    print(f"\n{subject}: {passed} yes, {len(wrong)} no, {len(outcomes) - passed - len(wrong)} n/a")


def junit(found: dict[str, list[Outcome]]) -> bytes:
    """A JUnit report: a test suite for each subject, a test case for each check."""
    root = ElementTree.Element("testsuites")
    for subject, outcomes in found.items():
        suite = ElementTree.SubElement(
            root,
            "testsuite",
            name=subject,
            tests=str(len(outcomes)),
            failures=str(sum(o.verdict == "no" for o in outcomes)),
            skipped=str(sum(o.verdict == "n/a" for o in outcomes)),
            time=f"{sum(o.seconds for o in outcomes):.3f}",
        )
        for o in outcomes:
            case = ElementTree.SubElement(
                suite, "testcase", classname=subject, name=o.check, time=f"{o.seconds:.3f}"
            )
            if o.verdict == "no":
                ElementTree.SubElement(case, "failure", message=o.text).text = o.remedy
            elif o.verdict == "n/a":
                ElementTree.SubElement(case, "skipped", message=o.text)
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))
