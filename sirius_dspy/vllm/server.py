"""`VLLMServer`: one vLLM process that holds the base weights and the adapters of all agents."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sirius_dspy import checks
from sirius_dspy.errors import MissingDependencyError, RolloutError, TrainingError, UnpreparedProgramError
from sirius_dspy.redact import remember_secrets
from sirius_dspy.vllm.calls import Calls
from sirius_dspy.vllm.http import RefusedError, ask
from sirius_dspy.vllm.process import ServerProcess

_RUNTIME = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}

_SETTINGS = {
    "base": checks.PATH,
    "api_base": checks.optional(checks.TEXT),
    "api_key": checks.TEXT,
    "max_loras": checks.whole(1),
    "max_lora_rank": checks.whole(1),
    "executable": checks.PATH,
    "log": checks.optional(checks.PATH),
    "start_s": checks.number(above=0),
    "load_s": checks.number(above=0),
}


class VLLMServer:
    """A vLLM server with the base weights, which loads the adapter of each agent while it runs.

    Without `api_base`, the first call starts `vllm serve` as a child process. It ends with `stop`, and at the latest
    with this process, even if that is killed. With `api_base`, the server is yours: start it with `--enable-lora` and
    the environment variable `VLLM_ALLOW_RUNTIME_LORA_UPDATING=True`, on a machine that sees the same files.

    Args:
        base: The base weights: an id of the Hugging Face hub, or a folder in its format.
        api_base: Address of a server of your own, such as `http://localhost:8000/v1`.
        api_key: The key of a server of your own.
        max_loras: How many adapters may answer in one batch. The number of agents is a good value.
        max_lora_rank: The largest rank of an adapter; vLLM accepts 8, 16, 32, 64, 128, 256, 320 and 512.
        options: Further arguments of `vllm serve`, such as `["--gpu-memory-utilization", "0.8"]`.
        executable: The command `vllm`, or its path in another environment.
        log: The file with the output of the server; by default, a new file in the folder for temporary files.
        start_s: Seconds within which the server must be ready. Large weights take minutes.
        load_s: Seconds that a change of the adapters may wait for calls in flight, and then take.

    Raises:
        SettingsError: A setting is of the wrong kind or out of its range.

    References:
        https://docs.vllm.ai/en/latest/features/lora.html
    """

    def __init__(
        self,
        base: str | Path,
        *,
        api_base: str | None = None,
        api_key: str = "none",
        max_loras: int = 8,
        max_lora_rank: int = 16,
        options: Sequence[str] = (),
        executable: str | Path = "vllm",
        log: str | Path | None = None,
        start_s: float = 600.0,
        load_s: float = 300.0,
    ) -> None:
        checks.check("VLLMServer", locals(), _SETTINGS)
        self.base = str(base)
        self.url = api_base.rstrip("/") if api_base else f"http://127.0.0.1:{_free_port()}/v1"
        self.is_ours = api_base is None
        self.max_loras = max_loras
        self.max_lora_rank = max_lora_rank
        self.options = tuple(options)
        self.executable = str(executable)
        self.log = Path(log) if log else None
        self.start_s = start_s
        self.load_s = load_s
        self.calls = Calls()
        self._key = api_key
        self._process: ServerProcess | None = None
        self._starting = threading.Lock()
        self._name = ""
        remember_secrets(None, {"api_key": api_key})

    def __deepcopy__(self, memo: dict[int, Any]) -> VLLMServer:
        return self

    def __enter__(self) -> VLLMServer:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    @property
    def name(self) -> str:
        """The name under which the base weights answer; for a folder, it contains a hash of the weights."""
        if not self._name:
            folder = Path(self.base).expanduser()
            is_folder = self.is_ours and folder.is_dir()
            self._name = f"{folder.name}-{hash_files(folder)}" if is_folder else self.base
        return self._name

    @property
    def key(self) -> str:
        """The key that requests send."""
        return self._key

    @property
    def is_running(self) -> bool:
        """Whether the server may answer: it is yours, or it was started and has not ended."""
        return not self.is_ours or (self._process is not None and self._process.exit_code is None)

    # The process

    def start(self) -> None:
        """Start the server if it does not run, and wait until it answers.

        Raises:
            MissingDependencyError: There is no command `vllm`.
            UnpreparedProgramError: It did not get ready, or your own server cannot be used.
        """
        with self._starting:
            if self.is_ours and (self._process is None or self._process.exit_code is not None):
                self._process = ServerProcess(self._command(), _RUNTIME, self._log_file())
                self._wait_until_ready(self._process)
            elif not self.is_ours:
                self._check_models()

    def ensure_started(self) -> None:
        """Start a server of ours that never ran. One that ended stays as it is, since its adapters are gone."""
        if self.is_ours and self._process is None:
            self.start()

    def stop(self) -> None:
        """End a server that this object started, with all its processes."""
        with self._starting:
            if self._process is not None:
                self._process.end()
                self._process = None

    def check_alive(self) -> None:
        """Find out whether the server has ended.

        Raises:
            RolloutError: It has.
        """
        if self._process is not None and self._process.exit_code is not None:
            raise RolloutError(
                f"The vLLM server of {self.base!r} ended with exit code {self._process.exit_code}. The end of "
                f"{str(self._process.log)!r}:\n{self._process.tail()}\nEverything collected so far is kept. Run the "
                "same `compile` again; it starts the server again and resumes."
            )

    def _command(self) -> list[str]:
        found = shutil.which(self.executable)
        if found is None:
            raise MissingDependencyError(
                f"There is no command {self.executable!r}. Run `pip install vllm`, name the command in another "
                "environment with `VLLMServer(executable=...)`, or a server that runs with `api_base=...`."
            )
        host, _, port = self.url.removeprefix("http://").removesuffix("/v1").partition(":")
        where = ["--host", host, "--port", port, "--served-model-name", self.name]
        adapters = ["--enable-lora", "--max-loras", str(self.max_loras), "--max-lora-rank", str(self.max_lora_rank)]
        return [found, "serve", self.base, *where, *adapters, *self.options]

    def _log_file(self) -> Path:
        if self.log is None:
            handle, path = tempfile.mkstemp(prefix="vllm-", suffix=".log")
            os.close(handle)
            self.log = Path(path)
        return self.log

    def _wait_until_ready(self, process: ServerProcess) -> None:
        deadline = time.monotonic() + self.start_s
        while process.exit_code is None and time.monotonic() < deadline:
            try:
                ask(f"{self.url.removesuffix('/v1')}/health", self._key, timeout_s=5)
                return
            except RefusedError:
                time.sleep(0.1)
        ended = f"ended with exit code {process.exit_code}" if process.exit_code is not None else "was not ready"
        tail = process.tail()
        process.end()
        self._process = None
        raise UnpreparedProgramError(
            f"The vLLM server of {self.base!r} {ended} within {self.start_s:g} s. Change its `options`, or raise "
            f"`start_s`. The end of {str(process.log)!r}:\n{tail}"
        )

    def _check_models(self) -> None:
        names = self.names()
        if self.name not in names:
            raise UnpreparedProgramError(
                f"The server at {self.url!r} does not serve {self.base!r}, but {names}. Pass one of these names as "
                "`base`, or start the server with it."
            )

    # Adapters

    def names(self) -> list[str]:
        """Return the names that answer: of the base weights, and of the adapters.

        Raises:
            UnpreparedProgramError: The server does not answer.
        """
        try:
            return [model["id"] for model in ask(f"{self.url}/models", self._key)["data"]]
        except (RefusedError, KeyError, TypeError) as error:
            self.check_alive()
            raise UnpreparedProgramError(
                f"The server at {self.url!r} does not list its models: {error}. Start it, and check address and key."
            ) from error

    def load(self, name: str, folder: Path) -> None:
        """Load an adapter, unless it is there, once no call is in flight.

        Args:
            name: Contains a hash of the content: vLLM may keep old weights under a name that is loaded again.
            folder: The PEFT folder. It must stay until the adapter is unloaded, since vLLM may read it again.

        Raises:
            TrainingError: The server refused it.
            TimeLimitError: Calls stayed in flight.
        """
        with self.calls.none(self.load_s):
            if name not in self.names():
                self._change("load_lora_adapter", {"lora_name": name, "lora_path": str(folder.absolute())})

    def unload(self, name: str) -> None:
        """Unload an adapter, if it is there, once no call is in flight.

        Raises:
            TrainingError: The server refused.
            TimeLimitError: Calls stayed in flight.
        """
        with self.calls.none(self.load_s):
            if name in self.names():
                self._change("unload_lora_adapter", {"lora_name": name})

    def score(self, name: str, prompt: Sequence[int], completion: Sequence[int]) -> tuple[float, ...]:
        """Return the log-probability in nats that base or adapter give each token of a completion.

        Raises:
            TrainingError: The server did not answer.
        """
        body = {"model": name, "prompt": [*prompt, *completion], "max_tokens": 1, "temperature": 0.0}
        try:
            reply = ask(f"{self.url}/completions", self._key, body | {"prompt_logprobs": 0}, timeout_s=self.load_s)
            found = reply["choices"][0]["prompt_logprobs"][len(prompt) :]
            return tuple(float(table[str(token)]["logprob"]) for table, token in zip(found, completion, strict=True))
        except (RefusedError, KeyError, TypeError, ValueError) as error:
            self.check_alive()
            raise TrainingError(
                f"The server at {self.url!r} gave no log-probabilities for {name!r}: {error}"
            ) from error

    def _change(self, action: str, body: dict[str, str]) -> None:
        try:
            ask(f"{self.url}/{action}", self._key, body, timeout_s=self.load_s)
        except RefusedError as error:
            self.check_alive()
            hint = (
                "Start the server with `--enable-lora` and the environment variable "
                "`VLLM_ALLOW_RUNTIME_LORA_UPDATING=True`."
                if error.status in (404, 405)
                else "The log of the server says more; often `max_lora_rank` is smaller than the rank of the adapter."
            )
            raise TrainingError(
                f"The server at {self.url!r} refused {action} of {body['lora_name']!r}: {error}. {hint}"
            ) from error


def hash_files(folder: Path) -> str:
    """Return digits of the content of a folder's weights and configuration."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*")):
        if path.suffix == ".safetensors" or path.name in ("config.json", "adapter_config.json"):
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]


def adapter_name(agent: str, base: str, folder: Path) -> str:
    """Name an adapter by its agent and its content, so that a name never stands for other weights."""
    digits = hashlib.sha256(f"{base}\n{hash_files(folder)}".encode()).hexdigest()[:16]
    return f"{re.sub('[^a-z0-9]+', '-', agent.lower()).strip('-') or 'agent'}-{digits}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
