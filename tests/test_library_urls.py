"""URLs and paths of libraries: which are refused, and that no password is shown."""

import copy

import pytest

from sirius_dspy.errors import LibraryError
from sirius_dspy.library.experience import ExperienceLibrary
from sirius_dspy.testing.library import make_run


def test_the_constructor_touches_nothing_and_the_first_use_creates_folders(tmp_path):
    path = tmp_path / "a" / "b" / "library.db"
    library = ExperienceLibrary(str(path))
    assert not path.parent.exists()
    library.add(make_run())
    library.close()
    assert [file.name for file in path.parent.iterdir()] == ["library.db"]


def test_a_relative_path_stays_where_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ExperienceLibrary("library.db") as library, ExperienceLibrary("sqlite:///library.db") as same:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        library.add(make_run())
        assert same.count() == 1
    assert (tmp_path / "library.db").exists()


@pytest.mark.parametrize("name", ["space and ü.db", "what?.db", "100%.db", "a#b.db"])
def test_any_file_name_will_do(tmp_path, name):
    with ExperienceLibrary(tmp_path / name) as library:
        library.add(make_run())
    with copy.deepcopy(library) as again:
        assert again.count() == 1
    assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://ada:tops3cret@db.example/library",
        "postgres://ada:tops3cret@db.example/library",
        "postgresql://ada@db.example/library?password=tops3cret&sslpassword=tops3cret",
    ],
)
def test_a_password_is_never_shown(url):
    library = ExperienceLibrary(url)
    assert library.url.startswith("postgresql+psycopg://ada")
    for shown in (library.url, repr(library), str(library)):
        assert "tops3cret" not in shown
        assert "db.example/library" in shown


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ada:tops3cret@host:port/library",
        "mysql://ada:tops3cret@host/library",
        "://tops3cret",
        "x://tops3cret",
    ],
)
def test_a_bad_url_is_refused_without_showing_its_password(url):
    with pytest.raises(LibraryError, match="Expected a path") as caught:
        ExperienceLibrary(url)
    assert "tops3cret" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "url", [":memory:", "sqlite://", "sqlite:///:memory:", "sqlite:///file:x?mode=memory&uri=true"]
)
def test_a_library_in_memory_is_refused(url):
    with pytest.raises(LibraryError, match="outlast the process"):
        ExperienceLibrary(url)
