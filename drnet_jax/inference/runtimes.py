"""Runtimes: what runs the networks for prediction, JAX or another that is installed."""

import dataclasses
import importlib.util
import statistics
import sys
import time
from types import ModuleType
from typing import Any

import jax
import numpy as np

from drnet_jax.config import Config
from drnet_jax.cost import Costs
from drnet_jax.devices import cores
from drnet_jax.drnet import DRNet, Tree
from drnet_jax.errors import UserError
from drnet_jax.inference.engine import Engine
from drnet_jax.inference.graph_engine import GraphEngine, Run

PRECISIONS = {"jax": ("float32", "bfloat16"), "onnxruntime": ("float32",),
              "openvino": ("float32", "bfloat16")}
FASTEST_ON_CPUS = ("onnxruntime", "openvino")


@dataclasses.dataclass(frozen=True)
class Runtime:
    """A runtime of PRECISIONS, and the precision that it computes in."""

    name: str
    precision: str | None = None  # None: that of training, in JAX; float32 in others

    def config(self, config: Config) -> Config:
        """A model's config, of networks as they are to be traced."""
        dtype = (self.precision or config.dtype) if self.name == "jax" else "float32"
        return dataclasses.replace(config, dtype=dtype)

    def engine(
        self, drnet: DRNet, costs: Costs, variables: tuple[Tree, Tree], batch_size: int
    ) -> Engine | GraphEngine:
        """An engine for batches of any size up to `batch_size`; networks are of `config`."""
        if self.name == "jax":
            engine = Engine(drnet, costs, batch_size, smallest=1)
            engine.load(*variables)
            return engine
        builds = {"onnxruntime": _onnxruntime, "openvino": self._openvino}
        return GraphEngine(drnet, costs, variables, batch_size, builds[self.name])

    def _openvino(self, graph: bytes) -> Run:
        openvino = _imported_openvino()
        kind, core = {"bfloat16": "bf16"}.get(self.precision, "f32"), openvino.Core()
        model = core.compile_model(core.read_model(graph), "CPU", {
            "INFERENCE_PRECISION_HINT": kind, "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": cores(),
        })
        request = model.create_infer_request()

        def run(images: np.ndarray) -> dict[str, np.ndarray]:
            found = request.infer({"images": np.ascontiguousarray(images)})
            return {port.any_name: np.array(values) for port, values in found.items()}

        return run


JAX = Runtime("jax")


def _imported_openvino() -> ModuleType:
    """OpenVINO, without what tells its makers, in a fork of this process, that it is imported."""
    telemetry = "openvino_telemetry"
    hidden = telemetry not in sys.modules
    if hidden:
        sys.modules[telemetry] = None  # as if it were not installed
    try:
        import openvino
    finally:
        if hidden:
            del sys.modules[telemetry]
    return openvino


def _onnxruntime(graph: bytes) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores()
    # Several graphs take turns: threads of one that spin on would keep those of the next waiting.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(graph, options, ["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, {"images": images}), strict=True))

    return run


def find(name: str, precision: str | None) -> Runtime:
    """The runtime of a name, "auto" for the fastest that is installed.

    Raises:
        UserError: if it is none, not installed, or does not know the precision; or if JAX computes
            on other devices than a CPU.
    """
    if name != "auto" and name not in PRECISIONS:
        raise UserError(f"runtime: expected auto, {', '.join(PRECISIONS)}, received {name!r}")
    if name == "auto":
        return Runtime(installed(precision)[0], precision)
    if precision is not None and precision not in PRECISIONS[name]:
        raise UserError(
            f"precision: expected {' or '.join(PRECISIONS[name])} of {name}, received {precision!r}"
        )
    if name != "jax" and jax.default_backend() != "cpu":
        raise UserError(
            f"runtime: expected jax, which computes on {jax.default_backend()!r} here, received "
            f"{name!r}, which would on the CPU; set JAX_PLATFORMS=cpu for that"
        )
    if name != "jax" and not _installed(name):
        raise UserError(f"runtime: expected {name} to be installed; pip install {name} onnx")
    return Runtime(name, precision)


def installed(precision: str | None) -> list[str]:
    """The runtimes that can be used here in a precision, the fastest first."""
    others = FASTEST_ON_CPUS if jax.default_backend() == "cpu" else ()
    return [
        name for name in (*others, "jax")
        if precision in (None, *PRECISIONS[name]) and (name == "jax" or _installed(name))
    ]


def _installed(name: str) -> bool:
    return all(importlib.util.find_spec(each) for each in (name, "onnx"))


def measured(engine: Engine | GraphEngine, repeats: int = 5) -> tuple[float, ...]:
    """Milliseconds of an image at each resolution and by the predictor, [R + 1], in full batches.

    Medians, from pixels to the answer; what is compiled first is not in them.
    """
    size, base = engine.batch_size, engine.drnet.resolutions[0]
    images = np.random.default_rng(0).integers(0, 256, (size, base, base, 3), np.uint8)

    def passed(index: int) -> Any:
        batch = engine.upload(images)
        if index == len(engine.drnet.resolutions):
            return engine.predict(batch)
        return engine.classify(index, batch)

    found: list[list[float]] = []
    for turn in range(repeats + 1):
        times = []
        for index in range(len(engine.drnet.resolutions) + 1):
            began = time.perf_counter()
            jax.block_until_ready(passed(index))
            times.append(1e3 * (time.perf_counter() - began) / size)
        found += [times] if turn else []
    return tuple(map(statistics.median, zip(*found, strict=True)))
