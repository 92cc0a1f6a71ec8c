"""Where a run took place, and how much arithmetic the machine can do at all."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PROBE_FLAGS = [*shlex.split("-std=gnu11 -O2 -ffp-contract=fast"), f"-I{ROOT / 'csrc'}"]


def say(what: str) -> None:
    """A line of progress."""
    print(f"{time.strftime('%H:%M:%S')} {what}", flush=True)


def output(*command: str) -> str:
    """What a command prints; empty where there is no such command."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=HERE)
    except OSError:
        return ""
    return done.stdout.strip()


def compiler() -> list[str]:
    return shlex.split(os.environ.get("CC", "")) or ["cc"]


def lscpu() -> dict[str, str]:
    rows = (line.partition(":") for line in output("lscpu").splitlines())
    return {key.strip(): value.strip() for key, _, value in rows}


def describe(isa: str) -> dict[str, str]:
    cpu = lscpu()
    name = cpu.get("Model name", platform.machine())
    if "CPU family" in cpu:
        name += f" (family {cpu['CPU family']}, model {cpu.get('Model', '?')})"
    commit = output("git", "rev-parse", "--short=12", "HEAD") or "unknown"
    if output("git", "status", "--porcelain", "--", "../csrc", "../dsb"):
        commit += " with changes"
    return {
        "processor": name,
        "cores": str(len(os.sched_getaffinity(0))),
        "caches": ", ".join(
            f"{k} {cpu[f'{k} cache']}" for k in ("L1d", "L2", "L3") if f"{k} cache" in cpu
        ),
        "system": f"{platform.system()} {platform.release()}",
        "compiler": output(*compiler(), "--version").partition("\n")[0],
        "instruction set": isa,
        "Python": platform.python_version(),
        "NumPy": version("numpy"),
        "PyTorch": version("torch"),
        "commit": commit,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "load before the run": f"{os.getloadavg()[0]:.2f}",
    }


def slug(machine: dict[str, str]) -> str:
    words = f"{machine['processor']} {machine['cores']} cores {machine['instruction set']}"
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def march(isa: str) -> list[str]:
    """The compiler's flags for one of the core's instruction sets."""
    level, _, extra = isa.partition("+")
    if not level.startswith("x86-64"):
        return []
    wide = ["-mprefer-vector-width=512"] if level.endswith("v4") else []
    extras = {
        "avx512bf16": ["-mavx512bf16"],
        "amx-bf16": ["-mavx512bf16", "-mamx-tile", "-mamx-bf16"],
    }
    return [f"-march={level}", *wide, *extras.get(extra, [])]


class Peak:
    """The probe of peak.c, compiled for the instruction set in use."""

    def __init__(self, isa: str, folder: Path) -> None:
        self._program = folder / f"peak-{isa}"
        source = str(HERE / "peak.c")
        command = [*compiler(), *PROBE_FLAGS, *march(isa), source]
        command += ["-o", str(self._program), "-lpthread"]
        if subprocess.run(command).returncode != 0:
            sys.exit(f"the probe does not compile: {shlex.join(command)}")

    def measure(self, threads: int, milliseconds: int, unit: str = "fma") -> float | None:
        """Floating-point operations a second; None where the machine has no such unit."""
        told = output(str(self._program), unit, str(threads), str(milliseconds))
        return 1e9 * float(told) if told else None
