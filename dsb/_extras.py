"""Packages that only some functions need, imported when these are called."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def need(module: str, extra: str, what: str) -> Any:
    """The module called `module`, which `what` needs; the optional dependencies `extra` install it.

    Raises
    ------
    ImportError
        It is not installed: the message names the command that installs it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        # A module that is there and fails for another reason is not a missing extra.
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        top = module.partition(".")[0]
        package = {"ot": "POT", "sklearn": "scikit-learn"}.get(top, top)
        raise ImportError(
            f"{what} needs {package}: pip install 'schrodinger-bridge[{extra}]'", name=error.name
        ) from error
