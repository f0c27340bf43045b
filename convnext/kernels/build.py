"""Our C, compiled for this CPU at first use by the user's compiler, and kept."""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from convnext.kernels import products
from convnext.storage.downloads import cache_folder
from convnext.storage.files import digest, writing

_SOURCES = tuple(sorted(Path(__file__).parent.glob("*.[ch]")))
_TIMEOUT = 120  # seconds for the compiler
_lock = threading.Lock()


class UnavailableError(Exception):
    """Why the library cannot be used here."""


class Library:
    """The compiled functions of a shared library: a vector holds `lanes` channels, and `products` are the matrix
    products by the type that they multiply.

    Raises:
        UnavailableError: it cannot be loaded, or PyTorch has no threads that it could share.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._functions = ctypes.CDLL(str(path))
            # Threads of our own would wait for PyTorch's, which spin for a while after each of its operations.
            self._start = ctypes.cast(ctypes.CDLL(torch._C.__file__).GOMP_parallel, ctypes.c_void_p)
            self.lanes: int = self._functions.lanes()
        except (OSError, AttributeError) as error:
            raise UnavailableError(str(error)) from None
        self.products = products.choose(path.with_suffix(".json"), self.multiply)

    def multiply(
        self, product: products.Product, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, times: int = 1
    ) -> None:
        """c = a b in each of PyTorch's threads, ``times`` times: of ``(M, K)``, ``(K, N)`` as the product takes it, and
        float32 ``(threads, M, N)``."""
        sizes = *c.shape[1:], a.shape[1], times
        self("product_alone", product.address, product.number, is_half(a), *sizes, a, b, c)

    def __call__(self, name: str, *arguments: torch.Tensor | int | float | None) -> None:
        """Call a function in PyTorch's threads; a tensor stands for its address, None for no address.

        Raises:
            MemoryError: there was none.
        """
        function = getattr(self._functions, name)
        if function(self._start, ctypes.c_uint(torch.get_num_threads()), *map(_argument, arguments)):
            raise MemoryError(f"no memory for the buffers of {name}")


def _argument(value: torch.Tensor | int | float | None) -> object:
    if isinstance(value, torch.Tensor):
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, float):
        return ctypes.c_float(value)
    return ctypes.c_void_p(None) if value is None else ctypes.c_int64(value)


def is_half(x: torch.Tensor) -> bool:
    """Whether the kernels read a tensor as bfloat16, and else as float32."""
    return x.dtype == torch.bfloat16


def library() -> Library | None:
    """The library, compiled now if it has not been; None where it cannot be used: `describe` says why."""
    with _lock:
        return _load()[0]


def compiled() -> Library:
    """The library, where it is known to be there."""
    loaded = library()
    assert loaded is not None, "kernels.usable comes first"
    return loaded


def is_kept() -> bool:
    """Whether the library has been compiled, so that its first use takes no seconds."""
    if os.environ.get("CONVNEXT_KERNELS") == "0":
        return False
    try:
        path = _path(*_compiler())
        return _is_whole(path, path.with_suffix(".sha256"))
    except (UnavailableError, OSError):
        return False


def forget() -> None:
    """Look for the library again at its next use, by the environment and the cache folder as they are then."""
    with _lock:
        _load.cache_clear()


def refuse_second_derivative() -> None:
    """Called first in each kernel's gradient.

    Raises:
        RuntimeError: the gradient is to be differentiated again, which would leave out what the kernel depends on.
    """
    if torch.is_grad_enabled():
        raise RuntimeError("the compiled kernels have no second derivative: set CONVNEXT_KERNELS=0")


def describe() -> str:
    """Which kernels training on CPU uses, and why, in a few words."""
    with _lock:
        loaded, words = _load()
    if loaded is None:
        return f"PyTorch's own kernels ({words})"
    if not loaded.products:
        return f"compiled convolutions alone ({words}; PyTorch has no matrix product for them)"
    return f"compiled kernels ({words}; {products.words(loaded.products)})"


@functools.cache
def _load() -> tuple[Library | None, str]:
    if os.environ.get("CONVNEXT_KERNELS") == "0":
        return None, "CONVNEXT_KERNELS=0"
    try:
        command, version = _compiler()
        return Library(_compiled(command, version)), version
    except UnavailableError as error:
        return None, str(error)
    except OSError as error:
        return None, f"the compiled library cannot be kept: {error}"


def _compiler() -> tuple[list[str], str]:
    """The command that compiles for this CPU, and the first line of its version."""
    try:
        words = shlex.split(os.environ.get("CC") or "") or ["cc"]
    except ValueError as error:
        raise UnavailableError(f"CC={os.environ['CC']}: {error}") from None
    if shutil.which(words[0]) is None:
        raise UnavailableError(f"no C compiler: there is no {words[0]}")
    cpu = "-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native"
    version = _run([*words, "--version"]).partition("\n")[0]
    return [*words, "-O3", cpu, "-fPIC"], version


def _compiled(command: list[str], version: str) -> Path:
    """The library for this source, compiler and CPU: from the cache folder, or compiled into it where it is not there
    or not as it was compiled. To load a damaged one would end the process."""
    path = _path(command, version)
    known = path.with_suffix(".sha256")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not hasattr(os, "geteuid") or path.parent.stat().st_uid != os.geteuid() or path.parent.stat().st_mode & 0o022:
        raise UnavailableError(f"others may write to {path.parent}")
    if not _is_whole(path, known):
        with writing(path) as unfinished, writing(known) as its_digest:
            _compile(command, unfinished)
            its_digest.write_text(digest(unfinished))
    if not _is_whole(path, known):
        raise UnavailableError(f"the disk gives {path} back other than it was written")
    return path


def _compile(command: list[str], library: Path) -> None:
    """Compile each source in a process of its own, as many at once as there are cores, and link them."""
    sources = [source for source in _SOURCES if source.suffix == ".c"]
    sources.sort(key=lambda source: -source.stat().st_size)  # the last one should not take the longest
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = [str(Path(folder, f"{source.stem}.o")) for source in sources]
        commands = zip(sources, objects, strict=True)
        list(pool.map(_run, [[*command, "-c", "-o", made, str(source)] for source, made in commands]))
        _run([*command, "-shared", "-o", str(library), *objects])


def _path(command: list[str], version: str) -> Path:
    """Where the library for this source, compiler and CPU is kept."""
    identity = [*command, version, _cpu(), *(source.read_text() for source in _SOURCES)]
    return cache_folder() / "kernels" / f"{hashlib.sha256(repr(identity).encode()).hexdigest()[:32]}.so"


def _is_whole(path: Path, known: Path) -> bool:
    try:
        return digest(path) == known.read_text()
    except (OSError, ValueError):  # not there, or not readable
        return False


def _cpu() -> str:
    """What tells this CPU's instructions from another's."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return f"{platform.machine()} {platform.processor()}"
    first = cpuinfo.read_text().partition("\n\n")[0].splitlines()
    return "\n".join(line for line in first if line.startswith(("model", "flags", "Features", "CPU ")))


def _run(command: list[str]) -> str:
    """What the command prints.

    Raises:
        UnavailableError: it failed.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT, check=True)
    except subprocess.CalledProcessError as error:
        message = (error.stderr or error.stdout).strip().partition("\n")[0]
        raise UnavailableError(f"{command[0]} failed: {message or error.returncode}") from None
    except OSError as error:
        raise UnavailableError(f"{command[0]} cannot be run: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"{command[0]} took more than {_TIMEOUT} s") from None
    return done.stdout
