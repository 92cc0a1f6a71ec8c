"""The tests of the C core that are written in C; `make sanitize` runs them under the sanitizers."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
CC = shlex.split(os.environ.get("CC", "")) or ["cc"]


@pytest.mark.skipif(not (HERE.parents[1] / "csrc").is_dir(), reason="csrc is not here")
@pytest.mark.skipif(shutil.which(CC[0]) is None, reason=f"the compiler '{CC[0]}' is missing")
def test_c_core():
    command = [sys.executable, str(HERE / "build.py"), "plain"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    assert ": passed" in done.stdout
