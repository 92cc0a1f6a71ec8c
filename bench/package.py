"""What the package itself costs: its import, its wheel, its demonstration."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMPORT = """
import time, numpy
start = time.perf_counter()
import dsb
print(time.perf_counter() - start)
"""
NOT_SOURCE = (".git", ".venv", "build", "dist", "*.so", "*.egg-info", "__pycache__", ".*_cache")


def environment() -> dict[str, str]:
    """Byte code may be written, as for everyone who has not forbidden it: else it is timed too."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return kept | {"PYTHONPATH": str(ROOT), "DSB_WERROR": "0"}


def import_seconds(repeats: int) -> float:
    """Of `import dsb` where NumPy is imported already: median of fresh processes."""

    def once() -> float:
        command = [sys.executable, "-c", IMPORT]
        done = subprocess.run(command, capture_output=True, text=True, env=environment())
        if done.returncode != 0:
            raise RuntimeError(done.stderr)
        return float(done.stdout)

    once()  # writes the byte code, fills the file cache
    return statistics.median(once() for _ in range(repeats))


def wheel_bytes() -> int:
    """Of the wheel, built from a copy of the tree."""
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / "tree"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*NOT_SOURCE))
        command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "-q", "-w", name]
        # Without isolation where setuptools is at hand, so that nothing is downloaded.
        for extra in (["--no-build-isolation"], []):
            done = subprocess.run([*command, *extra], cwd=copy, capture_output=True, text=True)
            if done.returncode == 0:
                return next(Path(name).glob("*.whl")).stat().st_size
        raise RuntimeError(done.stderr)


def demo_seconds() -> float:
    """Of the demonstration, from start to pictures."""
    with tempfile.TemporaryDirectory() as name:
        start = time.perf_counter()
        command = [sys.executable, "-m", "dsb.demo"]
        done = subprocess.run(command, cwd=name, capture_output=True, text=True, env=environment())
        if done.returncode != 0:
            raise RuntimeError(done.stderr)
        return time.perf_counter() - start
