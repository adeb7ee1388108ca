"""Telemetry, or logging: a progress bar, metrics.jsonl, TensorBoard events, and warnings.

A line of metrics.jsonl is a JSON object with `kind`, `step` (counted over both stages) and `time`
(seconds since 1970). A cost is `multiply_adds` of one image, a mix the share of the images of each
option, `{"64": 0.5, ..., "predictor": 0.1}`; accuracies and shares are between 0 and 1.

    train       means over the steps since the line before: `stage`, `loss` (what is optimised of
                the classes, in stage 1 summed over the resolutions), `learning_rate` (the last
                step's, of the classifier), `images_per_second`, `data_wait` and `compile_wait`
                (shares of the time), `seconds_left` of the stage; `accuracy`, in stage 1 by option;
                `router_loss`, in stage 1 of a predictor that knows the classes; in stage 2 `mix`,
                `multiply_adds` (the predictor's included), `entropy` of the mix in nats, and
                `padding` (the share of the buckets' rows that are no image)
    adapt       means over the steps since the line before, by resolution: `loss`, and `agreement`,
                the share of the images that are answered as at the base
    validation  `stage`, and what `drnet_jax.train.validation` found
    compile     `program`, `seconds`, and `waited`, those for which the run stood still

TensorBoard has the numbers of `train` and `validation`.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from clu import metrics
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar
from tqdm import tqdm

from drnet_jax import routing
from drnet_jax.buckets import padding
from drnet_jax.cost import Costs
from drnet_jax.devices import Compilation
from drnet_jax.formatting import by_option

COLLAPSED = 0.99  # share of one option in a window from which on the router has collapsed
HINT = (
    "every image is answered by one option, so the router decides nothing. With "
    "config.router.objective='outcome' look whether config.budget is what that option costs; with "
    "'gumbel' try a higher config.router.gumbel.temperature, a config.router.gumbel.alpha between "
    "the costs of two resolutions, a lower config.router.gumbel.eta, or a lower "
    "config.optimizer.predictor_rate."
)


class Telemetry:
    """Writes to `workdir`, once it is open, and to the terminal, on the first host only."""

    def __init__(self, workdir: str):
        self._active = jax.process_index() == 0
        self._jsonl = Path(workdir) / "metrics.jsonl"
        self._events = Path(workdir) / "tensorboard"
        # Not a SummaryWriter: its flush leaves out what still waits in a queue for its thread.
        self._tensorboard: EventsWriter | None = None
        self._bar: tqdm | None = None
        self._step = 0  # of the last record

    def open(self, step: int) -> None:
        """Opens the files, and drops what an interrupted run wrote after `step`."""
        self._step = step
        if not self._active:
            return
        if self._jsonl.exists():
            self._rewind(step)
        self._events.mkdir(exist_ok=True)
        older = any(self._events.glob("events*"))
        self._tensorboard = EventsWriter(str(self._events / "events"), f".after_{step}")
        if older:  # of which TensorBoard then shows no later step
            session = SessionLog(status=SessionLog.START)
            self._tensorboard.write_event(
                Event(step=step + 1, wall_time=time.time(), session_log=session)
            )

    def _rewind(self, step: int) -> None:
        *lines, cut = self._jsonl.read_bytes().split(b"\n")
        steps = [_step_of(line) for line in lines]
        strange = [str(number) for number, at in enumerate(steps, 1) if at is None]
        if strange:
            self.say(
                f"warning: {self._jsonl}: expected a record of a run in every line; left as they "
                f"are: {'line' if len(strange) == 1 else 'lines'} {', '.join(strange)}"
            )
        kept = [line for line, at in zip(lines, steps, strict=True) if at is None or at <= step]
        # Of what has no end of line a kill may have cut a part off.
        if _step_of(cut) is not None and _step_of(cut) <= step:
            kept.append(cut)
        whole = self._jsonl.with_suffix(".new")
        whole.write_bytes(b"".join(line + b"\n" for line in kept))
        os.replace(whole, self._jsonl)

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
                self._plot(f"{kind}/{name}", value)
            elif isinstance(value, dict):
                for key, item in value.items():
                    self._plot(f"{kind}/{name}/{key}", item)
        summary = _summary(values)
        if self._bar is not None and not self._bar.disable and kind == "train":
            self._bar.set_postfix_str(summary)
        else:
            self.say(f"{kind} {step}: {summary}")

    def flush(self) -> None:
        """Writes out the TensorBoard events, which else may wait for a while."""
        if self._active:
            self._tensorboard.flush()

    def __enter__(self) -> "Telemetry":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Flushes and closes everything, the bar of a stage that was cut short too."""
        if self._bar is not None:
            self._bar.close()
        if self._tensorboard is not None:
            try:
                self._tensorboard.close()
            except OSError:
                if error is None:  # else what went wrong first is told
                    raise

    def _plot(self, name: str, value: float) -> None:
        self._tensorboard.write_event(
            Event(step=self._step, wall_time=time.time(), summary=scalar(name, value))
        )

    def _record(self, kind: str, values: dict[str, Any]) -> None:
        if self._active:
            line = {"kind": kind, "step": self._step, "time": time.time()} | values
            try:
                with self._jsonl.open("a") as file:
                    file.write(json.dumps(line) + "\n")
            except OSError as error:
                error.filename = str(self._jsonl)  # which those of writing do not have
                raise


def _step_of(line: bytes) -> int | None:
    """The step of a line of metrics.jsonl; None if it is not a record of ours."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    step = record.get("step") if isinstance(record, dict) else None
    return step if isinstance(step, int) else None


def _summary(values: dict[str, Any]) -> str:
    def text(value: Any) -> str:
        if isinstance(value, dict):
            return "/".join(text(item) for item in value.values())
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    # A missed budget has a warning of its own.
    return " ".join(f"{name} {text(value)}" for name, value in values.items() if name != "missed")


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
        """Adds the metrics of a step (see `drnet_jax.train.device`)."""
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
        logged: dict[str, Any] = {"loss": float(means["loss"])}
        if "chosen" in means:
            mix = means["chosen"]
            logged["accuracy"] = float(means["correct"].sum())
            logged["mix"] = by_option(self._costs.options, mix)
            logged["multiply_adds"] = float(mix @ self._costs.routed)
            logged["entropy"] = routing.entropy(mix)
            if "slots" in means:
                in_buckets = mix[: len(self._costs.resolutions)].sum()
                logged["padding"] = padding(in_buckets, means["slots"].sum())
        else:
            logged["accuracy"] = by_option(self._costs.options, means["correct"])
        if "router_loss" in means:
            logged["router_loss"] = float(means["router_loss"])
        logged["images_per_second"] = images / seconds
        logged["data_wait"] = self._data_wait / seconds
        logged["compile_wait"] = self._compile_wait / seconds
        logged["seconds_left"] = steps_left * seconds / self._steps
        return logged

    def collapsed(self) -> bool:
        """Whether one option, of several, took nearly all the images of the window."""
        if "chosen" not in self._sums or len(self._costs.options) == 1:
            return False
        chosen = self._sums["chosen"]
        return bool(np.max(chosen.total) >= COLLAPSED * chosen.count)
