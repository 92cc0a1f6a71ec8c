"""A side of the comparison in a process of its own, commanded over a pipe.

While one side works the others sleep, so that nobody's spinning threads take another's processor.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


class Worker:
    """The process behind bench/<script>.py."""

    def __init__(
        self,
        script: str,
        threads: int,
        problem: Path,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        settings = os.environ | {
            "OMP_NUM_THREADS": str(threads),
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(
                filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")])
            ),
        }
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / f"{script}.py"), str(threads), str(problem), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=settings | dict(environment or {}),
            start_new_session=True,  # so that abandon() ends the compilers that it has started
        )

    def begin(self, name: str, **arguments: Any) -> None:
        """Starts a handler there."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([name, arguments]) + "\n")
        self._process.stdin.flush()

    def finish(self, limit: float | None = None) -> Any:
        """What the handler returns; TimeoutError where that takes longer than `limit` seconds."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], limit)[0]:
            raise TimeoutError(f"more than {limit:.0f} s")
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self._process.args!r} has ended; see its message above")
        return json.loads(answer)

    def call(self, name: str, **arguments: Any) -> Any:
        """Runs a handler there and returns what it returns."""
        self.begin(name, **arguments)
        return self.finish()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def abandon(self) -> None:
        """Ends the process and all that it has started, whatever they do."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def serve(handlers: Mapping[str, Callable[..., Any]]) -> None:
    """Answers calls until the pipe is closed; what else is printed goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        name, arguments = json.loads(line)
        answers.write(json.dumps(handlers[name](**arguments)) + "\n")
        answers.flush()
