"""Saves a compiled program as a portable folder: program state, adapter, and one weight folder per agent.

    manifest.json          format, adapter, LM of each agent, results, SHA-256 of every other file
    program-<hash>.json    signatures and demonstrations of the predictors
    agents/<agent>-<hash>/ the agent's weights (PEFT adapter, merged GGUF) and `sources.jsonl`, its training runs

A checkpoint is data, and safe to load from anyone. Loading imports and calls nothing that a file names, except adapters
and LMs of a closed set; the caller provides the program. No key, header or endpoint is written or read, and nothing is
pickled.

`manifest.json` is replaced last, atomically, and lists all files of the checkpoint. So the folder always holds a
complete checkpoint, either the old one or the new one. Leftovers of an interrupted `save` are ignored, and the next
one removes them. A checkpoint of one agent has the same layout, without the program and the other agents.

    saving     writes checkpoints
    loading    reads them
    manifest   the schema of the manifest
    program    the stored state of a program's predictors
    parts      the supported adapters and LMs, and their stored state
    folder     reads files without following links, and replaces them atomically
    files      reads untrusted JSON
    naming     `module:name` of programs
"""

from sirius_dspy.checkpoint.loading import adapter_of, load, load_agent, verify
from sirius_dspy.checkpoint.saving import save, save_agent

__all__ = ["adapter_of", "load", "load_agent", "save", "save_agent", "verify"]
