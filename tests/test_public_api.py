"""The public names: sorted, complete, documented, and importable without a warning."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib import metadata

import pytest

import sirius_dspy
import sirius_dspy.testing
from tests import ROOT

MODULES = (sirius_dspy, sirius_dspy.testing)
LAZY = {"MLflowTracker"}
"""Names that are imported when they are asked for."""


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_all_is_sorted_and_has_no_name_twice(module):
    assert list(module.__all__) == sorted(set(module.__all__))


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_all_is_complete(module):
    public = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and (inspect.isclass(value) or inspect.isfunction(value))
    }
    listed = {name for name in module.__all__ if not inspect.ismodule(getattr(module, name))}
    assert public == listed - (LAZY if module is sirius_dspy else set())


@pytest.mark.parametrize(
    ("module", "name"),
    [pytest.param(module, name, id=f"{module.__name__}.{name}") for module in MODULES for name in module.__all__],
)
def test_every_public_name_is_documented(module, name):
    value = getattr(module, name)
    assert value.__doc__
    assert value.__doc__.strip()
    if inspect.isclass(value):
        assert [method for method in own_public_methods(value) if not inspect.getdoc(getattr(value, method))] == []


def own_public_methods(value):
    return [name for name, item in vars(value).items() if not name.startswith("_") and callable(item)]


def test_every_error_of_the_package_is_a_sirius_error_and_a_builtin():
    from sirius_dspy import errors

    own = [value for _, value in inspect.getmembers(errors, inspect.isclass) if value.__module__ == errors.__name__]
    assert all(issubclass(error, errors.SiriuSError) for error in own)
    builtin = (ValueError, RuntimeError, OSError, ImportError)
    assert [error for error in own if error is not errors.SiriuSError and not issubclass(error, builtin)] == []


def test_names_that_are_imported_late_cost_nothing_before():
    program = (
        "import sys, sirius_dspy\n"
        "print('mlflow' in sys.modules, 'sirius_dspy.mlflow' in sys.modules, sirius_dspy.MLflowTracker.__name__)"
    )
    run = [sys.executable, "-c", program]
    done = subprocess.run(run, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert (done.returncode, done.stdout) == (0, "False False MLflowTracker\n"), done.stderr


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'sirius_dspy' has no attribute 'Sirius'"):
        sirius_dspy.Sirius  # noqa: B018


def test_importing_gives_no_warning():
    run = [sys.executable, "-W", "error", "-c", "import sirius_dspy, sirius_dspy.testing, sirius_dspy.cli"]
    done = subprocess.run(run, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_version_is_the_package_s():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert sirius_dspy.__version__ == project["version"]


def test_the_command_is_installed_with_the_package():
    try:
        found = metadata.distribution("sirius-dspy").entry_points
    except metadata.PackageNotFoundError:
        pytest.skip("sirius-dspy runs from its folder and is not installed; `make test` installs it")
    assert [(point.name, point.value) for point in found] == [("sirius-dspy", "sirius_dspy.cli:app")]
