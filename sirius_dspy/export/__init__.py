"""Writes the trained agents of a checkpoint in the formats of other tools.

    export("runs/reviews/checkpoint", "exported")
    export("runs/reviews/checkpoint", "exported", formats=["gguf"], agents=["judge"])

`peft` is a LoRA adapter with a model card, for Transformers, PEFT and vLLM. `gguf` is one file with an Ollama Modelfile
beside it, for llama.cpp, Ollama and LM Studio. `safetensors` is a whole model with its tokenizer, for Transformers,
vLLM and TGI.
"""

from sirius_dspy.export.agents import EXPORTS, Format
from sirius_dspy.export.hub import push
from sirius_dspy.export.write import export

__all__ = ["EXPORTS", "Format", "export", "push"]
