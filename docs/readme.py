"""The README as the package index shows it: read by hatchling when it builds the package.

Links through the repository lead nowhere on the index. If pyproject.toml states
`[project.urls] Source = "https://..."`, they become links into that repository; without it, they
become plain text and the picture is left out.
"""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)]+)\)")


def absolute(text: str, source: str | None) -> str:
    """The Markdown with links of the repository made absolute, or turned into text."""

    def replaced(match: re.Match[str]) -> str:
        picture, title, path = match.groups()
        if source is None:
            return "" if picture else title
        return (
            f"{picture}[{title}]({source.rstrip('/')}/{'raw' if picture else 'blob'}/main/{path})"
        )

    return re.sub(r"\n{3,}", "\n\n", _LINK.sub(replaced, text))


class CustomMetadataHook(MetadataHookInterface):
    """Sets the package's description."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Called by hatchling with the table `project`."""
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        source = metadata.get("urls", {}).get("Source")
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": absolute(text, source),
        }
