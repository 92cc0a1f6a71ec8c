"""The notebooks run, and what is stored in them belongs to their code.

They run in this process and without Jupyter, see run_notebook.py: a failing cell then has an ordinary
traceback, and nothing has to be installed that the notebooks do not use. Settings that take seconds
(DSB_QUICK) are enough for what the text says about exact answers; what it says about training is checked
on the stored outputs.
"""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import numpy as np
import pytest
import run_notebook as runner

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MOST_BYTES = 600_000

pytestmark = pytest.mark.skipif(not NOTEBOOKS, reason="the notebooks are not here")


def printed(cell):
    return "".join(text for out in cell["outputs"] for text in out.get("text", []))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_outputs_belong_to_the_code(path):
    stored = runner.read(path)
    assert stored["metadata"]["dsb"]["sha256_of_code"] == runner.digest(stored), (
        f"its code was changed and not run: python tests/run_notebook.py notebooks/{path.name}"
    )
    cells = runner.code_cells(stored)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kinds = [out["output_type"] for cell in cells for out in cell["outputs"]]
    assert set(kinds) == {"stream", "execute_result"}
    assert path.stat().st_size < MOST_BYTES
    assert "/home/" not in path.read_text()
    assert "/tmp/" not in path.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path, monkeypatch):
    """Every cell, with as many pictures as are stored."""
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("DSB_QUICK", "1")
    fresh, stored = runner.read(path), runner.read(path)
    runner.execute(fresh, path)
    for now, before in zip(runner.code_cells(fresh), runner.code_cells(stored), strict=True):
        kinds = [[sorted(out.get("data", [])) for out in cell["outputs"]] for cell in (now, before)]
        assert kinds[0] == kinds[1]
    pictures = [
        base64.b64decode(out["data"]["image/png"])
        for cell in runner.code_cells(fresh)
        for out in cell["outputs"]
        if "image/png" in out.get("data", {})
    ]
    assert pictures
    assert all(picture.startswith(b"\x89PNG") and len(picture) > 10_000 for picture in pictures)


def table(text, first):
    """Numbers of the line that starts with these words."""
    (line,) = [line for line in text.splitlines() if " ".join(line.split()).startswith(first)]
    return [float(word) for word in re.findall(r"-?\d+\.\d+", line)]


def test_what_03_says_is_in_its_outputs():
    stored = runner.read(FOLDER / "03_is_it_right.ipynb")
    told = "\n".join(map(printed, runner.code_cells(stored)))
    assert "Cov(X_0, X_N) of the bridge: 0.618034" in told
    third, last = table(told, "3 "), table(told, "1000 ")
    assert abs(third[0] - last[0]) < 0.01 * last[0]  # ends that stand still
    assert abs(third[1] - last[1]) < 0.01 * last[1]
    assert last[2] < 0.82 * third[2]  # a coupling that loses a fifth
    for line in ("simplified full", "bridge full"):
        np.testing.assert_allclose(table(told, line)[4:], 0.618, atol=5e-4)
    for line in ("dsb reference", "dsb full", "simplified reference"):
        assert table(told, line)[-1] < 0.54
    pinned = table(told, "bridge reference")
    assert pinned[4] == pinned[-1] and 0.58 < pinned[-1] < 0.66  # off, but it stays
    results = [
        "".join(out["data"]["text/plain"])
        for cell in runner.code_cells(stored)
        for out in cell["outputs"]
        if "data" in out
    ]
    (mixture,) = [text for text in results if "path_kl" in text]
    forward = [line.split()[-3:] for line in mixture.splitlines()[1:] if "forward" in line]
    kl, unexplained = (np.array([row[i] for row in forward], float) for i in (1, 2))
    assert kl.argmin() == 1
    assert unexplained.argmin() == 2
    assert (np.diff(kl[1:]) > 0).all()
    assert (np.diff(unexplained[2:]) > 0).all()


# ---- the runner ----


def cell(text):
    return {"cell_type": "code", "source": text.splitlines(keepends=True), "outputs": []}


def made(*texts):
    return {"cells": [cell(text) for text in texts], "metadata": {}}


def test_the_runner_stores_what_jupyter_would(tmp_path):
    class Picture:
        def _repr_png_(self):
            return b"png"

    texts = [
        "import os\nx = 3\nprint('a')\nprint('b')",
        "x + 1",
        "x;",
        "x = 4",
        "def f():\n    return x",
    ]
    notebook = made(*texts, "f()", "# nothing")
    names = runner.execute(notebook, tmp_path / "a.ipynb")
    assert names["x"] == 4
    outputs = [c["outputs"] for c in notebook["cells"]]
    assert outputs[0] == [{"name": "stdout", "output_type": "stream", "text": ["a\n", "b\n"]}]
    assert outputs[1][0]["data"] == {"text/plain": ["4"]}
    assert outputs[2:5] == [[], [], []]
    assert outputs[5][0]["data"] == {"text/plain": ["4"]}
    assert outputs[6] == []
    assert runner.shown(Picture())["image/png"] == base64.b64encode(b"png").decode() + "\n"
    path = tmp_path / "b.ipynb"
    path.write_text(json.dumps(made("1 + 1")))
    runner.main([str(path)])
    again = runner.read(path)
    assert again["metadata"]["dsb"]["sha256_of_code"] == runner.digest(again)
    assert runner.digest(made("1 + 2")) != runner.digest(again)


def test_the_runner_passes_errors_on(tmp_path):
    with pytest.raises(ZeroDivisionError) as error:
        runner.execute(made("x = 1", "1 / (x - 1)"), tmp_path / "a.ipynb")
    assert str(error.traceback[-1].path) == "a.ipynb, cell 2"
