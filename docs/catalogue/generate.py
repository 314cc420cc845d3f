"""All generated files of the site, by their path in it."""

import re
from pathlib import Path

import attnzoo

from . import dataflow, facts, gallery, page, pictures

API = """\
---
search: {boost: 0.3}
---

# API

Everything that `import attnzoo` offers by name. The classes of the blocks, `attnzoo.CBAM` and the
like, are described on the pages of the [gallery](gallery.md).

"""


def pages() -> dict[str, str | bytes]:
    """By path: the gallery, a page for every name, pictures, the API and the measured tables."""
    drawn = {name: pictures.picture(name) for name in attnzoo.names()}
    shown = {name: image for name, image in drawn.items() if image is not None}

    def in_card(name: str) -> str:
        if name not in shown:
            return dataflow.svg(name)
        return f'<img src="pictures/{name}.jpg" alt="" width="320" height="215" loading="lazy">'

    made: dict[str, str | bytes] = {"gallery.md": gallery.page(in_card), "api.md": api()}
    made |= {f"blocks/{name}.md": page.page(name, name in shown) for name in drawn}
    made |= {f"pictures/{name}.jpg": image for name, image in shown.items()}
    return made | results()


def api() -> str:
    """The page from which mkdocstrings makes the description of the public functions."""
    homes = [n for n in attnzoo.__all__ if n != "Extent"]
    return API + "\n".join(f"::: attnzoo.{name}\n" for name in homes)


def results() -> dict[str, str | bytes]:
    """The tables under benchmarks/results, one page for each folder and file."""
    made: dict[str, str | bytes] = {}
    for file in sorted(facts.RESULTS.glob("*/*.md")):
        folder = file.parent.name
        path = (
            f"results/{folder}.md" if file.stem == "bench" else f"results/{folder}-{file.stem}.md"
        )
        titles = {"bench": "Speed", "learn": "Learning", "custom_gradients": "Custom gradients"}
        title = titles.get(file.stem, file.stem)
        made[path] = f"# {title}: {folder}\n\n{file.read_text(encoding='utf-8')}"
    return made


def link(target: str, page_path: str) -> str:
    """A link of a document, which leads through the repository, as a link of the site.

    Returns an empty string for files that the site does not have.
    """
    path, _, anchor = target.partition("#")
    up = "../" * page_path.count("/")
    anchor = f"#{anchor}" if anchor else ""
    found = re.search(r"benchmarks/results(?:/(\w+))?(?:/(\w+)\.md)?$", path)
    if found:
        folder, file = found[1] or "cpu", found[2] or "bench"
        name = folder if file == "bench" else f"{folder}-{file}"
        return f"{up}results/{name}.md{anchor}"
    if path.endswith("README.md") and path.count("/") <= 1:
        return f"{up}index.md{anchor}"
    if path.startswith("docs/"):
        return f"{up}{path.removeprefix('docs/')}{anchor}"
    return ""


def linked(markdown: str, page_path: str, known: set[str]) -> str:
    """The Markdown with links of the repository replaced; those that lead nowhere become text.

    Comments `<!-- on the site: ... -->` are shown: they hold links to generated pages.
    """

    def replaced(match: re.Match[str]) -> str:
        text, target = match[1], match[2]
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        here = Path(page_path).parent
        path = target.partition("#")[0]
        inside = _normal(here / path)
        if inside in known:
            return match[0]
        new = link(target, page_path)
        return f"[{text}]({new})" if new else text

    markdown = re.sub(r"<!-- on the site: (.*?) -->", r"\1", markdown)
    return re.sub(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)", replaced, markdown)


def _normal(path: Path) -> str:
    parts: list[str] = []
    for part in path.parts:
        if part == ".." and parts and parts[-1] != "..":
            parts.pop()
        elif part != ".":
            parts.append(part)
    return "/".join(parts)
