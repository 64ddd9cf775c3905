"""The output of commands: events on stderr and the result on stdout, as text or, with ``--json``, as JSON."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from hkm_dask.cli.options import Place
    from hkm_dask.compute.runner import Runner
    from hkm_dask.data.objects import Location

_AS_JSON = "hkm_dask.as_json"


@dataclass(frozen=True)
class Output:
    """The output of one command."""

    as_json: bool
    started: float = field(default_factory=time.time)

    @contextmanager
    def progress(self) -> Iterator[None]:
        """Show events from inside the context: as lines of JSON, or as a progress display."""
        from hkm_dask.view.progress import show_progress

        name = f"hkm {click.get_current_context().info_name}"
        with show_progress(as_json=self.as_json, name=name, started=self.started):
            yield

    @contextmanager
    def run(self, place: Place) -> Iterator[Runner]:
        """Start or find the workers, and show their events."""
        with self.progress(), place.connect(quiet=self.as_json) as runner:
            yield runner

    def note(self, message: str) -> None:
        """Print a message on stderr."""
        from hkm_dask.events import emit

        if not self.as_json:
            click.echo(message, err=True)
            return
        with self.progress():
            emit("note", message=message)

    def answer(self, facts: Mapping[str, Any], text: str) -> None:
        """Print the result: a JSON object, or text."""
        import json

        click.echo(json.dumps(facts, allow_nan=False, indent=2) if self.as_json else text)

    def describe(self, store: Location) -> None:
        """Print the description of a store."""
        from hkm_dask.view import info

        facts = info.describe(store)
        self.answer(facts, info.render(facts))


def output_option(command: Callable[..., None]) -> Callable[..., None]:
    """Add ``--json`` to a command, which gets an `Output` as ``output``."""

    @click.option("--json", "as_json", is_flag=True, help="Print events to stderr and the result to stdout as JSON.")
    @functools.wraps(command)
    def with_output(*args: Any, as_json: bool, **options: Any) -> None:
        click.get_current_context().meta[_AS_JSON] = as_json
        command(*args, output=Output(as_json), **options)

    return with_output


def tell_error(ctx: click.Context, message: str) -> None:
    """Print on stderr why a command failed: a line of text, or an event."""
    if not ctx.meta.get(_AS_JSON):
        click.echo(f"Error: {message}", err=True)
        return
    import json

    click.echo(json.dumps({"event": "error", "time": time.time(), "message": message}), err=True)
