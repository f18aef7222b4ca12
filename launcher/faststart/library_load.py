"""Loads torch's shared libraries in a thread while this process imports Python modules, before it imports torch.

A sixth of `import torch` is the loader's work on libtorch: relocations, and the registration of operators. It needs no
interpreter lock. The order of loading changes nothing: of the symbols that libtorch and libtorch_python both define,
all that hold state are unique in a process (STB_GNU_UNIQUE), and the others are tables of virtual functions and types
(torch 2.13, CPU build; never tried with a CUDA build).
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from launcher import env, process
from launcher.garbage import no_garbage_collection

# As torch's import loads them: the first one's symbols are for all libraries (torch/__init__.py, _load_global_deps).
LIBRARIES = {"libtorch_global_deps.so": os.RTLD_GLOBAL, "libtorch.so": os.RTLD_LOCAL}
# What `import torch` imports, and this process anyway. While the loader works on one library it takes no second one, so
# modules with a library of their own come before it, and those of Python alone meanwhile.
WITH_LIBRARIES = ("_asyncio", "_blake2", "_bz2", "_contextvars", "_csv", "_datetime", "_hashlib", "_lzma",
                  "_multiprocessing", "_pickle", "_posixshmem", "_queue", "_ssl", "_uuid", "binascii", "cmath", "grp",
                  "termios", "unicodedata", "zlib")  # fmt: skip
WITHOUT = ("torchgen.model", "asyncio", "concurrent.futures", "http.client", "importlib.metadata", "logging",
           "multiprocessing.connection", "pickletools", "tarfile", "tqdm", "typing_extensions", "unittest.mock",
           "urllib.request", "zipfile")  # fmt: skip
THREAD_ENDS_S = 1.0  # to leave the kernel, too, before this process forks


def possible() -> bool:
    """Return whether this process may fork and has not imported torch yet."""
    return "torch" not in sys.modules and process.has_one_thread()


@contextmanager
def loading() -> Iterator[None]:
    """Load torch's libraries during the block, which imports other modules. The process then has one thread again.

    A library that cannot be loaded is left to `import torch`, which gives the reason.
    """
    with env.overridden(env.SINGLE_THREADED), no_garbage_collection():
        _import(WITH_LIBRARIES)
        thread = threading.Thread(target=_load, args=(_folder(),), daemon=True)
        thread.start()
        yield
        _import(WITHOUT)
        thread.join()
        process.has_one_thread(within_s=THREAD_ENDS_S)


def _import(names: Iterable[str]) -> None:
    """Import what is there; torch's import says what it needs and lacks."""
    for name in names:
        with suppress(ImportError):
            import_module(name)


def _folder() -> Path | None:
    spec = find_spec("torch")
    return Path(spec.origin).parent / "lib" if spec is not None and spec.origin else None


def _load(folder: Path | None) -> None:
    """Call the loader as a foreign function, which releases the interpreter lock; ctypes.CDLL(path) keeps it."""
    loader = getattr(ctypes.CDLL(None), "dlopen", None)
    if folder is None or loader is None or env.get("TORCH_USE_RTLD_GLOBAL"):
        return
    loader.argtypes, loader.restype = (ctypes.c_char_p, ctypes.c_int), ctypes.c_void_p
    for name, scope in LIBRARIES.items():
        loader(os.fsencode(folder / name), os.RTLD_NOW | scope)
