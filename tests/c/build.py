"""Builds the C core without Python, by the table of csrc/recipe.py, and runs its tests.

    python tests/c/build.py plain       optimised as in the wheel, with assertions
    python tests/c/build.py sanitize    under AddressSanitizer and UndefinedBehaviorSanitizer
    python tests/c/build.py cross       compiles for aarch64 (CROSS_CC, or aarch64-linux-gnu-gcc)

The program (tests/c/*.c) runs once for each instruction set that this machine has.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "csrc"))

import recipe

# No -Werror: with the sanitizers gcc warns about code that they put in.
SANITIZE = [
    "-Wno-error",
    *("-O1", "-g", "-fno-omit-frame-pointer"),
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
]
# The instruction sets as DSB_ISA= names them, each with a flag of /proc/cpuinfo that no processor
# has without the rest of its level.
MARKS = {
    "x86_64": {
        "x86-64-v2": "sse4_2",
        "x86-64-v3": "avx2",
        "x86-64-v4": "avx512vl",
        "x86-64-v4+avx512bf16": "avx512_bf16",
        "x86-64-v4+amx-bf16": "amx_bf16",
        "tiles-in-c": "sse4_2",  # the tile kernels over tiles in plain C
    },
    "aarch64": {"aarch64": "asimd", "tiles-in-c": "asimd"},
}


def tiles_granted() -> bool:
    """Whether Linux lets this process use tiles; our kernels ask in the same way."""
    sys_arch_prctl, arch_req_xcomp_perm, tile_data = 158, 0x1023, 18
    return ctypes.CDLL(None).syscall(sys_arch_prctl, arch_req_xcomp_perm, tile_data) == 0


def isas_here(machine: str) -> list[str]:
    """As csrc/cpu/cpu.c chooses them."""
    words = set(Path("/proc/cpuinfo").read_text().split())
    isas = [isa for isa, mark in MARKS[machine].items() if mark in words]
    if "AuthenticAMD" not in words and "x86-64-v4+avx512bf16" in isas:
        isas.remove("x86-64-v4+avx512bf16")  # slower than float32 on Intel's
    if "x86-64-v4+amx-bf16" in isas and not tiles_granted():
        isas.remove("x86-64-v4+amx-bf16")
    return isas


def program(kind: str) -> Path:
    """Builds build/<kind>/test_core and returns its path."""
    cc = recipe.compiler()
    extra = SANITIZE if kind == "sanitize" else []
    tests = sorted((recipe.ROOT / "tests" / "c").glob("*.c"))
    todo = recipe.units(cc, python=False)
    todo += [recipe.Unit(path.relative_to(recipe.ROOT), None, []) for path in tests]
    output = recipe.ROOT / "build" / kind / "test_core"
    recipe.link(recipe.compile_units(todo, cc, kind, extra), cc, output, extra)
    return output


def run(kind: str) -> int:
    """The number of instruction sets whose run failed."""
    path = program(kind)
    failed = 0
    for isa in isas_here(recipe.machine(recipe.compiler())):
        options = {"DSB_ISA": isa, "UBSAN_OPTIONS": "print_stacktrace=1"}
        done = subprocess.run([path], env=os.environ | options)
        print(f"{path.name} ({kind}, DSB_ISA={isa}):", "failed" if done.returncode else "passed")
        failed += done.returncode != 0
    return failed


def main(kind: str) -> int:
    if kind == "cross":
        cc = shlex.split(os.environ.get("CROSS_CC", "aarch64-linux-gnu-gcc"))
        if shutil.which(cc[0]) is None:
            sys.exit(
                f"the cross compiler '{cc[0]}' is missing. Debian, Ubuntu: sudo apt install "
                "gcc-aarch64-linux-gnu libc6-dev-arm64-cross"
            )
        objects = recipe.compile_units(recipe.units(cc, python=False), cc, "cross")
        print(f"{len(objects)} objects for {recipe.machine(cc)}")
        return 0
    return run(kind)


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in ("plain", "sanitize", "cross"):
        sys.exit(__doc__)
    try:
        sys.exit(main(sys.argv[1]))
    except subprocess.CalledProcessError as error:
        sys.exit(f"{error.cmd[0]} failed; its message stands above")
