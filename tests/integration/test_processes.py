"""Several processes, on one machine and on two, share a run: they compute what one process computes, and go on after
any of them died."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

import convnext
from convnext.config import DataSettings
from convnext.data.datasets.load import load_splits
from convnext.data.loading.loader import TrainSampler
from convnext.runs.folder import read_metrics
from tests.support.holding import Held

LAUNCHERS = {
    "torchrun": ("torch.distributed.run", "--nproc-per-node", "2"),
    # Its `--cpu` starts one process whatever `--num_processes` says; `--multi_gpu` starts any, on CPUs too.
    "accelerate": ("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"),
}
EPOCHS = 16
LONG = 300  # seconds after which what we wait for will not come


def options(images: Path, output: Path, name: str) -> dict[str, Any]:
    """A run of 3 steps an epoch on 15 images, with augmentation, whose batches of 5 two processes share as 3 and 2."""
    return {
        "name": name,
        "output": output,
        "epochs": EPOCHS,
        "batch_size": 5,
        "trackers": (),
        "ema_decay": 0.9,
        "data.name": "folder",
        "data.root": images,
        "data.workers": 0,
        "model.depths": (1, 1),
        "model.dims": (8, 16),
        "augment.random_erasing": 0.25,
        "optimizer.reference_batch_size": 1,
        "optimizer.clip_norm": 1.0,
    }


def command(settings: dict[str, Any], *launcher: str, resume: bool = False) -> list[str]:
    """``python -m LAUNCHER … -m convnext train digits …``."""
    line = [sys.executable, "-m", *launcher, "-m", "convnext", "train", "digits", *["--resume"] * resume]
    for name, value in settings.items():
        line += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else (value,))]
    return line


@dataclass
class Launched:
    """A launcher that runs, with its output in files, which no full pipe can stop."""

    process: Any  # a psutil.Popen
    logs: Path

    @property
    def out(self) -> str:
        return (self.logs / "out").read_text()

    @property
    def err(self) -> str:
        return (self.logs / "err").read_text()

    def worker(self, rank: int) -> Any:
        """The process that trains as ``rank``."""
        return next(child for child in self.process.children() if child.environ().get("RANK") == str(rank))

    def wait(self) -> int:
        try:
            return int(self.process.wait(LONG))
        except psutil.TimeoutExpired:
            pytest.fail(f"still running after {LONG} seconds:\n{self.err}")

    def wait_until(self, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LONG
        while not happened():
            assert self.process.poll() is None, f"ended early:\n{self.err}"
            assert time.monotonic() < deadline, f"nothing in {LONG} seconds:\n{self.err}"
            time.sleep(0.01)


@contextmanager
def launched(line: list[str], logs: Path, **environment: str) -> Iterator[Launched]:
    """Start a launcher; whatever is left of it at the end is killed."""
    logs.mkdir(parents=True)
    with (logs / "out").open("wb") as out, (logs / "err").open("wb") as err:
        process = psutil.Popen(line, stdout=out, stderr=err, env=os.environ | environment)
    run = Launched(process, logs)
    try:
        yield run
    finally:
        kill(process)


def kill(launcher: Any) -> None:
    """Kill a launcher and all that it started, as the loss of a host does."""
    if launcher.is_running():
        for process in [launcher, *launcher.children(recursive=True)]:
            process.kill()
        launcher.wait()


def steps_saved(run: Path) -> int:
    """The step of the newest checkpoint; 0 where there is none."""
    return max((int(path.name.split("-")[1]) for path in run.glob("checkpoints/step-*")), default=0)


def saved_bytes(run: Path) -> list[bytes]:
    """Weights, and the state of their average and optimizer."""
    return [(run / "checkpoints/last" / f"{name}.safetensors").read_bytes() for name in ("model", "training")]


def losses(run: Path) -> list[list[float]]:
    keys = ("step", "train_loss", "train_top1", "val_loss", "val_top1", "val_macro_f1")
    return [[line[key] for key in keys] for line in read_metrics(run)]


def report(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "test_report.json").read_text())
    return found


def assert_same_numbers(run: Path, other: Path) -> None:
    for line, expected in zip(losses(run), losses(other), strict=True):
        assert line == pytest.approx(expected, abs=1e-5)
    ours, theirs = report(run), report(other)
    assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
    assert ours | {"loss": 0} == theirs | {"loss": 0}  # counts, and each class's precision and recall


@pytest.fixture(scope="module")
def images(digits_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes with 15 images to train, 3 to validate and 13 to test, which two processes share as 7 and 6."""
    root = tmp_path_factory.mktemp("processes") / "images"
    for part, first, counts in (("train", 0, (5, 5, 5)), ("val", 5, (1, 1, 1)), ("test", 6, (5, 5, 3))):
        for name, count in zip("012", counts, strict=True):
            (root / part / name).mkdir(parents=True)
            for path in sorted((digits_images / "train" / name).iterdir())[first : first + count]:
                shutil.copy(path, root / part / name)
    return root


@pytest.fixture(scope="module")
def by_two(images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run that nothing disturbs, by two processes of one machine; and its standard output."""
    folder = tmp_path_factory.mktemp("two")
    with launched(command(options(images, folder, "run"), *LAUNCHERS["torchrun"]), folder / "logs") as run:
        assert run.wait() == 0, run.err
    return folder / "run", run.out


def test_two_processes_compute_what_one_does(images: Path, by_two: tuple[Path, str], tmp_path: Path) -> None:
    two, out = by_two
    one = convnext.train(convnext.recipe("digits", **options(images, tmp_path, "one")))
    assert_same_numbers(two, one.path)
    assert [line[0] for line in losses(two)] == list(range(3, 3 * EPOCHS + 1, 3))
    assert losses(two)[-1][1] < 0.9 * losses(two)[0][1]  # it learned: equal numbers of idle weights would say nothing
    assert report(two)["count"] == 13
    assert {path.name for path in two.iterdir()} == {path.name for path in one.path.iterdir()}
    assert out.count("Reached") == 1


def test_images_that_only_one_process_finds_unreadable(images: Path, tmp_path: Path) -> None:
    root = tmp_path / "images"
    shutil.copytree(images, root)
    source = load_splits(DataSettings(name="folder", root=root, image_size=8)).train
    batches = TrainSampler(len(source), 5, epochs=2, seed=0, rank=1, world_size=2)
    shares = [{index for _, index, _ in batch} for batch in batches]
    of_one = set().union(*shares[:3]) & set().union(*shares[3:])  # what the other process sees in neither epoch
    assert any(share <= of_one for share in shares)  # in that step it has nothing to train on
    spoiled = [Path(source.image_name(index)) for index in of_one]
    spoiled.append(next((root / "val" / "1").iterdir()))  # of 3, so it has nothing to evaluate either
    for path in spoiled:
        path.write_bytes(b"no image")
    line = command(options(root, tmp_path, "two") | {"epochs": 2}, *LAUNCHERS["accelerate"])
    with launched(line, tmp_path / "logs") as run:
        assert run.wait() == 0, run.err
    one = convnext.train(convnext.recipe("digits", **options(root, tmp_path, "one") | {"epochs": 2}))
    assert_same_numbers(tmp_path / "two", one.path)
    assert len(one.unreadable) == len(spoiled) == 3
    for path in spoiled:
        assert f"left out: {path}" in run.err
    assert "Left out  3 unreadable images" in run.out


def test_two_processes_weigh_draw_and_stop_early_as_one_does(images: Path, tmp_path: Path) -> None:
    changes = {"patience": 2, "data.sampler": "balanced", "loss.class_weights": (1.0, 2.0, 4.0), "augment.repeats": 2}
    line = command(options(images, tmp_path, "two") | changes, *LAUNCHERS["torchrun"])
    with launched(line, tmp_path / "logs") as run:
        assert run.wait() == 0, run.err
    one = convnext.train(convnext.recipe("digits", **options(images, tmp_path, "one") | changes))
    assert_same_numbers(tmp_path / "two", one.path)
    assert len(losses(one.path)) < EPOCHS
    assert run.err.count("stopped early, after epoch") == 1
    assert run.out.count("(best weights)") == 1


def test_a_mistake_is_told_once(images: Path, tmp_path: Path) -> None:
    line = command(options(images, tmp_path, "run") | {"data.root": "/nowhere"}, *LAUNCHERS["torchrun"])
    with launched(line, tmp_path / "logs") as run:
        assert run.wait() == 1
    assert run.err.count("convnext: ") == 1, run.err
    assert "data.root /nowhere is not there" in run.err
    assert not (tmp_path / "run").exists()


def test_a_mistake_is_told_though_the_one_who_tells_it_is_late(tmp_path: Path) -> None:
    script = tmp_path / "late.py"
    script.write_text(
        "import os, sys, time\nfrom convnext.cli import main\n"
        "time.sleep(3 if os.environ['LOCAL_RANK'] == '0' else 0)\nsys.exit(main())\n"
    )
    words = [str(script), "train", "digits", "--epoch", "3", "--output", str(tmp_path / "runs")]
    line = [sys.executable, "-m", *LAUNCHERS["torchrun"], *words]
    with launched(line, tmp_path / "logs") as run:
        assert run.wait() == 1
    assert run.err.count("convnext: ") == 1, run.err
    assert "did you mean --epochs" in run.err
    assert not (tmp_path / "runs").exists()


@pytest.fixture(scope="module")
def stopped(images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of two processes, one of which got SIGTERM; and its standard error."""
    folder = tmp_path_factory.mktemp("stopped")
    with launched(command(options(images, folder, "run"), *LAUNCHERS["torchrun"]), folder / "logs") as run:
        run.wait_until(lambda: steps_saved(folder / "run") > 0)
        run.worker(1).send_signal(signal.SIGTERM)
        assert run.wait() == 1  # torchrun's, where a worker ended with another status than 0
    return folder / "run", run.err


def test_a_signal_to_one_process_stops_all_and_saves(stopped: tuple[Path, str]) -> None:
    run, err = stopped
    assert err.count(f"stopped by SIGTERM; everything is saved in {run}") == 1
    assert "internal error" not in err  # as it would be if one had waited for another in vain
    assert 0 < steps_saved(run) < 3 * EPOCHS
    assert not (run / "test_report.json").exists()


def test_one_process_goes_on_with_the_run_of_two(
    stopped: tuple[Path, str], by_two: tuple[Path, str], images: Path, tmp_path: Path
) -> None:
    shutil.copytree(stopped[0], tmp_path / "run", symlinks=True)
    convnext.train(convnext.recipe("digits", **options(images, tmp_path, "run")), resume=True)
    assert_same_numbers(tmp_path / "run", by_two[0])


def test_a_signal_in_a_validation_stops_all_and_it_is_done_when_the_run_goes_on(images: Path, tmp_path: Path) -> None:
    root = tmp_path / "images"
    shutil.copytree(images, root)
    path = root / "val" / "0" / "held.png"  # the second image, hence of the process that has the signal
    path.write_bytes(next((images / "train" / "0").iterdir()).read_bytes())
    data = {"data.root": root, "data.mean": (0.5,) * 3, "data.std": (0.3,) * 3}
    arguments = command(options(root, tmp_path, "run") | data, *LAUNCHERS["torchrun"])
    with ExitStack() as stack:
        held = stack.enter_context(Held(path))
        run = stack.enter_context(launched(arguments, tmp_path / "logs"))
        run.wait_until(held.is_wanted)
        run.worker(1).send_signal(signal.SIGTERM)
        held.release()
        assert run.wait() == 1
    assert "internal error" not in run.err
    assert steps_saved(tmp_path / "run") == 3
    assert json.loads((tmp_path / "run/checkpoints/last/training.json").read_text())["unvalidated"]
    assert not read_metrics(tmp_path / "run")
    convnext.train(convnext.recipe("digits", **options(root, tmp_path, "run") | data), resume=True)
    convnext.train(convnext.recipe("digits", **options(root, tmp_path, "one") | data))
    assert_same_numbers(tmp_path / "run", tmp_path / "one")


def test_a_killed_process_is_restarted_and_the_run_ends_the_same(
    stopped: tuple[Path, str], by_two: tuple[Path, str], images: Path, tmp_path: Path
) -> None:
    shutil.copytree(stopped[0], tmp_path / "run", symlinks=True)  # with steps enough to go for another interruption
    before = steps_saved(tmp_path / "run")
    line = command(options(images, tmp_path, "run"), *LAUNCHERS["torchrun"], "--max-restarts", "3", resume=True)
    with launched(line, tmp_path / "logs") as run:
        run.wait_until(lambda: steps_saved(tmp_path / "run") > before)
        run.worker(1).kill()
        assert run.wait() == 0, run.err
    assert run.err.count("resumed after step") == 2
    assert saved_bytes(tmp_path / "run") == saved_bytes(by_two[0])
    assert losses(tmp_path / "run") == losses(by_two[0])
    assert run.out.count("Reached") == 1


@pytest.fixture
def hosts() -> Iterator[tuple[list[str], list[str]]]:
    """Two network namespaces with a cable between them, as commands that run another command in one of them; they have
    the addresses 10.77.0.1 and 10.77.0.2, and vanish with the processes that hold them."""
    if not all(map(shutil.which, ("unshare", "nsenter", "ip"))):
        pytest.skip("needs unshare, nsenter and ip, which are part of Linux")
    with ExitStack() as stack:
        inside: list[list[str]] = []
        holders = []
        for number in (1, 2):
            setup = f"ip link set lo up && hostname host{number} && echo ready && exec cat"
            holder = subprocess.Popen(
                ["unshare", "--net", "--uts", "sh", "-c", setup],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            stack.enter_context(holder)
            stack.callback(holder.kill)
            assert holder.stdout is not None
            if holder.stdout.readline() != "ready\n":
                pytest.skip("this user may not make network namespaces (it needs CAP_SYS_ADMIN and CAP_NET_ADMIN)")
            holders.append(holder)
            inside.append(["nsenter", "--target", str(holder.pid), "--net", "--uts"])
        cable = f"link add cable type veth peer name cable netns {holders[1].pid}"
        if subprocess.run([*inside[0], "ip", *cable.split()], capture_output=True).returncode:
            pytest.skip("this machine's kernel has no veth, the cable between two network namespaces")
        for number, host in enumerate(inside, 1):
            subprocess.run([*host, "ip", "address", "add", f"10.77.0.{number}/24", "dev", "cable"], check=True)
            subprocess.run([*host, "ip", "link", "set", "cable", "up"], check=True)
        yield inside[0], inside[1]


def test_a_host_is_lost_and_replaced(
    hosts: tuple[list[str], list[str]], images: Path, by_two: tuple[Path, str], tmp_path: Path
) -> None:
    settings = options(images, tmp_path, "run")

    def start(number: int, logs: str) -> Launched:
        line = command(
            settings,
            *("torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "3"),
            *("--rdzv-backend", "c10d", "--rdzv-endpoint", "10.77.0.1:29400", "--rdzv-id", "test"),
            # The names of these hosts lead nowhere, so each is told what it is; one that is silent for 2 s is lost.
            *("--rdzv-conf", f"is_host={int(number == 1)},keep_alive_interval=1,keep_alive_max_attempt=2"),
            *("--local-addr", f"10.77.0.{number}"),
            resume=True,
        )
        # See "A host is lost" in docs/scaling.md.
        environment = {"GLOO_SOCKET_IFNAME": "cable", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        return stack.enter_context(launched([*hosts[number - 1], *line], tmp_path / logs, **environment))

    with ExitStack() as stack:
        first, second = start(1, "first"), start(2, "second")
        first.wait_until(lambda: steps_saved(tmp_path / "run") > 0)
        kill(second.process)
        third = start(2, "third")
        assert first.wait() == 0, first.err
        assert third.wait() == 0, third.err
    assert "resumed after step" in first.err
    assert saved_bytes(tmp_path / "run") == saved_bytes(by_two[0])
    assert report(tmp_path / "run") == report(by_two[0])
    assert (first.out + third.out).count("Reached") == 1
