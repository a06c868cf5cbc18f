"""The file from which Ollama creates a model."""

from __future__ import annotations

from pathlib import Path

from sirius_dspy.export.agents import TrainedAgent

_CHATML = """{{- range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
"""
"""The ChatML format as a template of Ollama."""

_PROBE = [
    {"role": "system", "content": "One."},
    {"role": "user", "content": "Two."},
    {"role": "assistant", "content": "Three."},
    {"role": "user", "content": "Four."},
]


def write_modelfile(agent: TrainedAgent, path: Path) -> None:
    """Write a Modelfile for `model.gguf` beside it: template, sampling settings, and where a reply ends.

    Ollama's templates are not Jinja, so one is written only for ChatML, which SmolLM2 and Qwen use. For another format,
    Ollama derives it from the file's own template where it knows that one.
    """
    chat = agent.chat
    lines = ["FROM ./model.gguf"]
    if chat.prompt(_PROBE) == _as_chatml():
        lines.append(f'TEMPLATE """{_CHATML}"""')
    lines.append(f"PARAMETER temperature {agent.lm.kwargs.get('temperature') or 0}")
    if limit := agent.lm.kwargs.get("max_tokens"):
        lines.append(f"PARAMETER num_predict {limit}")
    lines.append(f"PARAMETER num_ctx {chat.context}")
    ends = chat.tokenizer.convert_ids_to_tokens(sorted(chat.end_ids))
    lines += [f'PARAMETER stop "{end}"' for end in ends]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _as_chatml() -> str:
    turns = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in _PROBE)
    return f"{turns}<|im_start|>assistant\n"
