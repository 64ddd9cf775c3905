"""How commands are registered and listed, and how failures become one clear line."""

from __future__ import annotations

import shlex
import signal
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import click

from hkm_dask.cli.interrupts import signals_unwind
from hkm_dask.cli.options import Names, PerLevel
from hkm_dask.cli.output import tell_error
from hkm_dask.cli.wording import in_options

_ARGUMENTS = "hkm_dask.arguments"
_DEBUG = "hkm_dask.debug"


class Command(click.Command):
    """A command that refuses a repeated option with several values; click would silently use the last one."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See `click.Command.parse_args`."""
        _, _, given = self.make_parser(ctx).parse_args(args=list(args))
        for option in dict.fromkeys(given):
            has_several = isinstance(option.type, Names | PerLevel) and not option.multiple
            if has_several and (n := given.count(option)) > 1:
                fact = f"{option.opts[-1]} is given {n} times but should be given once"
                raise click.UsageError(f"{fact}; separate its values by commas.", ctx)
        try:
            return super().parse_args(ctx, args)
        except click.MissingParameter as error:
            # The first value goes to the last argument, so click reports the repeatable one as missing.
            *_, last = (param for param in self.params if isinstance(param, click.Argument))
            if error.param is None or error.param.nargs != -1:
                raise
            before = error.param.make_metavar(ctx).removesuffix("...")
            fact = f"Missing argument '{last.make_metavar(ctx)}'"
            raise click.UsageError(f"{fact}; the output comes last, after each {before}.", ctx) from None


class OrderedGroup(click.Group):
    """A group that lists its commands in the order of registration, which is that of a typical workflow."""

    command_class = Command

    def list_commands(self, ctx: click.Context) -> list[str]:
        """See `click.Group.list_commands`."""
        return list(self.commands)


class Commands(OrderedGroup):
    """A group that turns any failure of a command into one clear line."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Store the arguments, to print how to resume."""
        ctx.meta[_ARGUMENTS] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; turn exceptions into lines and an exit code."""
        from hkm_dask.errors import HkmError, disk_full

        try:
            with signals_unwind():
                return super().invoke(ctx)
        except KeyboardInterrupt as interruption:
            _tell_how_to_go_on(ctx)
            ctx.exit(128 + getattr(interruption, "number", signal.SIGINT))
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except HkmError as error:
            _fail(ctx, str(error).splitlines())
        except MemoryError:
            _fail(ctx, ["out of memory; lower --memory-limit, or use fewer --workers"])
        except Exception as error:
            if disk_full(error):
                _fail(ctx, ["the disk is full; free space and run the same command again"])
            if isinstance(error, OSError):
                _fail(ctx, [f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)])
            _fail(ctx, [f"{type(error).__name__}: {error} (a bug in hkm_dask; --debug shows the traceback)"])


def _command(ctx: click.Context) -> click.Command:
    """Return the requested command, through any number of groups."""
    command = ctx.command
    for word in ctx.meta[_ARGUMENTS]:
        if isinstance(command, click.Group):
            command = command.commands.get(word, command)
    return command


def _fail(ctx: click.Context, lines: Sequence[str]) -> NoReturn:
    from hkm_dask.errors import printable

    if ctx.meta.get(_DEBUG):
        click.echo(traceback.format_exc(), err=True, nl=False)
    for line in lines or ["the command failed without a message; --debug shows the traceback"]:
        tell_error(ctx, printable(in_options(line, _command(ctx))))
    ctx.exit(1)


def _tell_how_to_go_on(ctx: click.Context) -> None:
    arguments = [word for word in ctx.meta[_ARGUMENTS] if word != "--restart"]
    resumes = ctx.invoked_subcommand in ("assign", "cluster", "embed", "update")
    kept = "finished work is kept; to resume" if resumes else "no partial output is left; to start again"
    click.echo(f"\nInterrupted: {kept}, run\n  {ctx.info_name} {shlex.join(arguments)}", err=True)


def _set_debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta[_DEBUG] = True


def debug_option() -> click.Option:
    """Make the option ``--debug`` of every command."""
    help_text = "Show the traceback of an error."
    return click.Option(["--debug"], is_flag=True, expose_value=False, callback=_set_debug, help=help_text)


def command_of(group: click.Group, *examples: str) -> Callable[[Callable[..., None]], click.Command]:
    """Register a function as a command of its name in a group, with ``--debug`` as its last option, and examples."""
    epilog = "\b\nExample:\n" + "\n".join(f"  {example}" for example in examples)

    def register(function: Callable[..., None]) -> click.Command:
        command = group.command(epilog=epilog)(function)
        command.params.append(debug_option())
        return command

    return register
