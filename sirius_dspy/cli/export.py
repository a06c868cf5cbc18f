"""`sirius-dspy export`: writes trained agents in the formats of other tools."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from sirius_dspy.cli.console import JsonFlag, exit_cleanly


def export(
    checkpoint: Annotated[str, typer.Argument(help="Folder of a checkpoint, or `models:/NAME@ALIAS`.")],
    out: Annotated[str, typer.Argument(help="Folder to write to: OUT/AGENT/FORMAT/.")],
    to: Annotated[list[str] | None, typer.Option(help="peft, gguf or safetensors; repeatable. All by default.")] = None,
    agent: Annotated[list[str] | None, typer.Option(help="Name of an agent; repeatable. All by default.")] = None,
    base_model: Annotated[
        str | None, typer.Option(help="Id of the base model on the Hugging Face hub, if it is not the embedded one.")
    ] = None,
    push_to: Annotated[
        str | None,
        typer.Option(help="OWNER/NAME on the Hugging Face hub to upload to, for one agent and one format. Private."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Write trained agents as LoRA adapters, GGUF files with a Modelfile for Ollama, or whole models."""
    from sirius_dspy.errors import ExportError
    from sirius_dspy.export import EXPORTS, push
    from sirius_dspy.export import export as write

    with exit_cleanly():
        if push_to and (len(to or ()) != 1 or len(agent or ()) != 1):
            raise ExportError(
                "`--push-to` uploads one folder. Name one agent with `--agent` and one format with `--to`."
            )
        written = write(checkpoint, out, formats=to or EXPORTS, agents=agent, base_model=base_model)  # type: ignore[arg-type]  # checked there
        places = [str(place) for formats in written.values() for place in formats.values()]
        address = push(places[0], push_to) if push_to else None
        if as_json:
            plain = {name: {kind: str(place) for kind, place in formats.items()} for name, formats in written.items()}
            typer.echo(json.dumps({"written": plain, "pushed": address}))
        else:
            Console().print(Text("\n".join([*places, *([address] if address else [])])), soft_wrap=True)
