"""Builds dsb._core; csrc/recipe.py says what is compiled and how, pyproject.toml the rest."""

import sys
from pathlib import Path
from subprocess import CalledProcessError

import numpy
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

# A build front end does not put the project on the path.
sys.path.insert(0, str(Path(__file__).resolve().parent / "csrc"))

import recipe

MACROS = [
    "-DNDEBUG",
    "-DPy_LIMITED_API=0x030b0000",
    "-DNPY_NO_DEPRECATED_API=NPY_2_0_API_VERSION",
    "-DNPY_TARGET_VERSION=NPY_2_0_API_VERSION",
]


class BuildCore(build_ext):
    """Compiles one source several times and watches headers, neither of which setuptools does."""

    def build_extension(self, ext: Extension) -> None:
        cc = recipe.compiler()
        lacking = recipe.missing(cc)
        if lacking is not None:
            raise CompileError(lacking)
        # -isystem: the warnings are about our code, not about NumPy's and Python's headers.
        folders = [numpy.get_include(), *self.include_dirs]
        flags = [*MACROS, *(f"-isystem{folder}" for folder in folders)]
        try:
            objects = recipe.compile_units(
                recipe.units(cc), cc, f"core-{recipe.machine(cc)}", flags
            )
            output = Path(self.get_ext_fullpath(ext.name)).absolute()
            recipe.link(objects, cc, output, ["-shared"])
        except CalledProcessError as error:
            raise CompileError(f"{error.cmd[0]} failed; its message stands above") from None


ROOT = recipe.ROOT
core = Extension(
    "dsb._core",
    sources=sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/*/*.c")),
    depends=sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/**/*.h")),
    py_limited_api=True,
)

setup(
    ext_modules=[core],
    cmdclass={"build_ext": BuildCore},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
