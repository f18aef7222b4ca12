"""Variables that torch reads at import: which they are, and which scripts set them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.agent.torch_variables import HONOURED, is_read_at_import, needs_new_interpreter

# Read at import too, and of no account to a script: the machine's, the shell's, other vendors' start-up.
OTHERS = (
    "ACC_", "GFORTRAN_", "I_MPI_", "LD_", "MPI_", "OMPI_", "OPENSSL_", "PATH", "PYTHON", "SSL_", "TCMALLOC", "LANG",
    "LC_", "HOME", "XDG_", "COLUMNS", "LINES", "TMP", "TEMP", "USER", "LOGNAME", "CUDA_", "NVPL_",
)  # fmt: skip
TRACE_PYTHON = """
import json, os, sys
seen = set()
def recording(method):
    def read(self, name, *rest):
        if isinstance(name, str):
            seen.add(name)
        return method(self, name, *rest)
    return read
kind = type(os.environ)
kind.get, kind.__getitem__ = recording(kind.get), recording(kind.__getitem__)
inside = kind.__contains__
kind.__contains__ = recording(inside)
import torch, torch.distributed
print(json.dumps(sorted(seen)))
"""
GETENV = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <string.h>
#include <unistd.h>
static char *look(const char *name, const char *which) {
    write(198, name, strlen(name));
    write(198, "\\n", 1);
    return ((char *(*)(const char *))dlsym(RTLD_NEXT, which))(name);
}
char *getenv(const char *name) { return look(name, "getenv"); }
char *secure_getenv(const char *name) { return look(name, "secure_getenv"); }
"""


def unknown(names: set[str]) -> set[str]:
    return {name for name in names if not is_read_at_import(name) and not name.startswith(OTHERS)}


@pytest.mark.slow
def test_what_torch_reads_in_python_at_import_is_known() -> None:
    done = subprocess.run([sys.executable, "-c", TRACE_PYTHON], capture_output=True, text=True, check=True, timeout=240)
    read = set(json.loads(done.stdout.splitlines()[-1]))
    assert {"TORCH_LOGS", "TORCH_DEVICE_BACKEND_AUTOLOAD"} <= read
    assert unknown(read - set(os.environ)) == set()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="traces getenv with a library that it compiles")
def test_what_torch_reads_by_getenv_at_import_is_known(tmp_path: Path) -> None:
    (tmp_path / "trace.c").write_text(GETENV)
    library = tmp_path / "trace.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "trace.c", "-ldl"], check=True)

    def read(code: str) -> set[str]:
        shell = f"LD_PRELOAD={library} {sys.executable} -c '{code}' 198>{tmp_path}/names"
        subprocess.run(["bash", "-c", shell], check=True, timeout=240)
        return set((tmp_path / "names").read_text().split())

    names = read("import torch, torch.distributed") - read("pass")
    assert {"TORCH_CPP_LOG_LEVEL", "OMP_NUM_THREADS"} <= names
    assert unknown(names) == set()


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('import os\nos.environ["PYTORCH_JIT"] = "0"\nimport torch', ["PYTORCH_JIT"]),
        ('from os import environ\nenviron.setdefault("PYTORCH_JIT", "0")\nimport torch.nn', ["PYTORCH_JIT"]),
        ('import os\nos.environ.update({"NPY_X": "1"}, PYTORCH_JIT="0")', ["NPY_X", "PYTORCH_JIT"]),
        ('import os\nos.environ |= {"PYTORCH_JIT": "0"}', ["PYTORCH_JIT"]),
        ('import os\nos.putenv("PYTORCH_JIT", "0")', ["PYTORCH_JIT"]),
        ('import os\nif True:\n    os.environ["OMP_PROC_BIND"] = "close"\nfrom torch import nn', ["OMP_PROC_BIND"]),
        ('def main():\n    import os\n    os.environ["PYTORCH_JIT"] = "0"\n    import torch', ["PYTORCH_JIT"]),
        ('import torch, os\nos.environ["PYTORCH_JIT"] = "0"', []),  # in vain under torchrun too
        ('import os\nos.environ["OMP_NUM_THREADS"] = "4"\nos.environ["TORCH_LOGS"] = "dynamo"\nimport torch', []),
        ('import os\nos.environ["NCCL_DEBUG"] = os.environ["TORCH_NCCL_BLOCKING_WAIT"] = "1"', []),
        ('import os\nprint(os.environ["PYTORCH_JIT"], os.environ.get("PYTORCH_JIT"))', []),
        ('import os\nos.environ[name] = "1"', []),
        ("not python (", []),
    ],
)  # fmt: skip
def test_a_script_that_sets_what_only_a_new_interpreter_reads_is_noticed(source: str, found: list[str]) -> None:
    assert needs_new_interpreter(source) == found


def test_what_is_honoured_after_the_fork_is_read_at_import() -> None:
    assert [name for name in HONOURED if not is_read_at_import(name)] == []
