"""The matrix products that the kernels call, and which of them is chosen."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from convnext import kernels
from convnext.kernels import build, products
from convnext.kernels.products import Product
from tests.support.kernel_cases import block_and_input, errors, run_block, without_kernels

TYPES = [torch.float32, torch.bfloat16]


def product(kind: str, dtype: torch.dtype = torch.float32) -> Product:
    return Product(kind, 0, dtype)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("dtype", TYPES)
def test_every_product_gives_pytorchs(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for candidate in products.candidates(dtype):
        for m, n, k in ((1, 1, 2), (17, 48, 30), (64, 96, 256)):
            a, b = torch.randn(m, k).to(dtype), torch.randn(k, n).to(dtype)
            c = torch.empty(torch.get_num_threads(), m, n)
            build.compiled().multiply(candidate, a, products.in_order(b, candidate), c)
            torch.testing.assert_close(c, (a.float() @ b.float()).expand_as(c), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("dtype", TYPES)
def test_a_block_is_the_same_by_every_product(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    block, x = block_and_input(24, 3, 9)
    autocast = dtype == torch.bfloat16
    exact = [t.double() for t in without_kernels(block, x)]
    for candidate in products.candidates(dtype):
        monkeypatch.setitem(build.compiled().products, dtype, candidate)
        assert max(errors(run_block(block, x, autocast), exact)) < (2e-2 if autocast else 1e-5)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("dim", [5, 24])
def test_pairs_of_bfloat16_need_even_channels(dim: int) -> None:
    block, x = block_and_input(dim, 2, 5)
    exact = [t.double() for t in without_kernels(block, x)]
    assert max(errors(run_block(block, x, autocast=True), exact)) < 2e-2


def test_the_first_is_chosen_unless_another_is_clearly_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds: dict[str, float | None] = {}
    monkeypatch.setattr(products, "measured", lambda product, _: seconds[product.kind])
    both = [product("brgemm"), product("blas")]

    def chosen(first: float | None, second: float | None) -> str | None:
        seconds.update(brgemm=first, blas=second)
        best = products.fastest(both, lambda *_: None)
        return None if best is None else best.kind

    assert chosen(1.0, 1.0) == chosen(1.0, 0.9) == chosen(1.0, None) == "brgemm"
    assert chosen(1.0, 0.8) == chosen(None, 1.0) == "blas"
    assert chosen(None, None) is None


def test_a_product_that_is_wrong_is_not_taken() -> None:
    def wrong(_: Product, a: Tensor, b: Tensor, c: Tensor, __: int) -> None:
        c.copy_(a.float() @ b.float() + 1)

    assert products.measured(product("blas"), wrong) is None


def test_the_choice_is_kept_and_measured_anew_where_it_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "candidates", lambda dtype: [product("brgemm", dtype), product("blas", dtype)])
    measured: list[str] = []

    def seconds(product: Product, _: object) -> float:
        measured.append(product.kind)
        return {"brgemm": 2.0, "blas": 1.0}[product.kind]

    monkeypatch.setattr(products, "measured", seconds)
    kept = tmp_path / "choice.json"
    for _ in range(2):
        assert {p.kind for p in products.choose(kept, lambda *_: None).values()} == {"blas"}
        assert len(measured) == 4
    assert json.loads(kept.read_text()) == {"fp32": "blas", "bf16": "blas"}
    for damaged in ("", "[1]", '{"fp32": "other"}', "\0"):
        kept.write_text(damaged)
        assert {p.kind for p in products.choose(kept, lambda *_: None).values()} == {"blas"}
        assert json.loads(kept.read_text()) == {"fp32": "blas", "bf16": "blas"}


def test_brgemm_is_not_called_where_it_could_not_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert "brgemm" not in {p.kind for dtype in TYPES for p in products.candidates(dtype)}
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert "brgemm" not in {p.kind for p in products.candidates(torch.bfloat16)}


@pytest.mark.usefixtures("compiled")
def test_the_first_line_of_a_run_names_the_products() -> None:
    for dtype, chosen in build.compiled().products.items():
        assert f"{'fp32' if dtype == torch.float32 else 'bf16'} by {chosen.kind}" in kernels.describe()
