"""The shell around the commands: errors as one line and an exit code, options, output, paths."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, Any, NoReturn

import click

from spa.errors import SpaError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from spa.progress import Progress


class Main(click.Group):
    """Turns every error into one message and its exit code; -v shows where it came from."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        try:
            return super().make_context(*args, **kwargs)
        except click.UsageError as error:
            _refuse(error)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            _refuse(error)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            if ctx.find_root().meta.get("verbose"):
                import traceback

                traceback.print_exc()
            click.echo(f"spa: {_message(error)}", err=True)
            if isinstance(error, OSError):
                _close_output()
            ctx.exit(error.exit_code if isinstance(error, SpaError) else 1)


def _refuse(error: click.UsageError) -> NoReturn:
    """Click's own message on one line; the help text where nothing at all was given."""
    if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):  # click 8.2
        raise error
    where = error.ctx.command_path if error.ctx else "spa"
    text = " ".join(error.format_message().split())
    click.echo(f"spa: {text}\nsee '{where} --help'", err=True)
    raise click.exceptions.Exit(error.exit_code)


def _message(error: Exception) -> str:
    if isinstance(error, SpaError):
        return str(error)
    if isinstance(error, OSError):  # a full disk, a closed pipe: not ours to repair
        file = f" ({error.filename})" if error.filename else ""
        return f"cannot read or write{file}: {error.strerror or error}"
    text = f"{type(error).__name__}: {error}"
    return f"{text}\nthis is a bug in spa; -v shows where it happened"


def _close_output() -> None:
    """What could not be printed must not be tried again, and complained about, at the end."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _set_verbose(ctx: click.Context, _: click.Parameter, value: bool) -> bool:
    ctx.find_root().meta["verbose"] = value
    return value


def common(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("-v", "--verbose", is_flag=True, callback=_set_verbose, help="Say more."),
        click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead."),
    ):
        command = option(command)
    return command


def console() -> Console:
    from rich.console import Console

    width = None if sys.stdout.isatty() else 100
    return Console(width=width, markup=False, emoji=False)  # names are printed as they are


def emit(document: dict[str, Any]) -> None:
    click.echo(json.dumps(_strict(document), indent=1, allow_nan=False))


def _strict(value: Any) -> Any:
    """JSON has no NaN and no infinity: null stands for them."""
    if isinstance(value, dict):
        return {key: _strict(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def working(quiet: bool, patience: float = 10.0) -> Iterator[Progress]:
    """Names the stage at work: on a terminal as it goes; else, as in a log, in a line for every
    stage that takes more than ``patience`` seconds."""
    if quiet:
        yield lambda stage: None
        return
    if not sys.stderr.isatty():
        with _logged(patience) as progress:
            yield progress
        return
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("loading", total=None)
        yield lambda stage: bar.update(task, description=stage)


@contextmanager
def _logged(patience: float) -> Iterator[Progress]:
    waiting: list[Timer] = []

    def say(stage: str) -> None:
        while waiting:
            waiting.pop().cancel()
        waiting.append(Timer(patience, _mention, (stage,)))
        waiting[0].daemon = True
        waiting[0].start()

    say("loading")
    try:
        yield say
    finally:
        waiting[0].cancel()


def _mention(stage: str) -> None:
    with suppress(OSError, ValueError):  # nobody reads the log
        click.echo(f"spa: {stage} ...", err=True)


def check_inputs_stay(outs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Raises UsageError where an output is an input."""
    for path in outs:
        if any(_is_same(path, given) for given in inputs):
            raise UsageError(
                f"{path} is an input, or holds weights or data; spa never overwrites it"
            )


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # one of them is not there
        return False


def check_outs(outs: list[Path], model_out: Path | None, force: bool) -> None:
    """Raises UsageError where outputs collide, or the model's exists."""
    if len({os.path.realpath(path) for path in outs}) < len(outs):
        raise UsageError(f"model and plan cannot both be written to {outs[0]}")
    if model_out and model_out.exists() and not force:
        raise UsageError(f"{model_out} exists; give another -o, or --force to replace it")
