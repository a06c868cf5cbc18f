"""What goes over the wire, in OpenAI's shapes. Files and jobs are also kept on disk in this form."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Auto = Literal["auto"]
Id = Annotated[str, Field(max_length=300)]


class Wire(BaseModel):
    """A part of a request. Unknown fields are refused, so that a typing error does not pass unnoticed."""

    model_config = ConfigDict(extra="forbid")


# Chat


class TextPart(Wire):
    """A piece of a message."""

    type: Literal["text"]
    text: str


class Message(Wire):
    """A message of a prompt. The empty fields are those that OpenAI's client sends back with an earlier answer."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None
    refusal: None = None
    audio: None = None
    annotations: list[Any] | None = Field(default=None, max_length=0)
    function_call: None = None
    tool_calls: None = None

    @property
    def plain(self) -> dict[str, str]:
        """The message as a chat template takes it."""
        role = "system" if self.role == "developer" else self.role
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": role, "content": content}


class StreamOptions(Wire):
    """What a stream contains besides the text."""

    include_usage: bool = False
    include_obfuscation: bool = False


class ChatRequest(BaseModel):
    """The body of `POST /v1/chat/completions`. Further fields are looked at in `sirius_dspy.server.chat`."""

    model_config = ConfigDict(extra="allow")

    model: Id
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    n: int | None = Field(default=None, ge=1, le=128)
    seed: int | None = None
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None


# Files


class FileObject(BaseModel):
    """An uploaded file."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: Literal["fine-tune"] = "fine-tune"
    status: Literal["processed"] = "processed"


# Fine-tuning


class Hyperparameters(Wire):
    """Settings of a job; `auto` takes the default of the backend."""

    n_epochs: Auto | Annotated[int, Field(ge=1, le=50)] = "auto"
    batch_size: Auto | Annotated[int, Field(ge=1, le=256)] = "auto"
    learning_rate_multiplier: Auto | Annotated[float, Field(gt=0, le=100)] = "auto"


class Supervised(Wire):
    """The settings of the only method."""

    hyperparameters: Hyperparameters = Hyperparameters()


class Method(Wire):
    """How to train."""

    type: Literal["supervised"]
    supervised: Supervised = Supervised()


class JobRequest(Wire):
    """The body of `POST /v1/fine_tuning/jobs`."""

    model: Id
    training_file: Id
    validation_file: Id | None = None
    suffix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")] | None = None
    seed: int | None = Field(default=None, ge=0, lt=2**31)
    method: Method | None = None
    hyperparameters: Hyperparameters | None = None
    """The older place of what is now in `method`; DSPy's provider still uses it."""
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None
    integrations: list[Any] | None = Field(default=None, max_length=0)


Status = Literal["queued", "running", "succeeded", "failed", "cancelled"]


class JobError(BaseModel):
    """Why a job failed."""

    code: str
    message: str
    param: str | None = None


class JobObject(BaseModel):
    """A fine-tuning job."""

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    finished_at: int | None = None
    estimated_finish: int | None = None
    model: str
    fine_tuned_model: str | None = None
    organization_id: str = "local"
    status: Status = "queued"
    training_file: str
    validation_file: str | None = None
    hyperparameters: Hyperparameters = Hyperparameters()
    method: Method
    seed: int
    user_provided_suffix: str | None = None
    metadata: dict[str, str] | None = None
    result_files: list[str] = []
    trained_tokens: int | None = None
    integrations: list[Any] = []
    error: JobError | None = None


class JobEvent(BaseModel):
    """Something that happened in a job."""

    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"] = "info"
    message: str
    type: Literal["message", "metrics"] = "message"
    data: dict[str, float] | None = None


# Models


class ModelObject(BaseModel):
    """A model that answers."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    root: str
    """The model from which it was trained in the first place; itself for one that was not trained here."""
    job: str | None = None
    """The job that trained it, which also names the folder of its weights."""
