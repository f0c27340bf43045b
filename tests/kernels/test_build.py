"""Where the library comes from, and what happens where there is none."""

import _ctypes
import multiprocessing
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from convnext import kernels
from convnext.kernels import build, products
from convnext.storage.downloads import cache_folder
from tests.support.kernel_cases import gradients, small_model


def test_switched_off_pytorch_computes_the_same(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = small_model(stochastic_depth=0.3)
    expected = gradients(model, images)
    build.forget()
    monkeypatch.setenv("CONVNEXT_KERNELS", "0")
    assert kernels.describe() == "PyTorch's own kernels (CONVNEXT_KERNELS=0)"
    torch.testing.assert_close(gradients(model, images), expected, rtol=1e-4, atol=1e-6)
    assert not list(kept.parent.glob(".*"))  # nothing half-written


@pytest.mark.usefixtures("kept")
def test_without_a_product_convolutions_alone_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = small_model()
    expected = gradients(model, images)
    build.forget()
    monkeypatch.setattr(products, "candidates", lambda _: [])
    assert kernels.describe().startswith("compiled convolutions alone (")
    torch.testing.assert_close(gradients(model, images), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("fresh")
def test_compiled_once_into_a_folder_of_the_users_own(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = library.stat().st_mtime_ns
    monkeypatch.setenv("CONVNEXT_CACHE", str(library.parents[1]))
    build.forget()
    assert kernels.describe().startswith("compiled kernels (")
    assert list(library.parent.glob("*.so")) == [library]
    assert stat.S_IMODE(library.parent.stat().st_mode) == 0o700
    assert library.stat().st_mtime_ns == made


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


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def flip(path: Path) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "zeros": zero,
    "a bit": flip,
    "text": lambda path: path.write_text("no library"),
    "removed": Path.unlink,
    "another library": lambda path: shutil.copyfile(_ctypes.__file__, path),
    "no digest": lambda path: path.with_suffix(".sha256").unlink(),
    "damaged digest": lambda path: path.with_suffix(".sha256").write_bytes(b"\xff"),
}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library as it is compiled here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONVNEXT_CACHE", str(tmp_path_factory.mktemp("cache")))
        build.forget()
        if build.library() is None:
            pytest.skip(kernels.describe())
        (path,) = (cache_folder() / "kernels").glob("*.so")
    build.forget()
    return path


@pytest.fixture
def kept(library: Path, fresh: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library in a cache folder of its own, not loaded yet, and a quick compiler, which notes each time it links."""
    compiler = fresh / "compiler"
    noting = f'case "$*" in *-shared*) echo >> {fresh / "times"};; esac'
    lines = ("#!/bin/sh", '[ "$1" = --version ] && exit', noting)
    compiler.write_text("\n".join([*lines, 'while [ "$1" != -o ]; do shift; done', f'cp {library} "$2"']))
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setenv("CONVNEXT_CACHE", str(fresh / "first"))
    build.forget()
    assert build.library() is not None
    monkeypatch.setenv("CONVNEXT_CACHE", str(fresh / "second"))  # a file that is loaded may not change
    shutil.copytree(fresh / "first", fresh / "second")
    build.forget()
    (path,) = (fresh / "second" / "kernels").glob("*.so")
    return path


def in_another_process() -> str:
    """What `describe` says there: a damaged library would end it."""
    receiving, sending = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=lambda: sending.send(kernels.describe()))
    process.start()
    process.join()
    assert process.exitcode == 0
    said: str = receiving.recv()
    return said


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_library_is_compiled_once_again(damage: str, kept: Path, fresh: Path) -> None:
    whole = kept.read_bytes()
    DAMAGES[damage](kept)
    for _ in range(2):
        assert in_another_process().startswith("compiled kernels (")
        assert kept.read_bytes() == whole
        assert {path.suffix for path in kept.parent.iterdir()} == {".so", ".sha256", ".json"}
        assert (fresh / "times").read_text() == "\n\n"


def test_what_cannot_be_compiled_again_is_said_in_one_line(kept: Path) -> None:
    kept.unlink()
    kept.mkdir()  # no file gets its name
    said = in_another_process()
    assert said.startswith("PyTorch's own kernels (the compiled library cannot be kept: ")
    assert "\n" not in said


def test_what_others_may_have_written_is_not_loaded(kept: Path) -> None:
    assert build.library() is not None
    kept.parent.chmod(0o777)
    build.forget()
    assert kernels.describe() == f"PyTorch's own kernels (others may write to {kept.parent})"


def test_a_cache_that_cannot_be_a_folder_is_no_error(fresh: Path) -> None:
    (fresh / "cache").write_text("a file")
    assert kernels.describe().startswith("PyTorch's own kernels (")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_no_error(fresh: Path) -> None:
    (fresh / "cache").mkdir(mode=0o500)
    assert "the compiled library cannot be kept" in kernels.describe()
