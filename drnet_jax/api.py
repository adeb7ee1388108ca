"""Model: a trained DRNet, to use from Python.

    model = drnet_jax.load("runs/demo")
    for answer in model.predict(paths_or_arrays):
        print(answer.label, answer.probability, answer.resolution, answer.multiply_adds)
"""

import dataclasses
import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax

from drnet_jax.checkpoints.meta import Meta
from drnet_jax.config import GIGA, STAGES, Config
from drnet_jax.cost import Costs, model_costs
from drnet_jax.data.loader import check_source
from drnet_jax.data.sources import Source, open_source
from drnet_jax.data.transforms import Square
from drnet_jax.dial import Dial, Dials, Policy, milliseconds_of
from drnet_jax.drnet import DRNet
from drnet_jax.errors import UserError
from drnet_jax.evaluation import policies
from drnet_jax.evaluation.evaluate import Evaluation, evaluate
from drnet_jax.evaluation.files import DIALS, by_class, read_dials
from drnet_jax.evaluation.table import Table, host_batches
from drnet_jax.inference import runtimes
from drnet_jax.inference.engine import Engine
from drnet_jax.inference.graph_engine import GraphEngine
from drnet_jax.inference.holding import Holding
from drnet_jax.inference.predict import Answer, Image, Predictor, Wording, check_images
from drnet_jax.inference.queues import IN_FLIGHT
from drnet_jax.inference.runtimes import JAX, Runtime, measured
from drnet_jax.opening import open_model
from drnet_jax.routing import Cascade
from drnet_jax.transfer import Variables

POLICIES = ("router", "cascade")


class Model:
    """A checkpoint, ready to answer."""

    def __init__(
        self, meta: Meta, config: Config, variables: Variables, dials: Dials,
        classes: tuple[str, ...] | None = None, runtime: Runtime = JAX,
    ):
        """See `load`, which reads all of this from a checkpoint; `variables` are of `classes`."""
        self.meta = meta
        self.config = config
        self.classes = classes or meta.classes
        self.resolutions = meta.config.resolutions
        self.costs: Costs = model_costs(meta.config, len(self.classes))
        self.budget = meta.config.budget * GIGA  # multiply-adds; 0: none
        self.dials = dials  # by kind of policy; of those that validation told of
        self.runtime = runtime
        self.variables = variables

    @functools.cached_property
    def drnet(self) -> DRNet:
        """The networks."""
        return DRNet.from_config(self.meta.config, len(self.classes))

    @functools.cached_property
    def engine(self) -> Engine:
        """The compiled networks, for batches of `config.evaluation.batch_size`."""
        return self.engine_for(self.config.evaluation.batch_size)

    def engine_for(self, batch_size: int) -> Engine:
        """A new engine for batches of a size."""
        engine = Engine(self.drnet, self.costs, batch_size)
        engine.load(*self.variables)
        return engine

    def like(self, batch_size: int, runtime: Runtime | None = None) -> "Model":
        """The same model, for batches of another size, and perhaps in another runtime."""
        evaluation = dataclasses.replace(self.config.evaluation, batch_size=batch_size)
        config = dataclasses.replace(self.config, evaluation=evaluation)
        return Model(
            self.meta, config, self.variables, self.dials, self.classes, runtime or self.runtime
        )

    @functools.cached_property
    def predicting(self) -> Engine | GraphEngine:
        """The networks in the runtime that predicts, for batches up to the size of evaluation."""
        size = self.config.evaluation.batch_size
        config = self.runtime.config(self.meta.config)
        drnet = DRNet.from_config(config, len(self.classes))
        return self.runtime.engine(drnet, self.costs, self.variables, size)

    def predict(
        self, images: Iterable[Image], budget: float | str | None = None,
        skip_errors: bool = False, min_accuracy: float | None = None, policy: str | None = None,
        top: int = 1, hold: bool = False,
    ) -> Iterator[Answer]:
        """Classifies any number of images of any sizes, each by the option that it needs.

        Args:
            images: files, their bytes, Pillow images, or arrays uint8 [H, W, 3] in RGB.
            budget: what an image may cost on average, in place of what the model was trained for:
                multiply-adds, all that is run included, or "12ms" of this machine's time, in full
                batches; 0 for no limit. It is met as far as these images are like those that the
                model was validated on; or see `hold`.
            skip_errors: whether an image that cannot be read becomes an Answer with an `error`.
            min_accuracy: instead of a budget, top-1 from 0 to 1 that is to be reached on such
                images, for as little as it takes.
            policy: "router", which asks the predictor, or "cascade", which answers cheaply and
                again where that leaves doubt; by default the router, if the predictor is trained.
            top: how many of the most probable classes an Answer has.
            hold: whether a budget of multiply-adds is met on these very images, whatever they are
                like: the price follows what they cost, and an answer depends on the images before.

        Yields:
            An Answer for each image, in the order given.

        Raises:
            UserError: if an image cannot be read, unless `skip_errors`; at once if `images` is a
                single one, if the budget or accuracy is out of reach, if what they are read off is
                not known, or if the policy needs a predictor that is not trained.
        """
        check_images(images)
        chosen = self.policy(budget, min_accuracy, policy)
        holding = self.holding(budget, chosen) if hold else None
        wording = Wording(self.predicting, self.classes, min(top, len(self.classes)))
        return Predictor(wording, self.square, chosen, holding).answers(images, skip_errors)

    def holding(self, budget: float | str | None, policy: Policy) -> Holding:
        """What holds a budget of multiply-adds from a price on; UserError if there is none."""
        milliseconds = milliseconds_of(budget) is not None
        wanted = 0.0 if milliseconds else self.budget if budget is None else float(budget)
        if not wanted or isinstance(policy, Cascade):
            raise UserError(
                "hold: expected a budget of multiply-adds, and the router, received "
                + ("a cascade" if isinstance(policy, Cascade)
                   else "milliseconds" if milliseconds else "no budget")
            )
        lag = IN_FLIGHT * self.config.evaluation.batch_size
        return Holding(policy, self.costs, wanted, lag)

    def policy(
        self, budget: float | str | None = None, min_accuracy: float | None = None,
        kind: str | None = None,
    ) -> Policy:
        """The price or the cascade that `predict` works at, whose arguments and errors these are.
        """
        kind = self.kind(kind)
        if budget is not None and min_accuracy is not None:
            raise UserError("budget and min_accuracy: expected one of them, received both")
        if len(self.costs.options) == 1:
            return 0.0
        if min_accuracy is not None:
            return self.dial(kind, "min_accuracy").at_accuracy(min_accuracy, "min_accuracy")
        milliseconds = milliseconds_of(budget)
        if milliseconds is not None:
            dial = self.dial(kind, "budget")
            return dial.at_cost(
                milliseconds, self.milliseconds, "budget", lambda found: f"{found:.3g}ms"
            )
        budget = self.budget if budget is None else float(budget)
        if not budget:
            return 0.0 if kind == "router" else self.dial(kind, "budget").most_accurate()
        return self.dial(kind, "budget").at_cost(
            budget, self.costs.networks, "config.budget (or --budget)",
            lambda found: f"{found / GIGA:.4g} G",
        )

    def kind(self, kind: str | None = None) -> str:
        """"router" or "cascade": the one asked for, or what suits the checkpoint."""
        kind = kind or POLICIES[not self.predictor_trained]
        if kind not in POLICIES:
            raise UserError(f"policy: expected {' or '.join(POLICIES)}, received {kind!r}")
        if kind == "router" and not self.predictor_trained and len(self.costs.options) > 1:
            raise UserError(
                f"policy: expected a checkpoint of stage {STAGES[1]}, received one of stage "
                f"{self.meta.stage} (step {self.meta.step}): its predictor is not trained, so that "
                "it cannot choose resolutions; take a cascade"
            )
        return kind

    def dial(self, kind: str, name: str = "budget") -> Dial:
        """What is known of a kind of policy; raises UserError, about `name`, if nothing is."""
        if kind not in self.dials:
            among = "" if self.classes == self.meta.classes else (
                f" among these {len(self.classes)} of its {len(self.meta.classes)} classes"
            )
            raise UserError(
                f"{name}: expected a checkpoint that was validated{among}, received step "
                f"{self.meta.step}, of which nobody knows what a {kind} costs; drnet eval finds out"
                + "; or take budget 0, for no limit" * (kind == "router")
            )
        return self.dials[kind]

    @functools.cached_property
    def milliseconds(self) -> tuple[float, ...]:
        """[R + 1]: what an image takes here at each resolution, and by the predictor, measured in
        full batches."""
        return measured(self.predicting)

    def evaluate(
        self, folder: str | os.PathLike | None = None, budget: float | None = None
    ) -> dict[str, Any]:
        """Measures the model on labelled images.

        Args:
            folder: holds <class>/*, or the validation split's folder with these; None: the
                validation split that the model was trained with.
            budget: as for `predict`; here it is met on these very images.

        Returns:
            What eval.json holds, see docs/files.md.

        Raises:
            UserError: if there are no such images, or no choice of options costs the budget.
        """
        return self.measure(self.source(folder), budget).report

    def source(self, folder: str | os.PathLike | None = None) -> Source:
        """The labelled images that `evaluate` measures the model on; UserError as there.

        Where it answers among some classes only, images of others are left out.
        """
        data = self.config.data
        if folder is not None:
            data = dataclasses.replace(data, name="folder", dir=os.fspath(folder))
        part = self.classes != self.meta.classes
        return open_source(data, training=False, classes=self.classes, leave_out=part)

    def measure(self, source: Source, budget: float | None = None) -> Evaluation:
        """`evaluate` on an open source, with all that was found of each image."""
        budget = self.budget if budget is None else budget
        self.costs.check_budget(budget)
        check_source(source, self.config.data, self.resolutions[0])
        share = range(jax.process_index(), len(source), jax.process_count())
        found = evaluate(
            self.engine, host_batches(self.engine, source, self.config.data, self.square),
            len(share), budget, self.config,
        )
        classes = by_class(found.table, found.routed, self.costs, self.classes)
        header = {
            "checkpoint": self.meta.step, "stage": self.meta.stage, "seed": self.config.seed,
            "predictor_trained": self.predictor_trained, "answers_among": len(self.classes),
            "first_image": source.key(0),
        }
        footer = {"classes": classes, "notes": list(source.notes)}
        return dataclasses.replace(found, report=header | found.report | footer)

    @property
    def predictor_trained(self) -> bool:
        """Whether the checkpoint is of a stage that trains the predictor."""
        return self.meta.stage == STAGES[-1] or self.costs.classifies

    @property
    def square(self) -> Square:
        """What images are squashed to before the base size is cropped."""
        return Square.of(self.meta.preprocessing)

    def dials_of(self, table: Table) -> dict[str, Dial]:
        """What an evaluation's table tells of routing, if the predictor is trained, and cascades.
        """
        budget = self.budget if self.predictor_trained else None
        return policies.dials(table, self.costs, budget, self.config.evaluation.rule)


def load(
    path: str | os.PathLike, checkpoint: str = "last", config: Config | None = None,
    classes: Sequence[str] | None = None, runtime: str = "auto", precision: str | None = None,
) -> Model:
    """Opens a trained model, with nothing but its checkpoint.

    Args:
        path: the workdir of a run, a checkpoint's directory in it (workdir/checkpoints/STEP), or an
            export.
        checkpoint: "last" or "best" of the workdir.
        config: whose `data`, `evaluation` and `seed` to use instead of the checkpoint's.
        classes: those of the checkpoint's among which to answer; None: all.
        runtime: that predicts: "jax", "onnxruntime", "openvino", or "auto", the fastest that is
            installed. Evaluation is JAX's.
        precision: "float32" or "bfloat16", of predictions; None: that of training.

    Raises:
        UserError: if there is no checkpoint, it does not know the classes, or there is no such
            runtime here.
    """
    found = runtimes.find(runtime, precision)
    path = os.path.expanduser(path)
    opened = open_model(path, checkpoint)
    if classes is not None:
        opened = opened.among(tuple(classes))
    # Of what training could not know an evaluation may.
    evaluated = read_dials(opened.workdir / DIALS, opened.meta.step, opened.classes)
    return Model(
        opened.meta, config or opened.meta.config, opened.variables, evaluated | opened.dials,
        opened.classes, found,
    )
