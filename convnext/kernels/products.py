"""Which matrix product the kernels call: the fastest of those that this PyTorch has, measured once on a machine.

None of them is ours. `brgemm` is oneDNN's, by the name that libtorch exports it under; `blas` is that of the BLAS that
PyTorch is built with: MKL on x86, elsewhere Accelerate, OpenBLAS or whichever has a ``sgemm_``.
"""

import ctypes
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from convnext.storage.files import writing

_SYMBOLS = {
    torch.float32: {"brgemm": "_ZN2at6native7cpublas6brgemmEllllllbPKfS3_Pfb", "blas": "sgemm_"},
    torch.bfloat16: {
        "brgemm": "_ZN2at6native7cpublas6brgemmEllllllbPKN3c108BFloat16ES5_Pfb",
        "blas": "gemm_bf16bf16f32_",
    },
}
_KINDS = ("blas", "brgemm")  # by their numbers in product.h
_CLEARLY = 1.15  # times as fast: so that two machines of a kind, and one machine twice, choose alike
_SIZES = ((256, 256, 64), (256, 384, 512))  # (m, n, k): of a narrow block and of a wide one
_ROUNDS, _TIMES = 10, 8
_SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16"}


@dataclass(frozen=True)
class Product:
    """A matrix product: its kind, the address of its function, and the type of what it multiplies."""

    kind: str
    address: int
    dtype: torch.dtype

    @property
    def number(self) -> int:
        """Of its kind, as the C has it."""
        return _KINDS.index(self.kind)

    @property
    def paired(self) -> bool:
        """Whether its right matrix has its rows in pairs, value by value."""
        return self.kind == "brgemm" and self.dtype == torch.bfloat16


def candidates(dtype: torch.dtype) -> list[Product]:
    """The products of that type that can be called here, the preferred one first."""
    loaded = ctypes.CDLL(torch._C.__file__)
    products = []
    for kind, symbol in _SYMBOLS[dtype].items():
        if kind == "brgemm" and not _has_brgemm(dtype):
            continue
        if hasattr(loaded, symbol):
            address = ctypes.cast(getattr(loaded, symbol), ctypes.c_void_p).value or 0
            products.append(Product(kind, address, dtype))
    return products


def _has_brgemm(dtype: torch.dtype) -> bool:
    """Whether it is sure to compute: where it cannot, it throws what no C can catch."""
    limited = any(
        os.environ.get(f"{name}_MAX_CPU_ISA", "ALL").upper() not in ("ALL", "DEFAULT") for name in ("DNNL", "ONEDNN")
    )
    if limited or not torch._C._has_mkldnn or not torch.backends.mkldnn.enabled:
        return False
    if dtype == torch.bfloat16:
        return torch.cpu._is_avx512_bf16_supported()
    return torch.cpu._is_avx2_supported()


Multiply = Callable[[Product, Tensor, Tensor, Tensor, int], None]


def choose(kept: Path, multiply: Multiply) -> dict[torch.dtype, Product]:
    """The product for each type, as written in a file; measured and written there where it is not.

    Args:
        kept: the file, JSON.
        multiply: makes c = a b by a product, of ``(m, k)``, ``(k, n)`` and float32 ``(threads, m, n)``, in each of
            PyTorch's threads, so many times.
    """
    known = _read(kept)
    chosen: dict[torch.dtype, Product] = {}
    for dtype, short in _SHORT.items():
        products = candidates(dtype)
        named = [product for product in products if product.kind == known.get(short)]
        best = named[0] if named else fastest(products, multiply)
        if best is not None:
            chosen[dtype] = best
    kinds = {_SHORT[dtype]: product.kind for dtype, product in chosen.items()}
    if kinds != known:
        with writing(kept) as unfinished:
            unfinished.write_text(json.dumps(kinds))
    return chosen


def _read(kept: Path) -> dict[str, str]:
    try:
        known = json.loads(kept.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def fastest(products: list[Product], multiply: Multiply) -> Product | None:
    """The first, unless a later one is clearly faster; None where none is right."""
    best, best_seconds = None, float("inf")
    for product in products:
        seconds = measured(product, multiply)
        if seconds is not None and seconds * _CLEARLY < best_seconds:
            best, best_seconds = product, seconds
    return best


def measured(product: Product, multiply: Multiply) -> float | None:
    """Seconds that it takes for the sizes above, in all threads at once; None where its result is not right."""
    seconds = 0.0
    for m, n, k in _SIZES:
        generator = torch.Generator().manual_seed(0)
        a, b = (torch.randn(shape, generator=generator).to(product.dtype) for shape in ((m, k), (k, n)))
        right, c = in_order(b, product), torch.empty(torch.get_num_threads(), m, n)
        multiply(product, a, right, c, 1)
        exact = a.double() @ b.double()
        if not (c - exact).norm() < 1e-4 * exact.norm() * len(c) ** 0.5:
            return None
        rounds: list[float] = []
        for _ in range(_ROUNDS):
            began = time.perf_counter()
            multiply(product, a, right, c, _TIMES)
            rounds.append(time.perf_counter() - began)
        seconds += min(rounds)  # the others were interrupted
    return seconds


def in_order(b: Tensor, product: Product) -> Tensor:
    """A right matrix ``(k, n)`` as the product takes it."""
    if not product.paired:
        return b.contiguous()
    return b.view(len(b) // 2, 2, -1).transpose(1, 2).contiguous()


def words(chosen: dict[torch.dtype, Product]) -> str:
    """What multiplies, in a few words."""
    return ", ".join(f"{_SHORT[dtype]} by {product.kind}" for dtype, product in chosen.items())
