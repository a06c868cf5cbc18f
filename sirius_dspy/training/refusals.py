"""Why a server with OpenAI's API refused or failed a fine-tuning job, in plain words."""

from __future__ import annotations

from collections.abc import Mapping

from sirius_dspy.redact import redact

_REASONS = {
    "insufficient_quota": "The account has no credit left. Add some, or raise its limit.",
    "billing_hard_limit_reached": "The account has reached its limit. Raise it, or wait for the next month.",
    "invalid_api_key": "The key is not valid. Set OPENAI_API_KEY, or the `api_key` of the LM.",
    "model_not_found": "This model cannot be fine-tuned, or not by this account. Choose one that the server lists.",
    "exceeded_quota": "The account may not run more jobs now. Wait for one to end, or ask for a higher limit.",
    "invalid_n_examples": "There are too few rows. Collect more successful runs, with more examples or samples.",
}
"""Code of a refusal to what it means and what to do."""

_MODERATION = (
    "The rows did not pass the server's moderation. They are in the run directory, under `training`. Leave such runs "
    "out with a curator of your own, or freeze the agent."
)
_CLOSED = (
    "The key may not fine-tune: its project or role lacks the permission, or fine-tuning is closed for this account."
)


def is_transient(error: Exception) -> bool:
    """Return whether a server is out of reach, busy or answers nonsense; a used-up quota does not pass by itself."""
    import openai

    if isinstance(error, openai.RateLimitError):
        return str(error.code) not in _REASONS
    return isinstance(
        error, ValueError | openai.APIConnectionError | openai.InternalServerError | openai.APIResponseValidationError
    )


def is_denial(error: Exception) -> bool:
    """Return whether the server itself says that there is no such job, in the form of OpenAI's errors.

    The 404 page of a proxy, or of another service at the address, has another form.
    """
    import openai

    if not isinstance(error, openai.NotFoundError):
        return False
    try:
        body = error.response.json()
    except ValueError:
        return False
    said = body.get("error") if isinstance(body, Mapping) else None
    return isinstance(said, Mapping) and all(isinstance(said.get(name), str) for name in ("message", "type"))


def explain(error: Exception) -> str:
    """Say in plain words why a server refused, with its own message."""
    import openai

    said = redact(str(getattr(error, "message", error)))[:500]
    meaning = _meaning(str(getattr(error, "code", "") or ""), said)
    if meaning:
        return f"{meaning} The server says: {said}"
    if isinstance(error, openai.AuthenticationError):
        return f"{_REASONS['invalid_api_key']} The server says: {said}"
    if isinstance(error, openai.PermissionDeniedError):
        return f"{_CLOSED} The server says: {said}"
    if isinstance(error, openai.NotFoundError):
        return f"The server does not know fine-tuning, this model or this job. The server says: {said}"
    if isinstance(error, openai.APIConnectionError):
        return f"The server cannot be reached ({said})."
    if isinstance(error, openai.APIStatusError):
        return f"The server refused: {said}"
    if isinstance(error, ValueError):  # no JSON
        return f"{said}."
    return f"{said} Set OPENAI_API_KEY, or the `api_key` of the LM."


def explain_failure(code: str | None, message: str | None) -> str:
    """Say in plain words why a job failed, with the server's own message; empty if it gave none."""
    if not message:
        return ""
    said = f"{redact(message)[:500]} ({code})"
    meaning = _meaning(code or "", message)
    return f"{meaning} The server says: {said}" if meaning else said


def _meaning(code: str, said: str) -> str:
    """Return what a code means or, where servers have none of their own, what the words say."""
    if code in _REASONS:
        return _REASONS[code]
    words = said.lower()
    if "moderation" in words or "usage policies" in words:
        return _MODERATION
    return _CLOSED if "fine-tuning" in words and "not available" in words else ""
