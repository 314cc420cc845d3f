"""What `mkdocs build` calls: adds the generated pages to those that are written by hand."""

import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from catalogue import generate


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages and pictures."""
    for path, content in generate.pages().items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links through the repository into links of the site."""
    return generate.linked(markdown, page.file.src_uri, {file.src_uri for file in files})
