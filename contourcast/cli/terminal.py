"""What every command shares: one-line errors, a progress bar, the device, a folder to write."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import typer
from pydantic import ValidationError
from typer.core import TyperGroup

from contourcast.imaging.errors import ContourcastError, InputError


class Device(StrEnum):
    """Where to compute."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class OneLineErrors(TyperGroup):
    """The commands under it end in one line and an exit code when they refuse."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command that was named."""
        with one_line_errors():
            return super().invoke(ctx)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """A refusal is one line on stderr and its exit code; a bug stays a traceback."""
    try:
        yield
    except ContourcastError as error:
        typer.echo(f"contourcast: {error}", err=True)
        raise typer.Exit(error.exit_code) from None
    except (OSError, MemoryError, ValidationError) as error:
        reason = str(error).splitlines()[0] if str(error) else "out of memory"
        typer.echo(f"contourcast: {reason}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("contourcast: interrupted", err=True)
        raise typer.Exit(130) from None


@contextmanager
def progress() -> Iterator[Callable[[str, float], None]]:
    """A bar on stderr where a person looks, silence where a script does."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:<44}"), BarColumn(), TimeElapsedColumn())
    with Progress(
        *columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()
    ) as bar:
        task = bar.add_task("starting", total=1.0)
        yield lambda sentence, done: bar.update(task, description=sentence, completed=done)


def require_empty(out: Path) -> None:
    """Refuses a folder that holds something, since results are never mixed, or is not writable.

    Raises:
        InputError: It is such a one.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise InputError(
            "the output folder is not empty", file=out.name, remedy="name a new or empty folder"
        )
    require_writable(out)


def require_writable(out: Path) -> None:
    """Refuses a folder that nothing can be written into, before the work and not after it.

    It is made for a moment; nothing stays.

    Raises:
        InputError: It cannot be made, or is read-only.
    """
    missing = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=out):
            pass
    except OSError as error:
        raise InputError(
            f"nothing can be written into the output folder: {error.strerror}",
            file=out.name,
            remedy="name another folder, or see to its permissions",
        ) from error
    finally:
        for folder in missing:
            with suppress(OSError):  # never made, or another process has begun to use it
                folder.rmdir()


def chosen_device(wanted: Device, threads: int) -> str:
    """The name torch knows; ``auto`` is CUDA where it works. Sets the thread count on the way."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    if wanted is Device.CUDA and not torch.cuda.is_available():
        raise InputError("this machine has no usable CUDA device", remedy="--device cpu")
    if wanted is Device.AUTO:
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted.value
