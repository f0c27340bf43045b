"""``convnext serve`` as a process: where it listens, how it ends, and connections of which nothing comes."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

import convnext
from convnext.cli import main
from convnext.inference.export.export import export
from convnext.inference.server.running import bind
from tests.support.serving import Served, encoded, form, metric

PNG = {"Content-Type": "image/png"}


@pytest.fixture(scope="module")
def served(digits_run: convnext.Run) -> Iterator[Served]:
    with Served(digits_run.path, "--max-connections", 20, "--max-upload-seconds", 0.3, "--max-seconds", 0.4) as one:
        yield one


def predicted(url: str, seed: int = 0) -> httpx.Response:
    """One request in a connection of its own."""
    return httpx.post(f"{url}/predict", content=encoded(seed), headers=PNG, timeout=60)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_loses_no_request_that_was_taken(number: int, digits_run: convnext.Run) -> None:
    predictor = convnext.Predictor.load(digits_run.path)
    with Served(digits_run.path, held=True) as one, ThreadPoolExecutor(9) as threads:
        answers = [threads.submit(predicted, one.url, seed) for seed in range(8)]
        with httpx.Client(base_url=one.url) as client:
            while metric(client.get("/metrics").text, "convnext_queue_images") != 8:
                pass
            one.stop(number)
            while (health := client.get("/health")).status_code == 200:
                pass
            assert health.json() == {"status": "stopping"}
            assert predicted(one.url).json() == {"detail": "the server is stopping"}
            assert predicted(one.url).status_code == 503
        one.release()
        for seed, answer in enumerate(answers):
            (result,) = answer.result().json()["results"]
            assert result["predictions"][0]["class"] == predictor(encoded(seed))[0].class_name
        assert one.end() == (0, "")


def test_what_takes_longer_than_the_grace_is_dropped(digits_run: convnext.Run) -> None:
    with Served(digits_run.path, "--grace", 0, held=True) as one, ThreadPoolExecutor(1) as threads:
        answer = threads.submit(predicted, one.url)
        while metric(httpx.get(f"{one.url}/metrics").text, "convnext_queue_images") != 1:
            pass
        one.stop()
        with pytest.raises(httpx.HTTPError):
            answer.result().raise_for_status()
        one.release()
        assert one.end()[0] == 128 + signal.SIGTERM


def test_an_exported_file_is_served_without_torch(digits_run: convnext.Run, tmp_path: Path) -> None:
    path = export(digits_run.path, "onnx", output=tmp_path / "model.onnx").path
    program = """
import http.client, os, signal, sys, threading
from convnext.cli import main
from convnext.inference.server import running

run = running.run

def run_and_ask(door, bound, limits, grace, started):
    def ask():
        connection = http.client.HTTPConnection(*bound.getsockname())
        for method, path in (("GET", "/model"), ("POST", "/predict")):
            connection.request(method, path, open(sys.argv[2], "rb").read(), {"Content-Type": "image/png"})
            print(connection.getresponse().read().decode())
        print(*{name.partition(".")[0] for name in sys.modules})
        os.kill(os.getpid(), signal.SIGTERM)

    return run(door, bound, limits, grace, lambda: (started(), threading.Thread(target=ask).start()))

running.run = run_and_ask
sys.exit(main(["serve", sys.argv[1], "--port", "0"]))
"""
    (tmp_path / "image.png").write_bytes(encoded())
    words = [sys.executable, "-c", program, str(path), str(tmp_path / "image.png")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    about, answers, packages = done.stdout.splitlines()
    assert json.loads(about)["name"] == "model.onnx"
    assert len(json.loads(answers)["results"][0]["predictions"]) == 5
    assert not {"torch", "torchvision", "sklearn", "matplotlib", "accelerate"} & set(packages.split())


def test_what_is_sent_goes_out_at_once() -> None:
    with bind("127.0.0.1", 0) as bound:
        assert bound.proto == socket.IPPROTO_TCP  # by which asyncio knows; else each answer waits for 40 ms


def test_where_it_cannot_listen(digits_run: convnext.Run, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", str(digits_run.path), "--port", str(port)]) == 2
        assert f"cannot listen on 127.0.0.1 port {port} (Address already in use): choose" in capsys.readouterr().err
    for host in ("no.such.host.invalid", "192.0.2.1", "x" * 70):
        assert main(["serve", str(digits_run.path), "--host", host]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("convnext: cannot listen on ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-qeue", "3"], "no option is called --max-qeue: did you mean --max-queue?"),
        (["--max-batch", "0"], "max-batch: must be at least 1 and finite, got 0"),
        (["--data.max-pixels", "0"], "max_pixels"),
        (["--port", "70000"], "port: must be between 0 and 65535, got 70000"),
        (["--port", "-1"], "port: must be between 0 and 65535, got -1"),
        (["--host", ""], "host: name an address"),
        (["--grace", "-1"], "grace: must be at least 0 and finite, got -1"),
        (["missing"], "'missing' is too much"),
    ],
)
def test_options_that_are_none(
    words: list[str], message: str, digits_run: convnext.Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(digits_run.path), *words]) == 2
    assert message in capsys.readouterr().err


def test_a_connection_of_which_nothing_comes_is_ended(served: Served) -> None:
    for start in (b"", b"POST /predict HTTP/1.1\r\nHo", b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"):
        with socket.create_connection(served.address, timeout=60) as connection:
            connection.sendall(start)
            while connection.recv(2**16):
                pass


def test_too_many_connections(served: Served) -> None:
    idle = [socket.create_connection(served.address, timeout=60) for _ in range(20)]
    with socket.create_connection(served.address, timeout=60) as connection:
        assert b" 503 " in connection.recv(2**16).split(b"\r\n", 1)[0]
    for one in idle:
        one.close()
    while httpx.get(f"{served.url}/health").status_code != 200:
        pass


def test_what_is_no_http(served: Served) -> None:
    for garbage in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET\r\n\r\n", b"x" * 70_000 + b"\r\n\r\n"):
        with socket.create_connection(served.address, timeout=60) as connection:
            connection.sendall(garbage)
            while connection.recv(2**16):
                pass
    assert httpx.post(f"{served.url}/predict", files=form(encoded(), encoded(1))).status_code == 200
