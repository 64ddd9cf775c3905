"""Adds to the site what lies elsewhere in the project, or is made of its code, and turns links to it round.

The README, the changelog, CONTRIBUTING and the pages of pipelines become pages; the references are made of
the package's own names and of the commands' own help.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import hkm_dask
from hkm_dask.cli import main

ROOT = Path(__file__).resolve().parents[1]
_ELSEWHERE = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", *sorted(ROOT.glob("pipelines/*/README.md")))
#: Where a page of the site lies in the project, where that is not in docs/.
SOURCES = {Path(ROOT, path).relative_to(ROOT).as_posix() for path in _ELSEWHERE}
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#]*)(#[^)]*)?\)")
_FENCE = re.compile(r"^( *```.*?^ *```)", flags=re.MULTILINE | re.DOTALL)
_WIDTH = 88


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that do not lie in docs/, and the pictures beside them."""
    for source in sorted(SOURCES):
        files.append(File.generated(config, source, content=(ROOT / source).read_text(encoding="utf-8")))
    files.append(File.generated(config, "reference/python.md", content=_python_reference()))
    files.append(File.generated(config, "reference/commands.md", content=_command_reference()))
    files.append(File.generated(config, "site.css", content=Path(__file__).with_name("site.css").read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Have links lead to pages of the site; what is no page of it is named without a link."""
    uri = page.file.src_uri
    folder = posixpath.dirname(uri if uri in SOURCES else posixpath.join("docs", uri))

    def turned(match: re.Match[str]) -> str:
        picture, text, target, anchor = match[1], match[2], match[3], match[4] or ""
        if "://" in target or not target:
            return match[0]
        there = _uri(posixpath.normpath(posixpath.join(folder, target)))
        if files.get_file_from_path(there) is None:
            return text
        relative = posixpath.relpath(there, posixpath.dirname(uri) or ".")
        return f"{picture}[{text}]({relative}{anchor})"

    pieces = _FENCE.split(markdown)  # code is left as it is
    return "".join(piece if i % 2 else _LINK.sub(turned, piece) for i, piece in enumerate(pieces))


def _uri(path: str) -> str:
    """Where a file or a folder of the project is in the site."""
    if path not in SOURCES and f"{path}/README.md" in SOURCES:
        return f"{path}/README.md"
    parts = PurePosixPath(path).parts
    return posixpath.join(*parts[1:]) if parts[0] == "docs" and len(parts) > 1 else path


def _python_reference() -> str:
    names = [name for name in hkm_dask.__all__ if not name.startswith("__")]
    functions = [name for name in names if name[0].islower()]
    errors = [name for name in names if name.endswith("Error")]
    classes = [name for name in names if name not in functions and name not in errors]
    blocks = [f"::: hkm_dask.{name}" for name in (*functions, *classes, *errors)]
    blocks.append("::: hkm_dask.hierarchy.tree.accessor.HkmAccessor")
    return "# Python\n\n`import hkm_dask as hkm`; a tree has the accessor `hkm`.\n\n" + "\n\n".join(blocks) + "\n"


def _command_reference() -> str:
    return "# Commands\n\n" + "\n\n".join(
        f"## {words}\n\n```text\n{text}\n```" for words, text in _helps(main, click.Context(main, info_name="hkm"))
    )


def _helps(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    """Give the name and the help of a command and of those below it."""
    context.terminal_width = _WIDTH
    yield context.command_path, command.get_help(context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.commands[name]
            yield from _helps(below, click.Context(below, parent=context, info_name=name, **below.context_settings))
