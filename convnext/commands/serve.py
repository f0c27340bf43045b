"""``convnext serve``: a model behind HTTP, with a page."""

import math
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import tyro

from convnext.commands.terminal import Flag, parse
from convnext.errors import SettingsError
from convnext.inference.server.limits import Limits
from convnext.output import say

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_PACKAGES = ("fastapi", "uvicorn", "prometheus_client", "python_multipart")


@dataclass(frozen=True)
class _Serve:
    """Answer over HTTP what is in images: a page at /, and routes for programs, which /docs lists."""

    run: tyro.conf.Positional[str]
    """Folder of the run or of a checkpoint, an exported file, released weights such as convnext_tiny:in1k, or a model
    that was pushed to the Hugging Face Hub, hf:owner/name."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in, whoever they are."""
    port: int = 8000
    """Port to listen on; 0 for a free one."""
    allowed_hosts: tuple[str, ...] = ()
    """Names that the server is called by in URLs; none given, this machine's own for a loopback host, and any else."""
    grace: float = 30.0
    """Seconds that requests under way get when a signal stops the server."""
    checkpoint: Literal["last", "best"] | None = None
    """Which weights; None takes the last, or of a run with patience the best."""
    backend: Literal["eager", "onnxruntime", "openvino", "auto"] | None = None
    """What computes a run: PyTorch (eager, None), or on the CPU in fp32 a runtime, or the fastest (auto)."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    trust: Flag = False
    """Open a .pt2, which can run code that stands in it."""
    max_pixels: Annotated[int, tyro.conf.arg(name="data.max-pixels")] = 50_000_000
    """Pixels of an image, by its header; more is answered with 422."""
    limits: Annotated[Limits, tyro.conf.arg(name="")] = field(default_factory=Limits)


def main(args: Sequence[str]) -> int:
    """Serve a model over HTTP, with a page: predictions, explanations, metrics."""
    options = parse(_Serve, args, "serve")
    if missing := [name for name in _PACKAGES if find_spec(name) is None]:
        raise SettingsError(f"serve needs {', '.join(missing)}, which is not installed: pip install 'convnext[serve]'")
    from convnext.config import DataSettings

    if not 0 <= options.grace < math.inf:
        raise SettingsError(f"grace: must be at least 0 and finite, got {options.grace}")
    DataSettings(max_pixels=options.max_pixels)  # which refuses what is out of bounds
    from convnext.inference.predictor import Predictor
    from convnext.inference.server.app import make_app
    from convnext.inference.server.engine import Engine
    from convnext.inference.server.running import address, bind, run

    with closing(bind(options.host, options.port)) as bound:  # before the model, which may take a while
        predictor = Predictor.load(
            options.run, options.checkpoint, options.device, trust=options.trust, backend=options.backend
        )
        predictor.warm_up(sys.maxsize)
        predictor.info = predictor.info.model_copy(update={"max_pixels": options.max_pixels})
        name = options.run if not Path(options.run).exists() else Path(options.run).resolve().name
        hosts = options.allowed_hosts or (_LOOPBACK if options.host in _LOOPBACK else ())
        with closing(Engine(predictor, options.limits)) as engine:
            door = make_app(engine, name, frozenset(map(str.lower, hosts)))

            def started() -> None:
                say(f"serving {name} at {address(bound)} (Ctrl-C stops)")

            return run(door, bound, options.limits, options.grace, started)
