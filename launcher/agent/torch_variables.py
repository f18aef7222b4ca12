"""Variables that torch reads at import, for ranks that imported it before the script began.

A script may set some of them first, as in `os.environ["OMP_NUM_THREADS"] = "4"; import torch`. If torch allows it, they
are applied at that import (`hide_torch`). Others are found in the script's source, and the script is then started by
spawn (`needs_new_interpreter`). What neither finds, such as a value set in an imported module, is named on stderr.
"""

from __future__ import annotations

import ast
import ctypes
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from launcher import env
from launcher.console import notify
from launcher.text import whole_number

# What `import torch, torch.distributed` reads, by a trace of os.environ and of getenv (torch 2.13, CPU build; a test
# compares the list with both). Those of CUDA builds are from c10/cuda/CUDACachingAllocator.cpp and ATen/Context.h.
FAMILIES = ("GOMP_", "KMP_", "MKLDNN_", "MKL_", "NPY_", "OMP_", "ONEDNN_", "OPENBLAS_", "PYTORCH_JIT", "TORCHEXPORT_",
            "TORCH_BLAS_", "TORCH_COMPILE_", "TORCH_LINALG_", "TORCH_LOGS")  # fmt: skip
READ_AT_IMPORT = {
    "COMPILE_STROBELIGHT_FRAME_FILTER", "COMPILE_STROBELIGHT_MAX_PROFILE_TIME", "COMPILE_STROBELIGHT_MAX_STACK_LENGTH",
    "COMPILE_STROBELIGHT_SAMPLE_RATE", "DNNL_DEFAULT_FPMATH_MODE", "FX_NET_ACC_SPLITTER_TRACKER_DUMP_PATH",
    "FX_NET_ACC_SPLITTER_TRACKER_MODE", "FX_PATCH_GETITEM", "GOTO_NUM_THREADS", "INTEL_LIBITTNOTIFY64",
    "KINETO_USE_DAEMON", "NUMPY_MADVISE_HUGEPAGE", "NUMPY_WARN_IF_NO_MEM_POLICY", "PYTORCH_ALLOC_CONF",
    "PYTORCH_API_USAGE_STDERR", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_MATCHER_LOGLEVEL",
    "TORCHDYNAMO_EXTENDED_DEBUG_CPP", "TORCHDYNAMO_EXTENDED_DEBUG_CREATE_SYMBOL",
    "TORCHDYNAMO_EXTENDED_DEBUG_GUARD_ADDED", "TORCHDYNAMO_NO_DATA_DEPENDENT_GRAPH_BREAK",
    "TORCHDYNAMO_TRANSLATION_NO_BISECT", "TORCHDYNAMO_TRANSLATION_VALIDATION",
    "TORCHDYNAMO_TRANSLATION_VALIDATION_TIMEOUT", "TORCHINDUCTOR_FORCE_DISABLE_CACHES",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "TORCH_CPP_LOG_LEVEL", "TORCH_CUDAGRAPH_GC", "TORCH_CUDA_SANITIZER",
    "TORCH_CUSTOM_TERMINATE", "TORCH_DEVICE_BACKEND_AUTOLOAD", "TORCH_DISTRIBUTED_COMPILE_ON_ONE_RANK",
    "TORCH_DISTRIBUTED_DEBUG", "TORCH_DISTRIBUTED_USE_TORCHCOMMS", "TORCH_DTRACE", "TORCH_ENRICH_RPOFILER_STACK_TRACE",
    "TORCH_FAKE_TENSOR_DEBUG", "TORCH_PYTHON_NATIVE_USER_GRAPH_ORDER_FN", "TORCH_ROCM_FA_PREFER_CK",
    "TORCH_SHOW_CPP_STACKTRACES", "TORCH_TRACE", "TORCH_USE_RTLD_GLOBAL",
}  # fmt: skip
THREADS = ("MKL_NUM_THREADS", "OMP_NUM_THREADS")  # the first that is set counts: at::init_num_threads
OPENBLAS_THREADS = ("OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS")
# Those of numpy's and scipy's wheels, and of a system's library.
OPENBLAS_SETTERS = ("scipy_openblas_set_num_threads64_", "scipy_openblas_set_num_threads", "openblas_set_num_threads")
LOGGING = {"TORCH_LOGS", "TORCH_LOGS_FORMAT", "TORCH_LOGS_OUT"}
DEBUG = "TORCH_DISTRIBUTED_DEBUG"
HONOURED = {*THREADS, *LOGGING, DEBUG}


def is_read_at_import(name: str) -> bool:
    """Return whether torch, or a library that it loads, reads this variable at import."""
    return name in READ_AT_IMPORT or name.startswith(FAMILIES)


def read_too_early(variables: Mapping[str, str]) -> list[str]:
    """Those that a torch which is imported here has read before they were set; threads are set in every rank again."""
    if "torch" not in sys.modules:
        return []
    here = env.environment()
    return sorted(
        name
        for name, value in variables.items()
        if is_read_at_import(name) and name not in {*THREADS, *OPENBLAS_THREADS} and here.get(name) != value
    )


def needs_new_interpreter(source: str | bytes) -> list[str]:
    """Return variables that a script sets before it imports torch and that only a new interpreter can apply."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # the rank will report it
        return []
    end = min(_lines_of_torch(tree), default=sys.maxsize)
    names = {name for name, line in _variables_set(tree) if line < end}
    return sorted(name for name in names - HONOURED if is_read_at_import(name))


def _lines_of_torch(tree: ast.Module) -> Iterator[int]:
    """Yield the lines where torch is imported at the top level of the script."""
    for node in tree.body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if any(name.partition(".")[0] == "torch" for name in names):
            yield node.lineno


def _variables_set(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """(name, line) of environ["NAME"] = …, environ.setdefault("NAME", …), putenv("NAME", …) and environ.update(…)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store) and _is_environ(node.value):
            found: list[ast.expr | None] = [node.slice]
        elif isinstance(node, ast.AugAssign) and _is_environ(node.target):
            found = [*node.value.keys] if isinstance(node.value, ast.Dict) else []
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield from ((word.arg, node.lineno) for word in node.keywords if word.arg and _is_environ(node.func.value))
            found = _names_in_call(node, node.func)
        else:
            continue
        yield from ((n.value, n.lineno) for n in found if isinstance(n, ast.Constant) and isinstance(n.value, str))


def _names_in_call(call: ast.Call, function: ast.Attribute) -> list[ast.expr | None]:
    if function.attr == "putenv" or (function.attr == "setdefault" and _is_environ(function.value)):
        return [*call.args[:1]]
    if function.attr == "update" and _is_environ(function.value):
        return [key for argument in call.args if isinstance(argument, ast.Dict) for key in argument.keys]
    return []


def _is_environ(node: ast.expr) -> bool:
    """Return whether a node is `os.environ`, or a name of it."""
    return (isinstance(node, ast.Attribute) and node.attr == "environ") or (
        isinstance(node, ast.Name) and node.id == "environ"
    )


def hide_torch() -> None:
    """Make the script's first `import torch` apply the variables as they are then, as a real import would."""
    hidden = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "torch"}
    if "torch" not in hidden:
        return
    for name in hidden:
        del sys.modules[name]
    sys.meta_path.insert(0, _HiddenTorch(hidden, _read_now()))


class _HiddenTorch(MetaPathFinder, Loader):
    """Restores all of torch when any part of it is imported."""

    def __init__(self, hidden: Mapping[str, ModuleType], before: Mapping[str, str]) -> None:
        self._hidden, self._before = hidden, before

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in self._hidden else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = self._hidden[spec.name]
        self._own_spec = module.__spec__  # the import system replaces it by the one of find_spec
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._own_spec
        sys.meta_path.remove(self)
        sys.modules.update(self._hidden)
        _honour(self._hidden["torch"], self._before)


def _read_now() -> dict[str, str]:
    return {name: value for name, value in env.environment().items() if is_read_at_import(name)}


def _honour(torch: Any, before: Mapping[str, str]) -> None:
    """Apply changed variables as torch's import would, or report that it is impossible."""
    now = _read_now()
    changed = {name for name in {*before, *now} if before.get(name) != now.get(name)}
    if changed & {*THREADS}:
        set_threads(torch)
    if changed & LOGGING:
        torch._logging._internal._init_logs()
    if DEBUG in changed:
        torch.distributed.set_debug_level_from_env()
    if late := sorted(changed - HONOURED):
        notify(
            f"{', '.join(late)}: set before `import torch`, but torch was imported before this script began and reads "
            "it only at import: set it in the shell, or start with launch.start=spawn"
        )


def set_threads(torch: Any) -> None:
    """Set the threads of torch's operators and numpy from the variables that both would read, at most one per core.

    torch's are not limited without MKL, which applies that limit.
    """
    if count := _first_number(THREADS):
        torch.set_num_threads(min(count, env.usable_cores()) if torch.backends.mkl.is_available() else count)
    if count := _first_number(OPENBLAS_THREADS):
        for library in _loaded("openblas"):
            for name in OPENBLAS_SETTERS:
                if setter := getattr(library, name, None):
                    setter(min(count, env.usable_cores()))


def _first_number(names: Sequence[str]) -> int | None:
    numbers = [whole_number((env.get(name) or "").partition(",")[0].strip()) for name in names]
    return next((number for number in numbers if number), None)


def _loaded(word: str) -> list[ctypes.CDLL]:
    """Return shared libraries of this process with a word in their name."""
    maps = os.fsdecode(Path("/proc/self/maps").read_bytes())
    paths = {line.split(maxsplit=5)[-1] for line in maps.split("\n") if word in line}
    return [ctypes.CDLL(path) for path in sorted(paths)]
