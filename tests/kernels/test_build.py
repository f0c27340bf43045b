"""Where the library comes from, and what happens where there is none."""

import os
import shutil
import stat
from pathlib import Path

import pytest
import torch

from convnext import kernels
from convnext.kernels import build
from tests.support.kernel_cases import gradients, small_model


def test_switched_off_pytorch_computes_the_same(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = small_model(stochastic_depth=0.3)
    expected = gradients(model, images)
    build.forget()
    monkeypatch.setenv("CONVNEXT_KERNELS", "0")
    assert kernels.describe() == "PyTorch's own kernels (CONVNEXT_KERNELS=0)"
    torch.testing.assert_close(gradients(model, images), expected, rtol=1e-4, atol=1e-6)
    assert not list(fresh.glob("cache/kernels/.*"))  # nothing half-written


@pytest.mark.usefixtures("compiled", "fresh")
def test_without_mkl_convolutions_alone_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = small_model()
    expected = gradients(model, images)
    build.forget()
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert kernels.describe().startswith("compiled convolutions alone (")
    torch.testing.assert_close(gradients(model, images), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("compiled")
def test_compiled_once_into_a_folder_of_the_users_own(fresh: Path) -> None:
    assert kernels.describe().startswith("compiled kernels (")
    (path,) = (fresh / "cache" / "kernels").iterdir()
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    made = path.stat().st_mtime_ns
    build.forget()
    assert build.library() is not None
    assert path.stat().st_mtime_ns == made


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("command", ["'unfinished", "/dev/null"])
def test_a_compiler_that_cannot_be_run(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", command)
    assert kernels.describe().startswith("PyTorch's own kernels (")


@pytest.mark.usefixtures("fresh")
def test_without_a_compiler_pytorch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler -O2")
    assert kernels.describe() == "PyTorch's own kernels (no C compiler: there is no no-such-compiler)"
    model, images = small_model()
    assert len(gradients(model, images)) == len(list(model.parameters()))


def test_a_failing_compiler_is_named_and_leaves_nothing(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = fresh / "compiler"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && exit\necho broken >&2\nexit 3\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    assert kernels.describe() == f"PyTorch's own kernels ({compiler} failed: broken)"
    assert not list((fresh / "cache" / "kernels").iterdir())


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_what_others_may_have_written_or_is_damaged_is_not_loaded(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert build.library() is not None
    (compiled,) = (fresh / "cache" / "kernels").iterdir()
    monkeypatch.setenv("CONVNEXT_CACHE", str(fresh / "other"))
    folder = fresh / "other" / "kernels"
    folder.mkdir(parents=True, mode=0o700)
    (folder / compiled.name).write_bytes(b"no library")
    build.forget()
    assert "PyTorch's own kernels" in kernels.describe()
    folder.chmod(0o777)
    build.forget()
    assert kernels.describe() == f"PyTorch's own kernels (others may write to {folder})"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_no_error(fresh: Path) -> None:
    (fresh / "cache").mkdir(mode=0o500)
    assert "cannot be trained" in kernels.describe()
