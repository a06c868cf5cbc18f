"""Model cards: what an exported agent is, how it was trained, and how to use it."""

from __future__ import annotations

import json
from pathlib import Path

import sirius_dspy
from sirius_dspy.checkpoint.manifest import AgentEntry
from sirius_dspy.export.agents import Format, TrainedAgent
from sirius_dspy.report.numbers import format_score

_LIBRARY: dict[Format, str] = {"peft": "peft", "gguf": "gguf", "safetensors": "transformers"}

_USES: dict[Format, str] = {
    "peft": """```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({base}), ".")
```

Or serve it with vLLM: `vllm serve {base_id} --enable-lora --max-lora-rank {rank} --lora-modules {agent}=.`""",
    "gguf": """```bash
ollama create {agent} -f Modelfile
llama-server -m model.gguf --jinja
```""",
    "safetensors": """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForCausalLM.from_pretrained(".")
```

Or serve it with vLLM: `vllm serve . --served-model-name {agent}`""",
}


def write_card(agent: TrainedAgent, kind: Format, path: Path) -> None:
    """Write a model card in the format of the Hugging Face hub."""
    sections = [
        _front_matter(agent, kind),
        f"# {agent.name}",
        f"The agent `{agent.name}` of the DSPy program `{agent.manifest.program}`, fine-tuned on the program's own "
        "successful and repaired runs with [SiriuS](https://arxiv.org/abs/2502.04780).",
        "## Use\n\n" + _use(agent, kind),
        _prompts(agent, agent.manifest.agents[agent.name]),
        "## Training\n\n" + _training(agent),
    ]
    path.write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def _front_matter(agent: TrainedAgent, kind: Format) -> str:
    """Return the card's metadata as YAML; JSON strings are valid in it, whatever is in them."""
    values: dict[str, object] = {
        "base_model": agent.base_model,
        "library_name": _LIBRARY[kind],
        "license": agent.header.get("general.license"),
        "pipeline_tag": "text-generation",
        "tags": ["dspy", "sirius-dspy", *(["lora"] if kind == "peft" else [])],
    }
    lines = [f"{name}: {json.dumps(value)}" for name, value in values.items() if value]
    return "\n".join(["---", *lines, "---"])


def _use(agent: TrainedAgent, kind: Format) -> str:
    base = agent.base_model or agent.training.get("base", agent.lm.model)
    rank = agent.training.get("options", {}).get("rank", 16)
    return _USES[kind].format(base=json.dumps(base), base_id=base, agent=agent.name, rank=rank)


def _prompts(agent: TrainedAgent, entry: AgentEntry) -> str:
    adapter = agent.manifest.adapter.class_path.replace(":", ".")
    program = agent.manifest.program.partition(":")[2]
    return f"""## Prompts

The agent knows the prompts that DSPy writes with the adapter `{adapter}` for its predictors \
({", ".join(f"`{name}`" for name in entry.predictors)}); it answers other prompts badly. To use it in the program:

```python
import dspy
import sirius_dspy

lm = dspy.LM("openai/{agent.name}", api_base="http://localhost:8000/v1", api_key="none")
program = sirius_dspy.load("checkpoint", program={program}, lms={{{json.dumps(agent.name)}: lm}}, configure=True)
```"""


def _training(agent: TrainedAgent) -> str:
    record, results = agent.training, agent.manifest.results
    if not record:
        return "These are the weights of the base model: the agent was not trained."
    options = ", ".join(f"{name} {value}" for name, value in record["options"].items())
    lines = [
        f"Base: `{record['base']}`",
        f"Rows: {record['num_rows']}, with {record['completion_tokens']} tokens of replies",
        f"LoRA: {options}",
    ]
    if results is not None:
        scores = ", ".join(format_score(entry.score, in_percent=True) for entry in results.iterations)
        lines.append(f"Scores of the program on validation examples by iteration: {scores}")
        lines.append(f"Best iteration: {results.best_iteration}")
    lines.append(f"Written by sirius_dspy {sirius_dspy.__version__}")
    return "\n".join(f"- {line}" for line in lines)
