"""`sirius-dspy serve`: a fine-tuning server with OpenAI's API."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from sirius_dspy.cli.console import complain, exit_cleanly
from sirius_dspy.errors import MissingDependencyError

_PACKAGES = ("fastapi", "uvicorn", "python_multipart")
_DEFAULT_MODEL = "smollm2-135m-instruct"


def serve(
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Packaged model, .gguf file or Hugging Face id to serve and to train; repeatable. The packaged one "
            "by default, unless there is a checkpoint."
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Folder of a checkpoint, whose agents are served by their names.")
    ] = None,
    data: Annotated[Path, typer.Option(help="Folder for uploads, jobs and trained weights.")] = Path("runs/serve"),
    host: Annotated[
        str, typer.Option(help="Address to listen at; one that other machines reach needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option(help="File with the token that clients must send as API key; SIRIUS_SERVER_TOKEN by default."),
    ] = None,
) -> None:
    """Serve models with OpenAI's API: chat, files and fine-tuning jobs, on this machine."""
    with exit_cleanly():
        _check_packages()
        from sirius_dspy.server.local import LocalBackend, load_models
        from sirius_dspy.server.run import Server
        from sirius_dspy.server.settings import ServerSettings, read_token

        settings = ServerSettings(data=data, host=host, port=port, token=read_token(token_file))
        names = model or ([] if checkpoint else [_DEFAULT_MODEL])
        backend = LocalBackend(load_models(names, checkpoint))
        complain(f"Serving {', '.join(backend.models)}. Ctrl-C ends it; a job that runs goes on at the next start.")
        Server(settings, backend).run(typer.echo)


def _check_packages() -> None:
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependencyError(f"The server needs {', '.join(missing)}. Run `pip install 'sirius-dspy[serve]'`.")
