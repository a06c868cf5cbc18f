"""Each notebook runs from top to bottom, as a newcomer runs it, and shows what is committed."""

from __future__ import annotations

import re

import nbformat
import pytest

from notebooks.execute import FOLDER, NOTEBOOKS, execute, problems, refresh, text_of
from tests import ROOT

pytestmark = pytest.mark.docs

STAND_INS = ["02_experience_library", "03_your_own_program"]
REAL = ["01_quickstart", "04_compare_runs_in_mlflow"]


def committed(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(notebook):
    """The text of every code cell's outputs."""
    return ["\n".join(map(text_of, cell.outputs)) for cell in code_cells(notebook)]


def kinds(notebook):
    """What sort of things every code cell shows: text, tables, pictures."""
    return [[sorted(output.get("data", {"stream": ""})) for output in cell.outputs] for cell in code_cells(notebook)]


def tables(notebook):
    """Every table, in order, as {row name: {column: text}}."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return [table_of(html) for output in outputs if (html := output.get("data", {}).get("text/html"))]


def table_with(row, notebook):
    """The last table that has a row of this name."""
    return next(table for table in reversed(tables(notebook)) if row in table)


def table_of(html):
    head, body = html.split("<tbody>")
    columns = re.findall(r"<th>(.*?)</th>", head.split("</tr>")[0])[1:]
    rows = {}
    for row in re.findall(r"<tr>(.*?)</tr>", body, re.S):
        name = re.search(r"<th>(.*?)</th>", row)[1]
        rows[name] = dict(zip(columns, re.findall(r"<td>(.*?)</td>", row, re.S), strict=True))
    return rows


def test_there_are_four_in_reading_order():
    assert [path.stem for path in NOTEBOOKS] == sorted([*STAND_INS, *REAL])


@pytest.mark.parametrize("name", [*STAND_INS, *REAL])
def test_what_is_committed_was_run_and_is_clean(name):
    notebook = committed(name)
    assert problems(notebook) == []
    numbers = [cell.execution_count for cell in code_cells(notebook)]
    assert numbers == list(range(1, len(numbers) + 1)), "run from top to bottom, in one go"
    assert tables(notebook)
    assert any(kind.startswith("image/") for cell in kinds(notebook) for output in cell for kind in output)


@pytest.mark.parametrize("name", [*STAND_INS, *REAL])
def test_it_tells_a_story(name):
    cells = committed(name).cells
    assert cells[0].source.startswith("# ")
    assert "## Where next" in cells[-1].source
    links = re.findall(r"\]\(([^)#:]+)\)", "\n".join(cell.source for cell in cells if cell.cell_type == "markdown"))
    assert links
    assert [link for link in links if not (FOLDER / link).exists()] == []


@pytest.mark.parametrize("name", STAND_INS)
def test_the_same_comes_out_again(name):
    saved = committed(name)  # run in notebooks/; here, in the root
    fresh = execute(saved, ROOT)
    assert shown(fresh) == shown(saved)
    assert kinds(fresh) == kinds(saved)


def run_again(name):
    """Execute a notebook whose numbers depend on floating point; what it shows must be of the same kinds."""
    saved = committed(name)
    fresh = execute(saved, FOLDER)
    assert problems(fresh) == []
    assert kinds(fresh) == kinds(saved)
    return fresh


def number(text):
    return float(text.strip("%"))


@pytest.mark.local
@pytest.mark.timeout(3600)  # two minutes alone, many more on a busy machine
def test_the_quickstart_learns():
    fresh = run_again("01_quickstart")
    scores = table_with("untrained", fresh)
    assert {row["of"] for row in scores.values()} == {"24"}
    assert number(scores["trained"]["right"]) > number(scores["untrained"]["right"])
    agents = [table for table in tables(fresh) if set(table) == {"reader", "tracker", "reporter"}]
    gains = next(table for table in agents if "gain by its training" in table["reporter"])
    assert number(gains["reporter"]["gain by its training"].split()[0]) > 0
    rows = next(table for table in agents if "training rows" in table["reporter"])
    assert all(int(row["training rows"]) > 0 for row in rows.values())
    assert any(re.search(r"label rung, \w+: .*: repaired", text) for text in shown(fresh))


@pytest.mark.local
@pytest.mark.timeout(3600)
def test_mlflow_has_every_method():
    fresh, saved = run_again("04_compare_runs_in_mlflow"), committed("04_compare_runs_in_mlflow")
    found, known = table_with("SiriuS", fresh), table_with("SiriuS", saved)
    assert list(found) == list(known)
    accuracies = next(table for table in tables(fresh) if "accuracy" in table.get("SiriuS", {}))
    assert len(accuracies) == 6
    for row in accuracies.values():
        assert row["questions"] == "32"
        assert number(row["low"]) <= number(row["accuracy"]) <= number(row["high"])
    assert accuracies["BootstrapFinetune shared"]["LM calls before the test"] != "0"


# The script that writes the outputs


def test_outputs_are_written_only_if_they_are_clean(tmp_path):
    path = tmp_path / "new.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("6 * 7")]), path)
    assert refresh(path) == []
    assert shown(nbformat.read(path, as_version=4)) == ["\n42"]
    unclean = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("import warnings; warnings.warn('Oh')")])
    nbformat.write(unclean, path)
    before = path.read_bytes()
    assert "Oh" in refresh(path)[0]
    assert path.read_bytes() == before


def test_unclean_outputs_are_found():
    def with_output(**output):
        cell = nbformat.v4.new_code_cell("1", execution_count=1, outputs=[nbformat.v4.new_output(**output)])
        return problems(nbformat.v4.new_notebook(cells=[cell]))

    harmless = "12 of 40, see runs/x and 3/4, https://a.b/tmp/c"
    assert with_output(output_type="stream", name="stdout", text=harmless) == []
    unclean = ["/home/me/x", "file:///root/x", "saved in '/tmp/tmpab12'", "sk-abcdef123456", "\x1b[31mred", "5.1it/s]"]
    for text in unclean:
        assert len(with_output(output_type="stream", name="stdout", text=text)) == 1, text
        assert len(with_output(output_type="display_data", data={"text/html": f"<b>{text}</b>"})) == 1, text
    assert with_output(output_type="stream", name="stderr", text="a warning")
    assert with_output(output_type="error", ename="E", evalue="", traceback=["E"])
    never_run = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")])
    assert problems(never_run) == ["cell 1 was not run"]
