"""What mkdocs builds: every document of the repository in its place, with the pictures and files that they link to."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("*.md", "docs/*.md", "data/**/*.md", "models/**/*.md", "benchmarks/*.md")


def documents() -> Iterator[Path]:
    """Yield the documents."""
    for pattern in DOCUMENTS:
        yield from sorted(ROOT.glob(pattern))


def linked(document: Path) -> Iterator[Path]:
    """Yield the files that a document links to, other documents left out."""
    for link in re.findall(r"\]\(([^)#\s]+)", document.read_text(encoding="utf-8")):
        target = (document.parent / link).resolve()
        if target.is_file() and target.suffix != ".md" and target.is_relative_to(ROOT):
            yield target


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace the files of docs/ by those of the whole repository; mkdocs calls it."""
    for file in list(files):
        if file.src_dir == config.docs_dir:
            files.remove(file)
    pages = list(documents())
    style = [ROOT / name for name in config.extra_css]
    for path in dict.fromkeys([*pages, *style, *(target for page in pages for target in linked(page))]):
        name = path.relative_to(ROOT).as_posix()
        files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    return files
