"""The `dami` command. Its subcommands come from the installed distributions.

Commands register through the entry-point group `dami.commands`. A command is imported only when it is called, so that
`dami --help` stays fast. A command of a distribution that is not installed says what to install.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NoReturn, TypeVar

import click

from dami_router.errors import DamiError, MisuseError
from dami_router.output import Output
from dami_router.shared.suggestions import did_you_mean
from dami_router.version import __version__

__all__ = ["COMMANDS", "Shell", "command", "main"]

COMMANDS: dict[str, tuple[str, str]] = {
    "check": ("dami-router", "Find mistakes in a recipe or a router.yml before anything is merged or served."),
    "explain": ("dami-merge", "Show λ for every layer and module of a recipe."),
    "build": ("dami-merge", "Build a family of variants in one pass; resumable."),
    "verify": ("dami-merge", "Verify that a built family is what its manifest says."),
    "push": ("dami-merge", "Publish a family on the Hugging Face Hub; resumable."),
    "pull": ("dami-merge", "Download a family from the Hub and verify every file."),
    "merge": ("dami-merge", "Run mergekit-yaml with the method `dami` registered."),
    "serve": ("dami-router", "Serve a family behind one address, each query at its own λ."),
    "route": ("dami-router", "Show the λ and the variant that a query would get, and why."),
    "ask": ("dami-router", "Answer one query with the variant for its λ."),
    "rollout": ("dami-router", "Run every query on every variant and grade the answers; resumable."),
    "rollout import": ("dami-router", "Make rollouts from the logs of other tools."),
    "train": ("dami-router", "Train an estimator of λ(q) on graded rollouts."),
    "calibrate": ("dami-router", "Fit confidence to a target mean λ or mean tokens, without labels; resumable."),
    "eval": ("dami-router", "Evaluate an estimator against every static λ and the oracle."),
    "deploy": ("dami-router", "Write the files that run a family: compose, Kubernetes, Ray or a laptop."),
    "sweep": ("dami-merge", "Find the λ worth having, from two checkpoints; resumable."),
    "live": ("dami-merge", "Serve any λ, per request, from two checkpoints in memory."),
    "lab": ("dami-merge", "Write the tiny Instruct/Thinking pair into a folder."),
    "demo": ("dami-merge", "Merge, answer, route and report on the tiny pair, end to end."),
}
"""Our own commands: name → the distribution that has it, and what it does in one line.

The entry point of a command with two words has a hyphen in place of the space.
"""

F = TypeVar("F", bound=Callable[..., Any])


def command(name: str, *, examples: Sequence[str], help: str) -> Callable[[F], click.Command]:
    """Declare a `dami` command: a click command with examples and --json.

    The decorated function gets an `Output` as its first argument and may return an exit code. `examples` are complete
    command lines, which --help and the generated reference show.
    """

    def wrap(function: F) -> click.Command:
        def run(as_json: bool, **arguments: Any) -> int | None:
            code: int | None = function(Output(as_json=as_json), **arguments)
            return code

        run.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
        option = click.option("--json", "as_json", is_flag=True, help="Write one JSON object to stdout.")
        epilog = "\b\nExamples:\n" + "\n".join(f"  {example}" for example in examples)
        settings = {"ignore_unknown_options": True} if name == "merge" else {}
        made = click.command(name, context_settings=settings, help=help, epilog=epilog, short_help=COMMANDS[name][1])(
            option(run)
        )
        made.examples = tuple(examples)  # type: ignore[attr-defined]
        return made

    return wrap


class Shell(click.Group):
    """The group behind `dami`: lists the known commands, and imports one when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return our commands in the order in which they are used, then those of other packages."""
        return [*COMMANDS, *sorted(set(_installed()) - set(COMMANDS))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import and return one command; None for an unknown name."""
        found = _installed().get(cmd_name)
        if found is not None:
            loaded: click.Command = found.load()
            return loaded
        if cmd_name in COMMANDS:
            return _missing(cmd_name)
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command to run; for an unknown name, the error suggests the nearest known one."""
        if len(args) > 1 and (pair := f"{args[0]} {args[1]}") in COMMANDS:
            args = [pair, *args[2:]]
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            near = did_you_mean(name, self.list_commands(ctx))
            advice = f"did you mean `{ctx.info_name} {near}`?" if near else f"see `{ctx.info_name} --help`"
            raise MisuseError(f"{ctx.info_name}: no command `{name}`", hint=advice)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table, without importing any of them."""
        installed = _installed()
        rows = []
        for name in self.list_commands(ctx):
            distribution, text = COMMANDS.get(name, ("", f"(from {_origin(installed.get(name))})"))
            missing = name in COMMANDS and name not in installed
            rows.append((name, f"{text} [pip install {distribution}]" if missing else text))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _installed() -> dict[str, EntryPoint]:
    found = {point.name: point for point in entry_points(group="dami.commands")}
    return {next((c for c in COMMANDS if c.replace(" ", "-") == name), name): point for name, point in found.items()}


def _origin(point: EntryPoint | None) -> str:
    return point.dist.name if point is not None and point.dist is not None else "unknown"


def _missing(name: str) -> click.Command:
    distribution, text = COMMANDS[name]

    @click.command(name, help=text, context_settings={"ignore_unknown_options": True})
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def missing(arguments: tuple[str, ...]) -> NoReturn:  # noqa: ARG001
        raise MisuseError(
            f"`dami {name}` is part of {distribution}, which is not installed",
            hint=f"pip install {distribution}",
        )

    return missing


@click.group(
    cls=Shell,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Control how hard a language model thinks: merge, describe and route between an "
    "Instruct (λ=0) and a Thinking (λ=1) checkpoint.",
)
@click.version_option(__version__)
def dami() -> None:
    """Hold the commands."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 for success, 1 for a failure, 2 for a usage error.

    An error is one message without a traceback, unless DAMI_DEBUG=1. DAMI_PROGRAM is the name that help and errors
    show, for a command that runs this one.
    """
    atexit.register(gc.freeze)  # a last garbage collection takes half a second with torch loaded
    try:
        given = list(arguments) if arguments is not None else None
        program = os.environ.get("DAMI_PROGRAM") or "dami"
        code = dami.main(args=given, prog_name=program, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        Output().note("stopped")
        sys.exit(130)
    except BrokenPipeError:
        _silence_stdout()
        sys.exit(1)
    except DamiError as error:
        if os.environ.get("DAMI_DEBUG") == "1":
            raise
        Output().note(f"error: {error}")
        sys.exit(error.exit_code)
    except Exception as error:
        if os.environ.get("DAMI_DEBUG") == "1":
            raise
        Output().note(
            f"error: {type(error).__name__}: {error}\n  hint: this is a bug in dami; DAMI_DEBUG=1 shows the traceback"
        )
        sys.exit(1)
    sys.exit(code or 0)


def _silence_stdout() -> None:
    # The reader of our pipe is gone. Without this, Python fails again when it flushes at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
