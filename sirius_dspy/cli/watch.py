"""`sirius-dspy watch` and `sirius-dspy ui`: a window on a compile; `pause`, `resume` and `stop` ask something of it."""

from __future__ import annotations

import dataclasses
import json
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from sirius_dspy.cli.console import JsonFlag, complain, exit_cleanly, wide_console
from sirius_dspy.errors import SiriuSError
from sirius_dspy.optimizer.hold import Wish, ask_for

if TYPE_CHECKING:
    from sirius_dspy.window.read import Window

REFRESH_S = 1.0

WISHES: dict[str, Wish | None] = {"p": "pause", "s": "stop", "g": None}
"""Key to what it asks for."""

RunDirArgument = Annotated[Path, typer.Argument(help="The `run_dir` of a compile.")]
LibraryOption = Annotated[
    str | None, typer.Option(help="Path or URL of the experience library, if it is not where the folder says.")
]


def watch(
    run_dir: RunDirArgument,
    library: LibraryOption = None,
    once: Annotated[bool, typer.Option("--once", help="Print the state and end.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show in the terminal what a compile is doing, and pause or stop it by keys."""
    with exit_cleanly(), _open(run_dir, library) as window:
        if as_json:
            typer.echo(json.dumps(dataclasses.asdict(window.read())))
        elif once:
            from sirius_dspy.window.terminal import render

            wide_console().print(render(window.read()))
        else:
            _watch(window)


def _watch(window: Window) -> None:
    """Show it until the key q, or Ctrl-C, which leave the compile alone."""
    from rich.live import Live

    from sirius_dspy.window.keys import reading_keys
    from sirius_dspy.window.terminal import KEYS, render

    console, said = Console(), ""
    with reading_keys() as read_key, Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
        while True:
            live.update(render(window.read(), keys=f"{KEYS}   {said}"), refresh=True)
            key = read_key(REFRESH_S)
            if key == "q":
                return
            if key in WISHES:
                said = _ask(window, WISHES[key])


def _ask(window: Window, wish: Wish | None) -> str:
    """Ask, and return what went wrong."""
    try:
        window.ask_for(wish)
    except (SiriuSError, OSError) as error:
        return str(error)
    return ""


def ui(
    run_dir: RunDirArgument,
    library: LibraryOption = None,
    port: Annotated[int, typer.Option(help="Port on this machine; 0 for any that is free.", min=0, max=65535)] = 8765,
) -> None:
    """Show on a local web page what a compile is doing, and pause or stop it there."""
    from sirius_dspy.window.server import serve

    with exit_cleanly(), _open(run_dir, library) as window, _listener(port) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        Console().print(Text(f"{url}\nThe page is for browsers on this machine. Ctrl-C ends it, not the compile."))
        try:
            serve(window, listener)
        except KeyboardInterrupt:
            return


def pause(run_dir: RunDirArgument) -> None:
    """Let a compile begin no new run; those in flight end and are kept."""
    _send(run_dir, "pause", "No new run begins. Go on with `sirius-dspy resume`.")


def resume(run_dir: RunDirArgument) -> None:
    """Let a compile go on that was paused, or asked to stop."""
    _send(run_dir, None, "It goes on.")


def stop(run_dir: RunDirArgument) -> None:
    """End a compile after the stage that it is in, so that the same call resumes it."""
    _send(run_dir, "stop", "It ends after this stage. Call the same compile again to resume.")


def _send(run_dir: Path, wish: Wish | None, done: str) -> None:
    with exit_cleanly():
        ask_for(run_dir, wish)
        typer.echo(done)


@contextmanager
def _open(run_dir: Path, library: str | None) -> Iterator[Window]:
    from sirius_dspy.window.read import Window

    with closing(Window(run_dir, library)) as window:
        yield window


@contextmanager
def _listener(port: int) -> Iterator[socket.socket]:
    """A socket that only this machine can reach."""
    try:
        listener = socket.create_server(("127.0.0.1", port))
    except OSError as error:
        complain(f"Port {port} cannot be used: {error.strerror}. Pass another one with `--port`, or 0 for any.")
        raise typer.Exit(1) from error
    with listener:
        yield listener
