"""Bad images: those that could not be read and were passed over, told, counted and listed."""

import json
from pathlib import Path

import jax
import numpy as np

from drnet_jax.config import Data
from drnet_jax.data.examples import Bad
from drnet_jax.data.loader import Batch
from drnet_jax.data.protocol import Source
from drnet_jax.train.telemetry import Telemetry


class BadImages:
    """Of this host's share of the images; `bad_images.jsonl` of the workdir names each once.

    Hosts but the first write files of their own, `bad_images.1.jsonl` and so on.
    """

    def __init__(self, workdir: str, source: Source, data: Data, telemetry: Telemetry):
        host = jax.process_index()
        self._path = Path(workdir) / f"bad_images{f'.{host}' if host else ''}.jsonl"
        self._bad, self._telemetry = Bad(source, data.max_bad), telemetry
        self._listed = set()
        if self._path.exists():  # of what an earlier part of the run met
            lines = self._path.read_text().splitlines()
            self._listed = {json.loads(line)["image"] for line in lines}

    def take_from(self, batch: Batch, step: int) -> None:
        """Takes the column "bad" out of the batch of a step.

        Raises:
            UserError: if there are more by now than `config.data.max_bad`.
        """
        bad: np.ndarray = batch.pop("bad")
        for name, why in self._bad.add(bad):
            if name in self._listed:
                continue
            self._listed.add(name)
            self._telemetry.say(f"warning: step {step}: left out {name}: {why}")
            with self._path.open("a") as file:
                file.write(json.dumps({"image": name, "error": why, "step": step}) + "\n")
