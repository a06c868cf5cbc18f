"""A compiled program as a folder that works anywhere: program state, adapter, and one weight folder per agent.

    manifest.json          format, adapter, LM of each agent, results, SHA-256 of every other file
    program-<hash>.json    signatures and demonstrations of the predictors
    agents/<agent>-<hash>/ the agent's weights (PEFT adapter, merged GGUF) and `sources.jsonl`, the runs it learnt from

A checkpoint is data, whoever made it. Loading imports and calls nothing that a file names, other than adapters and LMs
of a closed set; the program comes from the caller. No key, header or endpoint is written or read, nothing is pickled.

`manifest.json` is replaced last, in one step, and names all that belongs to it. So the folder holds a whole checkpoint
at every moment, the old one or the new one, and what an interrupted `save` left beside it is ignored, and removed by
the next. A checkpoint of one agent is the same without the program and the other agents.

    saving     writes checkpoints
    loading    reads them
    manifest   what a manifest may say, in one schema
    program    what is stored of a program's predictors
    parts      the adapters and LMs that may be named, and what is stored of them
    folder     files: read without following links, replaced in one step
    files      JSON from strangers
    naming     `module:name` of what a user lets in
"""

from sirius_dspy.checkpoint.loading import adapter_of, load, load_agent, verify
from sirius_dspy.checkpoint.saving import save, save_agent

__all__ = ["adapter_of", "load", "load_agent", "save", "save_agent", "verify"]
