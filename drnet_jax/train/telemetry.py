"""What a run tells: a progress bar, metrics.jsonl, TensorBoard events, and warnings."""

import json
import math
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from clu import metrics
from tensorboardX import SummaryWriter
from tqdm import tqdm

from drnet_jax import routing
from drnet_jax.cost import Costs
from drnet_jax.devices import Compilation

COLLAPSED = 0.99  # share of one resolution in a window from which on the router has collapsed
HINT = (
    "every image goes to one resolution, so the router decides nothing. "
    "config.router.objective='outcome' keeps to a budget without this; with 'gumbel' try a higher "
    "config.router.gumbel.temperature, a config.router.gumbel.alpha between the costs of two "
    "resolutions, a lower config.router.gumbel.eta, or a lower config.optimizer.predictor_rate."
)


class Telemetry:
    """Writes to `workdir`, and to the terminal, on the first host only."""

    def __init__(self, workdir: str):
        self._active = jax.process_index() == 0
        self._jsonl = Path(workdir) / "metrics.jsonl"
        self._tensorboard = SummaryWriter(
            str(Path(workdir) / "tensorboard"), write_to_disk=self._active
        )
        self._bar: tqdm | None = None
        self._step = 0  # of the last record

    def rewind(self, step: int) -> None:
        """Drops what an interrupted run wrote after the checkpoint it goes on from."""
        if not self._active or not self._jsonl.exists():
            return
        lines = self._jsonl.read_text().splitlines()
        kept = [line for line in lines if _step_of(line) <= step]
        self._step = step
        self._jsonl.write_text("".join(f"{line}\n" for line in kept))

    def say(self, text: str) -> None:
        """Prints above the progress bar."""
        if self._active:
            tqdm.write(text)

    def compiled(self, compilation: Compilation) -> None:
        """Tells that a program was compiled (the callback of `Programs`)."""
        self.say(str(compilation))
        self._record("compile", {
            "program": compilation.name, "seconds": compilation.seconds,
            "waited": compilation.waited,
        })

    def begin(self, stage: str, step: int, steps: int) -> None:
        """Starts the progress bar of a stage."""
        # Without a terminal the bar is off, and each window prints a line instead.
        self._bar = tqdm(
            total=steps, initial=step, desc=stage, unit="step", disable=None if self._active
            else True, dynamic_ncols=True,
        )

    def step(self) -> None:
        """Moves the bar by one."""
        self._bar.update()

    def end(self) -> None:
        """Ends the bar of a stage."""
        self._bar.close()

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Records values of a step, `kind` being "train" or "validation"."""
        if not self._active:
            return
        self._step = step
        self._record(kind, values)
        for name, value in values.items():
            if isinstance(value, float):
                self._tensorboard.add_scalar(f"{kind}/{name}", value, step)
            elif isinstance(value, dict):
                for key, item in value.items():
                    self._tensorboard.add_scalar(f"{kind}/{name}/{key}", item, step)
        summary = _summary(values)
        if self._bar is not None and not self._bar.disable and kind == "train":
            self._bar.set_postfix_str(summary)
        else:
            self.say(f"{kind} {step}: {summary}")

    def close(self) -> None:
        """Flushes the TensorBoard events."""
        self._tensorboard.close()

    def _record(self, kind: str, values: dict[str, Any]) -> None:
        if self._active:
            line = {"kind": kind, "step": self._step, "time": time.time()} | values
            with self._jsonl.open("a") as file:
                file.write(json.dumps(line) + "\n")


def _step_of(line: str) -> float:
    """The step of a line of metrics.jsonl; infinity if a kill cut the line short."""
    try:
        return json.loads(line)["step"]
    except json.JSONDecodeError:
        return math.inf


def _summary(values: dict[str, Any]) -> str:
    def text(value: Any) -> str:
        if isinstance(value, dict):
            return "/".join(text(item) for item in value.values())
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    return " ".join(f"{name} {text(value)}" for name, value in values.items())


class Window:
    """Averages the step metrics between two log lines."""

    def __init__(self, costs: Costs):
        self._costs = costs
        self.clear()

    def clear(self) -> None:
        """Starts the next window."""
        self._sums: dict[str, metrics.Average] = {}
        self._began, self._steps = time.perf_counter(), 0
        self._data_wait, self._compile_wait = 0.0, 0.0

    def waited(self, for_data: float, for_compiler: float) -> None:
        """Adds seconds spent waiting for the input, and for programs to be compiled."""
        self._data_wait += for_data
        self._compile_wait += for_compiler

    def add(self, sums: dict[str, np.ndarray]) -> None:
        """Adds the metrics of a step (see `train.steps`)."""
        count = sums["count"]
        self._steps += 1
        new = {
            name: metrics.Average(total=value, count=count)
            for name, value in sums.items() if name != "count"
        }
        self._sums = {
            name: self._sums[name].merge(value) if self._sums else value
            for name, value in new.items()
        }

    def values(self, steps_left: int) -> dict[str, Any]:
        """What to log: means over the window, in the words of metrics.jsonl."""
        means = {
            name: np.asarray(value.total) / np.asarray(value.count)
            for name, value in self._sums.items()
        }
        images = float(np.asarray(self._sums["loss"].count))
        seconds = time.perf_counter() - self._began
        found: dict[str, Any] = {"loss": float(means["loss"])}
        if "chosen" in means:
            mix = means["chosen"]
            found["accuracy"] = float(means["correct"].sum())
            found["mix"] = self._by_resolution(mix)
            found["cost"] = float(mix @ np.array(self._costs.classifier)) + self._costs.predictor
            found["entropy"] = routing.entropy(mix)
            found["router_loss"] = float(means["router_loss"])
            if "slots" in means:
                found["padding"] = float(1 - mix.sum() / means["slots"].sum())
        else:
            found["accuracy"] = self._by_resolution(means["correct"])
        found["images_per_second"] = images / seconds
        found["data_wait"] = self._data_wait / seconds
        found["compile_wait"] = self._compile_wait / seconds
        found["seconds_left"] = steps_left * seconds / self._steps
        return found

    def collapsed(self) -> bool:
        """Whether one resolution, of several, took nearly all the images of the window."""
        if "chosen" not in self._sums or len(self._costs.resolutions) == 1:
            return False
        chosen = self._sums["chosen"]
        return bool(np.max(chosen.total) >= COLLAPSED * chosen.count)

    def _by_resolution(self, values: np.ndarray) -> dict[str, float]:
        return {
            str(resolution): float(value)
            for resolution, value in zip(self._costs.resolutions, values, strict=True)
        }
