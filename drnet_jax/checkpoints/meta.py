"""Meta: what a checkpoint is, as it says itself."""

import dataclasses
import json
from typing import Any

from drnet_jax import dial
from drnet_jax.config import Config
from drnet_jax.config_check import parse
from drnet_jax.dial import Dials
from drnet_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where in its stage, and in which training images, a run stands."""

    first_step: int  # over all stages, the step after which the stage began
    examples: int  # that all processes together have taken from the stage's stream of examples
    images: int  # in the training split
    fingerprint: str  # of their names, see `drnet_jax.data.sources.Source`
    # Steps by which schedule and epochs are ahead of the steps of the stage: 0 until the training
    # images change, and with them the steps of an epoch.
    ahead: int = 0


@dataclasses.dataclass(frozen=True)
class Meta:
    """What a checkpoint is."""

    stage: str
    step: int  # over all stages
    stage_end: bool  # whether it is the last of its stage
    config: Config
    classes: tuple[str, ...]
    metrics: dict[str, Any]  # of the validation at this step; {} where there was none
    bucket_sizes: dict[str, dict[str, int]]  # steps until each is in use (see `train.sizes`)
    progress: Progress
    preprocessing: dict[str, Any]  # that the networks expect, see `transforms.preprocessing`
    # What a validation at this step found.
    dials: Dials = dataclasses.field(default_factory=dict)

    @property
    def resolutions(self) -> tuple[int, ...]:
        return self.config.resolutions

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {
            "config": json.loads(self.config.to_json()),
            "classes": list(self.classes), "resolutions": list(self.resolutions),
            "dials": dial.to_json(self.dials),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any], where: str) -> "Meta":
        """The inverse of `to_json`; raises UserError, naming `where`, for another version's."""
        try:
            values = {field.name: values[field.name] for field in dataclasses.fields(cls)}
            return cls(**values | {
                "config": parse(values["config"]), "classes": tuple(values["classes"]),
                "progress": Progress(**values["progress"]),
                "dials": dial.from_json(values["dials"]),
            })
        except (KeyError, TypeError, UserError) as error:
            raise UserError(
                f"{where}: expected a checkpoint of this version of drnet_jax ({error})"
            ) from error
