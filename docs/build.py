"""Everything in the documents that is generated, and the site.

    python docs/build.py             # update the tables in the documents, then build the site
    python docs/build.py --tables    # only the tables
    python docs/build.py --picture   # also draw the README's picture again

The site is written to build/site; `pip install -e ".[docs]"` installs what it needs.
"""

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "docs"), str(ROOT / "benchmarks")]

from catalogue import pictures, tables  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", action="store_true", help="do not build the site")
    parser.add_argument("--picture", action="store_true", help="draw docs/attention.jpg again")
    options = parser.parse_args()
    for path in tables.write():
        print(f"updated {path.relative_to(ROOT)}")
    if options.picture:
        (ROOT / "docs" / "attention.jpg").write_bytes(pictures.strip())
    if not options.tables:
        os.environ.setdefault("NO_MKDOCS_2_WARNING", "1")
        from mkdocs.commands.build import build
        from mkdocs.config import load_config

        config = load_config(str(ROOT / "mkdocs.yml"), strict=True)
        config.plugins.on_startup(command="build", dirty=False)
        build(config)


if __name__ == "__main__":
    main()
