"""Whether exported agents answer elsewhere as they do here.

    python -m benchmarks.exports CHECKPOINT [--prompts 50] [--seed 0]

CHECKPOINT is that of the demo (`sirius-dspy demo --out DIR` writes `DIR/checkpoint`). Its team answers validation
stories; then llama.cpp answers the same prompts with the exported GGUF files, Transformers with the exported
safetensors, and PEFT with the exported adapters on the de-quantized base. The table says how many greedy replies have
the same text. Engines round differently (OpenVINO multiplies matrices of 8 bits, Transformers here computes in
float32), so a reply whose best two tokens are about equally likely can differ.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import dspy
import torch
import xllamacpp
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from programs.tracking import crown
from sirius_dspy import LocalLM, load
from sirius_dspy.export import export
from sirius_dspy.local.unquantized import write_model
from sirius_dspy.running.record import record

Messages = Sequence[Mapping[str, str]]
Answer = Callable[[Messages], str]
MAX_TOKENS = 24


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    program = load(options.checkpoint, program=crown.build, configure=True)
    prompts = collect_prompts(program, options.prompts, options.seed)
    lms = {name: predictor.lm for name, predictor in program.named_predictors()}
    print("| agent | prompts | llama.cpp, GGUF | Transformers, safetensors | PEFT, adapter |")
    print("| --- | --: | --: | --: | --: |")
    with tempfile.TemporaryDirectory() as folder:
        written = export(options.checkpoint, folder)
        write_model(LocalLM().path, Path(folder))
        total = [0, 0, 0, 0]
        for agent, asked in prompts.items():
            ours = [ask(lms[agent], messages) for messages in asked]
            places = written[agent]
            others = (
                llama_cpp(places["gguf"]),
                transformers(places["safetensors"]),
                peft(places["peft"], Path(folder)),
            )
            same = [sum(answer(m) == text for m, text in zip(asked, ours, strict=True)) for answer in others]
            total = [old + new for old, new in zip(total, [len(asked), *same], strict=True)]
            print(f"| {agent} | {len(asked)} | {' | '.join(map(str, same))} |")
        print(f"| all | {' | '.join(map(str, total))} |")


def collect_prompts(program: dspy.Module, number: int, seed: int) -> dict[str, list[Messages]]:
    """Return the first different prompts that the team sends, by agent."""
    prompts: dict[str, list[Messages]] = defaultdict(list)
    seen: set[str] = set()
    for story in crown.examples("validation", number, seed, events=(1, 2, 3, 5)):
        for step in record(program, story.inputs()).steps:
            if step.prompt and step.prompt not in seen and len(seen) < number:
                seen.add(step.prompt)
                prompts[step.predictor].append(json.loads(step.prompt))
    return prompts


def ask(lm: LocalLM, messages: Messages) -> str:
    """Return the greedy reply of an agent here."""
    return str(lm(messages=list(messages), temperature=0, max_tokens=MAX_TOKENS)[0])


def llama_cpp(folder: Path) -> Answer:
    """Serve an exported GGUF file with llama.cpp, as `llama-server --jinja` does."""
    settings = xllamacpp.CommonParams()
    settings.model.path = str(folder / "model.gguf")
    settings.n_ctx, settings.use_jinja, settings.verbosity = 4096, True, 0
    server = xllamacpp.Server(settings)

    def answer(messages: Messages) -> str:
        reply = server.handle_chat_completions(
            {"messages": list(messages), "temperature": 0, "max_tokens": MAX_TOKENS, "cache_prompt": False}
        )
        return str(reply["choices"][0]["message"]["content"])

    return answer


def transformers(folder: Path) -> Answer:
    """Load exported safetensors as the model card says."""
    return _generator(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), folder)


def peft(folder: Path, base: Path) -> Answer:
    """Load an exported adapter as the model card says, on the de-quantized base."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folder)
    return _generator(model, folder)


def _generator(model: Any, folder: Path) -> Answer:
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def answer(messages: Messages) -> str:
        given = tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        written = model.generate(
            **given, max_new_tokens=MAX_TOKENS, do_sample=False, pad_token_id=tokenizer.eos_token_id
        )
        return str(tokenizer.decode(written[0, given["input_ids"].shape[1] :], skip_special_tokens=True))

    return answer


if __name__ == "__main__":
    main()
