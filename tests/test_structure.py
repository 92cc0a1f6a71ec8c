"""Who may include whom, what may lie where, and how the kernels are compiled."""

import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_INCLUDE = {  # backend.h counts as a folder of its own
    "base": {"base"},
    "backend.h": {"base"},
    "cpu": {"base", "backend.h", "cpu"},
    "cuda": {"base", "backend.h", "cuda"},
    "nn": {"base", "backend.h", "nn"},
    "bridge": {"base", "backend.h", "nn", "bridge"},
    "exact": {"base", "backend.h", "exact"},
    "py": {"base", "backend.h", "cpu", "cuda", "nn", "bridge", "exact", "py"},
}
PYTHON = re.compile(r"Python\.h|numpy/")
CUDA = re.compile(r"cuda|cudnn|cublas|nvrtc|curand|nccl")
MAX_LINES = 550
TOP = {
    *("setup.py", "pyproject.toml", "csrc", "kernels", "dsb", "notebooks", "tests", "conda.yaml"),
    *("README.md", "LICENSE", "Makefile", "CHANGELOG.md", "MANIFEST.in", "bench", "docs", ".ci"),
}

needs_source = pytest.mark.skipif(
    not (ROOT / "csrc").is_dir(), reason="csrc is not here: these tests run from an installed wheel"
)


def sources(root: Path, pattern: str = "*.[ch]") -> list[Path]:
    return sorted((root / "csrc").rglob(pattern))


def include_faults(root: Path) -> list[str]:
    faults = []
    for path in sources(root):
        place = path.relative_to(root / "csrc")
        for kind, name in re.findall(r'^\s*#\s*include\s*([<"])([^>"]+)', path.read_text(), re.M):
            if kind == '"':
                allowed = name.split("/")[0] in MAY_INCLUDE[place.parts[0]]
            elif PYTHON.search(name):
                allowed = place.parts[0] == "py"
            elif CUDA.search(name):
                allowed = place.parts[0] == "cuda"
            else:
                allowed = not (root / "csrc" / name).exists()  # ours are written with quotes
            if not allowed:
                faults.append(f"{place} may not include {name}")
    return faults


def name_faults(root: Path) -> list[str]:
    count = Counter(path.name for path in sources(root))
    return [f"{name} exists {n} times" for name, n in count.items() if n > 1]


def length_faults(root: Path) -> list[str]:
    paths = [*sources(root), *sources(root, "*.py"), *sorted((root / "dsb").rglob("*.py"))]
    lines = {path: path.read_text().count("\n") for path in paths}
    return [f"{path.relative_to(root)} has {n} lines" for path, n in lines.items() if n > MAX_LINES]


def top_faults(names: set[str]) -> list[str]:
    return [f"{name} may not lie at the top" for name in sorted(names - TOP) if name[0] != "."]


@needs_source
@pytest.mark.parametrize("rule", [include_faults, name_faults, length_faults])
def test_rule(rule):
    assert sources(ROOT)
    assert rule(ROOT) == []


@pytest.mark.parametrize(
    ("rule", "path", "text", "fault"),
    [
        (include_faults, "csrc/base/a.c", '#include "backend.h"\n', "a.c may not"),
        (include_faults, "csrc/backend.h", '#include "nn/net.h"\n', "backend.h may not"),
        (include_faults, "csrc/cpu/a.c", '# include "nn/net.h"\n', "a.c may not"),
        (include_faults, "csrc/nn/a.c", '#include "cpu/gemm.h"\n', "a.c may not"),
        (include_faults, "csrc/nn/a.c", '#include "bridge/cache.h"\n', "a.c may not"),
        (include_faults, "csrc/bridge/a.c", '#include "py/module.h"\n', "a.c may not"),
        (include_faults, "csrc/bridge/a.c", "#include <Python.h>\n", "a.c may not"),
        (include_faults, "csrc/nn/a.h", "#include <numpy/arrayobject.h>\n", "a.h may not"),
        (include_faults, "csrc/py/a.c", "#include <cuda_runtime.h>\n", "a.c may not"),
        (name_faults, "csrc/nn/status.c", "", "status.c exists 2 times"),
        (length_faults, "csrc/nn/a.c", "\n" * (MAX_LINES + 1), "a.c has"),
    ],
)
def test_rule_can_fail(tmp_path, rule, path, text, fault):
    for file, content in [("csrc/base/status.c", '#include "base/status.h"\n'), (path, text)]:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(content)
    assert [fault in found for found in rule(tmp_path)] == [True]


def test_top_level():
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout: what is built cannot be told from what belongs here")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert top_faults({line.split("/")[0] for line in listed.splitlines()}) == []
    assert top_faults({"dsb", ".github", "notes.txt"}) == ["notes.txt may not lie at the top"]


@needs_source
def test_kernels_use_the_instruction_sets():
    """A lost flag leaves a GEMM right and several times slower: only its code tells."""
    sys.path.insert(0, str(ROOT / "csrc"))
    import recipe

    cc = recipe.compiler()
    if shutil.which(cc[0]) is None or shutil.which("objdump") is None:
        pytest.skip("the compiler or objdump is missing")
    if recipe.machine(cc) != "x86_64":
        pytest.skip("reads x86-64 code")

    kernels = [unit for unit in recipe.units(cc) if unit.source.name == "gemm.c"]
    code = {}
    for unit, path in zip(kernels, recipe.compile_units(kernels, cc, "plain"), strict=True):
        command = ["objdump", "-d", "--no-show-raw-insn", path]
        code[unit.isa] = subprocess.check_output(command, cwd=ROOT, text=True)
    assert re.search(r"vfmadd\w+ps.*%zmm", code["v4"])
    assert re.search(r"vfmadd\w+ps.*%ymm", code["v3"])
    assert "%zmm" not in code["v3"]
    assert not re.search(r"vfmadd|%[yz]mm", code["v2"])  # and so the patterns can fail
