"""Runs a notebook's code in plain Python and stores what it shows, as Jupyter would.

    python tests/run_notebook.py notebooks/03_is_it_right.ipynb

The notebooks keep to what needs no Jupyter: no magics, and figures that are the last expression of a cell.
So the tests run them with nothing installed, in this process, where an error has an ordinary traceback.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import hashlib
import io
import json
import sys
from pathlib import Path
from typing import Any

Notebook = dict[str, Any]


def read(path: Path) -> Notebook:
    notebook: Notebook = json.loads(path.read_text(encoding="utf-8"))
    return notebook


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def code_cells(notebook: Notebook) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def digest(notebook: Notebook) -> str:
    """Of all code: tells whether the outputs belong to it."""
    code = "\n\n".join(map(source, code_cells(notebook)))
    return hashlib.sha256(code.encode()).hexdigest()


def execute(notebook: Notebook, path: Path) -> dict[str, Any]:
    """Runs every cell, fills in its outputs, and gives the namespace that is left."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(code_cells(notebook), 1):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            value = run(source(cell), f"{path.name}, cell {number}", names)
        cell["execution_count"] = number
        cell["outputs"] = []
        if printed.getvalue():
            text = printed.getvalue().splitlines(keepends=True)
            cell["outputs"].append({"name": "stdout", "output_type": "stream", "text": text})
        if value is not None:
            told = {"data": shown(value), "execution_count": number, "metadata": {}}
            cell["outputs"].append({"output_type": "execute_result", **told})
    notebook["metadata"]["dsb"] = {"sha256_of_code": digest(notebook)}
    return names


def run(code: str, name: str, names: dict[str, Any]) -> object:
    """The value of the last expression; None where a statement or a semicolon ends the cell."""
    body = ast.parse(code, name).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), name, "exec"), names)
    if last is None:
        return None
    value = eval(compile(ast.Expression(last.value), name, "eval"), names)
    return None if code.rstrip().endswith(";") else value


def shown(value: Any) -> dict[str, Any]:
    data: dict[str, Any] = {"text/plain": repr(value).splitlines(keepends=True)}
    if hasattr(value, "_repr_png_"):
        data["image/png"] = base64.b64encode(value._repr_png_()).decode() + "\n"
    return data


def main(paths: list[str]) -> None:
    for path in map(Path, paths):
        notebook = read(path)
        execute(notebook, path)
        text = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True)
        path.write_text(text + "\n", encoding="utf-8")
        print(f"{path}: {len(text) / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
