"""Archives: unpacked whole or not at all, by one process at a time, and never out of their folder."""

import gzip
import io
import os
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from convnext.errors import DataError
from convnext.storage.archives import gunzip, inside, unpack, unpack_classes, verify
from tests.support.dataset_archives import tar, zipped

FILES = {f"set/{folder}/{number}.txt": f"{folder} {number}".encode() * 100 for folder in "abc" for number in range(4)}


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "data"),
    [("x.tar", tar(FILES, "w")), ("x.tgz", tar(FILES)), ("x.tar.xz", tar(FILES, "w:xz")), ("x.zip", zipped(FILES))],
)
def test_the_folder_meant_is_unpacked(name: str, data: bytes, tmp_path: Path) -> None:
    archive = written(tmp_path / name, data)
    unpack(archive, tmp_path / "a", inside("set/a"))
    assert contents(tmp_path / "a") == {f"{number}.txt": FILES[f"set/a/{number}.txt"] for number in range(4)}
    unpack(archive, tmp_path / "all", lambda name: name)
    assert contents(tmp_path / "all") == FILES
    assert names(tmp_path) == sorted(["a", "all", name])
    before = (tmp_path / "a").stat()
    unpack(archive, tmp_path / "a", inside("set/b"))  # it is there
    assert (tmp_path / "a").stat() == before


def test_an_archive_in_an_archive(tmp_path: Path) -> None:
    archive = written(tmp_path / "x.zip", zipped({"y/inner.tar.gz": tar(FILES), "__MACOSX/._inner.tar.gz": b"?"}))
    unpack(archive, tmp_path / "set", inside("set"), "y/inner.tar.gz")
    assert len(contents(tmp_path / "set")) == 12
    refused(lambda: unpack(archive, tmp_path / "no", inside("set"), "y/other.tar"), "x.zip has no y/other.tar: it is")
    refused(lambda: unpack(archive, tmp_path / "no", inside("other")), "has none of the files of no")
    assert names(tmp_path) == ["set", "x.zip"]


KILLED = """
import os, signal, sys
from pathlib import Path
from convnext.storage.archives import unpack
def destination(name):
    if name.endswith("b/2.txt"):
        os.kill(os.getpid(), getattr(signal, sys.argv[3]))
    return name
unpack(Path(sys.argv[1]), Path(sys.argv[2]), destination)
"""


@pytest.mark.parametrize("kill", ["SIGKILL", "SIGINT"])
def test_a_killed_process_leaves_nothing_that_shows(kill: str, tmp_path: Path) -> None:
    archive = written(tmp_path / "x.tgz", tar(FILES))
    target = tmp_path / "target"
    done = subprocess.run([sys.executable, "-c", KILLED, archive, target, kill], capture_output=True)
    assert done.returncode == -getattr(signal, kill)
    assert names(tmp_path) == ([".target.lock", ".target.unfinished", "x.tgz"] if kill == "SIGKILL" else ["x.tgz"])
    unpack(archive, target, inside("set/c"))
    assert len(contents(target)) == 4  # nothing of the first attempt, which took other files
    assert names(tmp_path) == ["target", "x.tgz"]


KILLED_BETWEEN_CLASSES = """
import os, signal, sys
from pathlib import Path
from convnext.storage import archives
calls = []
def sync():
    calls.append(None)
    if len(calls) == 2:
        os.kill(os.getpid(), getattr(signal, sys.argv[3]))
archives.os.sync = sync
archives.unpack_classes(Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.parametrize("kill", ["SIGKILL", "SIGINT"])
def test_a_tar_of_tars_goes_on_behind_the_last_whole_class(kill: str, tmp_path: Path) -> None:
    classes = {f"{name}.tar": tar({f"{name}_{number}.txt": b"x" for number in range(3)}, "w") for name in "abc"}
    archive, target = written(tmp_path / "x.tar", tar(classes, "w")), tmp_path / "target"
    subprocess.run([sys.executable, "-c", KILLED_BETWEEN_CLASSES, archive, target, kill], capture_output=True)
    unfinished = tmp_path / ".target.unfinished"
    assert names(unfinished) == [".b", "a"]
    written(unfinished / "a" / "mark", b"")
    unpack_classes(archive, target)
    expected = {f"{name}/{name}_{number}.txt": b"x" for name in "abc" for number in range(3)}
    assert contents(target) == {**expected, "a/mark": b""}
    assert names(target) == ["a", "b", "c"]
    assert names(tmp_path) == ["target", "x.tar"]


def test_two_at_once_unpack_once(tmp_path: Path) -> None:
    archive, target = written(tmp_path / "x.tgz", tar(FILES)), tmp_path / "target"
    taken: list[str] = []
    first_has_begun = threading.Event()

    def destination(name: str) -> str:
        assert not target.exists()
        taken.append(name)
        first_has_begun.set()
        return name

    threads = [threading.Thread(target=unpack, args=(archive, target, destination)) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert first_has_begun.wait(20)
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(FILES)
    assert contents(target) == FILES
    assert names(tmp_path) == ["target", "x.tgz"]


def special(name: str, kind: bytes, link: str = "") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = kind, link
        archive.addfile(entry)
        inner = tarfile.TarInfo(f"{name}/escaped")
        inner.size = 1
        archive.addfile(inner, io.BytesIO(b"x"))
    return stream.getvalue()


def zip_with_link() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        entry = zipfile.ZipInfo("set/link")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(entry, "/etc/passwd")
    return stream.getvalue()


UNSAFE = {
    "up.tar": tar({"set/../../escaped": b"x"}),
    "above.tar": tar({"../escaped": b"x"}),
    "absolute.tar": tar({"/tmp/convnext-escaped": b"x"}),
    "up.zip": zipped({"set/../../escaped": b"x"}),
    "absolute.zip": zipped({"/tmp/convnext-escaped": b"x"}),
    "symbolic.tar": special("set/link", tarfile.SYMTYPE, "../.."),
    "hard.tar": special("set/link", tarfile.LNKTYPE, "/etc/passwd"),
    "device.tar": special("set/null", tarfile.CHRTYPE),
    "pipe.tar": special("set/pipe", tarfile.FIFOTYPE),
    "symbolic.zip": zip_with_link(),
}


@pytest.mark.parametrize("name", UNSAFE)
def test_nothing_leaves_the_folder(name: str, tmp_path: Path) -> None:
    root = tmp_path / "one" / "two"
    root.mkdir(parents=True)
    archive = written(root / name, UNSAFE[name])
    for destination in (lambda name: name, lambda name: name.removeprefix("set/")):
        refused(partial(unpack, archive, root / "target", destination), "a link or a path out of its folder")
        assert names(root) == [name]
        assert names(root.parent) == ["two"]
        assert names(tmp_path) == ["one"]
        assert not Path("/tmp/convnext-escaped").exists()


@pytest.mark.parametrize("name", ["x.tar", "x.tgz", "x.zip"])
def test_damaged_archives(name: str, tmp_path: Path) -> None:
    whole = {"x.tar": tar(FILES, "w"), "x.tgz": tar(FILES), "x.zip": zipped(FILES)}[name]
    for data in (b"", b"<html>not found</html>", whole[: len(whole) // 3]):
        archive = written(tmp_path / name, data)
        refused(lambda: unpack(archive, tmp_path / "target", inside("set")), f"{name} is damaged .*: replace it")  # noqa: B023
        assert names(tmp_path) == [name]


def test_checksums(tmp_path: Path) -> None:
    archive = written(tmp_path / "x.tar", b"abc")
    verify(archive, "900150983cd24fb0d6963f7d28e17f72")
    refused(lambda: verify(archive, "0" * 32), "has the MD5 900150983c.*, not 0000")


def test_a_file_that_is_compressed_alone(tmp_path: Path) -> None:
    data = os.urandom(5000)
    archive = written(tmp_path / "x.gz", gzip.compress(data))
    gunzip(archive, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == data
    for damaged in (gzip.compress(data)[:-100], b"no gzip"):
        archive.write_bytes(damaged)
        refused(lambda: gunzip(archive, tmp_path / "y"), "x.gz is damaged .*: replace it")
    assert names(tmp_path) == ["x", "x.gz"]


def test_room_is_looked_for_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zeros = {"set/zeros": bytes(100_000)}
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=99_999))
    for name, data in (("x.zip", zipped(zeros)), ("x.tar", tar(zeros, "w"))):
        archive = written(tmp_path / name, data)
        refused(lambda archive=archive: unpack(archive, tmp_path / "set", inside("set")), "free space, or choose")  # type: ignore[misc]
        archive.unlink()
    assert names(tmp_path) == []


def test_room_is_needed_for_what_is_missing_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classes = {f"{name}.tar": tar({f"{name}.txt": bytes(50_000)}, "w") for name in "ab"}
    archive, unfinished = written(tmp_path / "x.tar", tar(classes, "w")), tmp_path / ".set.unfinished"
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=len(classes["a.tar"])))
    refused(lambda: unpack_classes(archive, tmp_path / "set"), "free space, or choose")
    assert names(tmp_path) == ["x.tar"]
    (unfinished / "a").mkdir(parents=True)
    unpack_classes(archive, tmp_path / "set")
    assert names(tmp_path / "set") == ["a", "b"]


def test_a_disk_that_fills_up_while_unpacking(tmp_path: Path) -> None:
    archive = written(tmp_path / "x.tar", tar({"set/small": b"x", "set/large": bytes(100_000)}, "w"))
    # A real limit on the size of files, in a process of its own.
    code = (
        "import resource, signal, sys; from pathlib import Path; from convnext.storage.archives import *\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "try: unpack(Path(sys.argv[1]), Path(sys.argv[2]), inside('set'))\n"
        "except DataError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, archive, tmp_path / "set"], capture_output=True, text=True)
    assert "cannot unpack" in done.stdout
    assert "File too large; free space" in done.stdout
    assert names(tmp_path) == ["x.tar"]
