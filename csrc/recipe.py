"""How the C core is compiled: the one table behind setup.py, the C tests and the cross compiler.

A source is compiled once, except the kernel families (csrc/cpu/*.c without cpu.c), which are
compiled once for each instruction set of the machine that the compiler works for. Uses the standard
library only: it runs before anything is installed. `python csrc/recipe.py` says what this machine
lacks.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent

# Contraction is off unless a kernel asks for it: clang's default is on, and what is drawn or
# decided outside the kernels has to be the same bits in every build.
FLAGS = shlex.split(
    "-std=c11 -D_GNU_SOURCE -O3 -g0 -fPIC -fno-math-errno -ffp-contract=off"
    " -fvisibility=hidden -Icsrc"
)
WARNINGS = shlex.split("-Wall -Wextra -Wshadow -Wvla -Wstrict-prototypes -Wmissing-prototypes")
ISAS: dict[str, dict[str, list[str]]] = {
    "x86_64": {
        "v2": ["-march=x86-64-v2"],
        "v3": ["-march=x86-64-v3"],
        "v4": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
    },
    "aarch64": {"aarch64": []},
}
# Kernel families for other instruction sets than these.
AMX = ["-mamx-tile", "-mamx-bf16", "-mavx512bf16"]
V4 = ISAS["x86_64"]["v4"]
WITH_BF16 = {**ISAS, "x86_64": {**ISAS["x86_64"], "v4bf16": [*V4, "-mavx512bf16"]}}
# `twin`: the same files over tiles in plain C, for tests on machines without tiles
TILES = {
    "x86_64": {"amx": [*V4, *AMX], "twin": ["-march=x86-64-v2", "-DDSB_TILE_TWIN"]},
    "aarch64": {"twin": ["-DDSB_TILE_TWIN"]},
}
SPECIAL: dict[str, dict[str, dict[str, list[str]]]] = {
    "conv.c": WITH_BF16,
    "conv_weight.c": WITH_BF16,
    "conv_tile.c": TILES,
    "conv_tile_pack.c": TILES,
    "conv_tile_weight.c": TILES,
}
EXACT_KERNELS = {"noise.c"}  # the same bits on every machine, so nothing is contracted
LIBRARIES = ["-lm", "-lpthread"]
# The youngest thing that the kernels ask of a compiler.
SHUFFLE = """typedef float v4 __attribute__((vector_size(16)));
v4 reversed(v4 x);
v4 reversed(v4 x) { return __builtin_shufflevector(x, x, 3, 2, 1, 0); }
"""


class Unit(NamedTuple):
    """One run of the compiler."""

    source: Path  # relative to ROOT, so that no build path gets into the objects
    isa: str | None
    flags: list[str]


def compiler() -> list[str]:
    return shlex.split(os.environ.get("CC", "")) or ["cc"]


def machine(cc: Sequence[str]) -> str:
    """What `cc` compiles for, which is not what it runs on when it is a cross compiler."""
    triple = subprocess.run(
        [*cc, "-dumpmachine"], capture_output=True, text=True, check=True
    ).stdout
    name = triple.split("-")[0].strip()
    if name not in ISAS:
        sys.exit(f"dsb runs on x86-64 and aarch64; {shlex.join(cc)} compiles for {triple.strip()}")
    return name


def units(cc: Sequence[str], python: bool = True) -> list[Unit]:
    """Everything under csrc; without `python`, what needs no Python.h."""
    target = machine(cc)
    found = []
    for path in sorted((ROOT / "csrc").glob("*/*.c")):
        source, folder = path.relative_to(ROOT), path.parent.name
        if folder == "cpu" and path.name != "cpu.c":
            contract = "off" if path.name in EXACT_KERNELS else "fast"
            for isa, flags in SPECIAL.get(path.name, ISAS)[target].items():
                fixed = [f"-DDSB_ISA={isa}", f"-ffp-contract={contract}"]
                found.append(Unit(source, isa, [*flags, *fixed]))
        elif folder != "cuda" and (folder != "py" or python):
            found.append(Unit(source, None, []))
    return found


def compile_units(
    todo: Iterable[Unit], cc: Sequence[str], name: str, flags: Sequence[str] = ()
) -> list[str]:
    """Compiles into build/<name>, in parallel, what is not there yet, and returns the objects.

    An object bears the time of the youngest file that it may depend on (its source, any header,
    this table) as it was when the compiler started; any other time means that it is stale. Its
    name carries a digest of the command, so that another compiler or other flags never meet it.
    """
    folder = ROOT / "build" / name
    folder.mkdir(parents=True, exist_ok=True)
    shared = [Path(__file__), *(ROOT / "csrc").rglob("*.h")]
    youngest_shared = max(path.stat().st_mtime_ns for path in shared)
    strict = ["-Werror"] if os.environ.get("DSB_WERROR", "0") not in ("", "0") else []
    # First, so that ours win: conda's CFLAGS, for one, carry another -march and -O2.
    users = shlex.split(os.environ.get("CPPFLAGS", "") + " " + os.environ.get("CFLAGS", ""))
    common = [*cc, *users, *FLAGS, *WARNINGS, *strict]

    def run(unit: Unit) -> str:
        command = [*common, *unit.flags, *flags, "-c", str(unit.source)]
        digest = hashlib.sha256("\0".join(command).encode()).hexdigest()[:8]
        label = unit.source.stem + (f"-{unit.isa}" if unit.isa else "")
        target = folder / f"{label}-{digest}.o"
        youngest = max(youngest_shared, (ROOT / unit.source).stat().st_mtime_ns)
        if not target.exists() or target.stat().st_mtime_ns != youngest:
            # Under its final name only when whole: two builds may run at once, or be interrupted.
            part = target.with_suffix(f".{os.getpid()}")
            print(f"  {cc[0]} {unit.source}" + (f" [{unit.isa}]" if unit.isa else ""), flush=True)
            try:
                subprocess.run([*command, "-o", str(part)], cwd=ROOT, check=True)
                os.utime(part, ns=(youngest, youngest))
                part.replace(target)
            finally:
                part.unlink(missing_ok=True)
        return str(target.relative_to(ROOT))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(run, todo))


def link(
    objects: Sequence[str], cc: Sequence[str], output: str | Path, flags: Sequence[str] = ()
) -> None:
    Path(ROOT, output).parent.mkdir(parents=True, exist_ok=True)
    users = shlex.split(os.environ.get("LDFLAGS", ""))
    command = [*cc, *users, *flags, *objects, "-o", str(output), *LIBRARIES]
    subprocess.run(command, cwd=ROOT, check=True)


def missing(cc: Sequence[str]) -> str | None:
    """What this machine lacks to build dsb, with the command that installs it; None: nothing."""
    install_cc = "Debian, Ubuntu: sudo apt install gcc libc6-dev; Fedora: sudo dnf install gcc"
    if shutil.which(cc[0]) is None:
        return f"a C compiler is missing: '{cc[0]}' is not found. {install_cc}"
    for flags in ISAS[machine(cc)].values():
        command = [*cc, "-std=c11", *flags, "-fsyntax-only", "-x", "c", "-"]
        probe = subprocess.run(command, input=SHUFFLE, text=True, capture_output=True)
        if probe.returncode != 0:
            return f"'{cc[0]}' is too old: gcc 12, clang 12 or newer is needed. {install_cc}"
    command = [*cc, "-x", "c", "-", "-o", os.devnull]
    program = "#include <stdlib.h>\nint main(void) { return 0; }\n"
    if subprocess.run(command, input=program, text=True, capture_output=True).returncode != 0:
        return (
            f"'{cc[0]}' cannot build a program: the C library's headers are missing. {install_cc}"
        )
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        return (
            f"Python.h, the header for extension modules of {sys.executable}, is missing. Debian, "
            f"Ubuntu: sudo apt install python{version}-dev; Fedora: sudo dnf install python3-devel"
        )
    return None


if __name__ == "__main__":
    complaint = missing(compiler())
    if complaint is None and find_spec("ensurepip") is None:
        complaint = (
            f"the venv module of {sys.executable} is missing. "
            "Debian, Ubuntu: sudo apt install python3-venv; Fedora: sudo dnf install python3"
        )
    sys.exit(complaint)
