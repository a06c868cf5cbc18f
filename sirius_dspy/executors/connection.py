"""The connection of this process to a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from sirius_dspy.errors import MissingDependencyError, SettingsError, WorkerError


def import_ray() -> ModuleType:
    """Import Ray.

    Raises:
        MissingDependencyError: It is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingDependencyError(
            "Ray is not installed. Install it with `pip install 'sirius-dspy[ray]'`, here and on the machines of the "
            "cluster."
        ) from error
    return ray


@contextmanager
def connected(address: str | None) -> Iterator[ModuleType]:
    """The context in which this process is connected to a cluster. A connection that it has already is used and kept.

    Args:
        address: Of the cluster, as `ray.init` takes it; `None` starts Ray on this machine.

    Raises:
        MissingDependencyError: Ray is not installed.
        WorkerError: No cluster answers there.
    """
    ray = import_ray()
    is_own = not ray.is_initialized()
    if is_own:
        try:
            ray.init(address=address, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError) as error:  # the last one where versions differ, among others
            raise WorkerError(
                f"The Ray cluster at {address!r} cannot be reached: {error} Start it with `ray start --head`, or pass "
                "its address; `ray status` shows whether it runs. Python and Ray need the same versions everywhere."
            ) from error
    try:
        yield ray
    finally:
        if is_own:
            ray.shutdown()


def check_options(
    made: Callable[..., Any], options: Mapping[str, Any], what: str, fixed: Mapping[str, Any] | None = None
) -> None:
    """Refuse what Ray does not take as options of a task or an actor; nothing is started.

    Args:
        made: The function of the task, or the class of the actor.
        options: Such as `{"num_gpus": 1}`.
        what: The setting, for the message.
        fixed: Options that are set for each of them.

    Raises:
        SettingsError: The message is Ray's.
        MissingDependencyError: Ray is not installed.
    """
    ray = import_ray()
    try:
        ray.remote(made).options(**(fixed or {}), **options)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"Ray refuses the `{what}` {dict(options)}: {error}") from error
