"""Cases: what the benchmark times of ours, training steps and inference."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from drnet_jax.benchmark.timing import Case
from drnet_jax.buckets import padding
from drnet_jax.config import STAGES, Config
from drnet_jax.cost import TRAINING_PASSES, Costs
from drnet_jax.devices import AXIS, Compilation, per_device, put_batch, replicated
from drnet_jax.drnet import DRNet, Tree
from drnet_jax.inference.engine import Engine
from drnet_jax.inference.queues import IN_FLIGHT, Queues
from drnet_jax.train.base_step import Step
from drnet_jax.train.device import Plan, Sums, plan_of
from drnet_jax.train.finetune_step import FinetuneStep
from drnet_jax.train.optimizer import make_optimizer
from drnet_jax.train.sizes import Sizes
from drnet_jax.train.state import TrainState, create_state
from drnet_jax.train.step import Setup, make_step

STEPS_PER_EPOCH = 1000  # for the learning rate's schedule; any number will do
STREAM = 12  # batches of a routed stream: enough for the queues to fill


@dataclasses.dataclass(frozen=True)
class Contestant(Case):
    """A case with the work that it does."""

    group: str  # "training" or "inference"
    multiply_adds: float  # an image, by the convention of `drnet_jax.benchmark`
    padded: float = 0.0  # share of padding in the rows that the classifier is run on


def deal(mix: np.ndarray, images: int, seed: int) -> np.ndarray:
    """Choices int32 [images] in the proportions mix [O], as exactly as whole images allow."""
    ends = np.round(np.cumsum(mix) / np.sum(mix) * images).astype(int)
    choice = np.repeat(np.arange(len(mix), dtype=np.int32), np.diff(ends, prepend=0))
    return np.random.default_rng(seed).permutation(choice)


@dataclasses.dataclass(frozen=True)
class ForcedStep(FinetuneStep):
    """A finetuning step whose images go where a table sends them.

    The predictor runs and is waited for as in any step; only its choice is replaced.
    """

    choices: Iterator[np.ndarray]  # int32 [B], for each step the next

    @classmethod
    def of(cls, step: FinetuneStep, choices: Iterator[np.ndarray]) -> "ForcedStep":
        """A finetuning step with these choices in place of its own."""
        values = {field.name: getattr(step, field.name) for field in dataclasses.fields(step)}
        return cls(**values, choices=choices)

    def route(
        self, state: TrainState, batch: Tree, noise: jax.Array, key: jax.Array
    ) -> tuple[Plan, Sums, jax.Array]:
        routed, sums, counts = super().route(state, batch, noise, key)
        jax.block_until_ready(counts)
        plan, counts = self.deal_out(next(self.choices).tobytes())
        return plan.replace(key=routed.key), sums, counts

    @functools.cached_property
    def deal_out(self) -> Callable[[bytes], tuple[Plan, np.ndarray]]:
        """Choices -> their plan, and the largest count of each bucket over the devices, int [R]."""
        def deal_out(choice: jax.Array):
            plan = plan_of(choice, len(self.drnet.resolutions))
            return plan, jax.lax.pmax(plan.counts[0], AXIS)

        mapped = jax.jit(per_device(self.mesh, deal_out, P(AXIS), (P(AXIS), P())))

        @functools.lru_cache(1)  # most benchmarks repeat theirs
        def remembered(choice: bytes) -> tuple[Plan, np.ndarray]:
            batch = {"choice": np.frombuffer(choice, np.int32)}
            plan, counts = mapped(put_batch(self.mesh, batch)["choice"])
            return plan, np.asarray(counts)

        return remembered


def training(
    setup: Setup, batch: dict[str, np.ndarray], choice: np.ndarray
) -> Iterator[Contestant]:
    """Steps of a plain classifier at the base size, of stage 1, and of stage 2, dense and bucketed.
    """
    config, drnet, costs, mesh = setup.config, setup.drnet, setup.costs, setup.mesh
    size, key = len(choice), jax.device_put(jax.random.key(config.seed), replicated(mesh))
    batch = put_batch(mesh, batch)

    def contestant(
        name: str, step: Step, multiply_adds: float, padded: float = 0.0
    ) -> Contestant:
        state = initial_state(step, key)

        def call() -> Tree:
            nonlocal state
            state, metrics = step(state, batch, key)
            return metrics

        return Contestant(name, size, call, "training", TRAINING_PASSES * multiply_adds, padded)

    # Pretraining with a single candidate, and no predictor, is plain training.
    plain = dataclasses.replace(
        drnet, resolutions=drnet.resolutions[:1], norm_keys=drnet.norm_keys[:1], classifies=False
    )
    optimizers = {stage: make_optimizer(config, stage, STEPS_PER_EPOCH) for stage in STAGES}
    static = make_step(
        dataclasses.replace(setup, drnet=plain), "pretrain", optimizers["pretrain"]
    )
    # A single candidate has no other to teach.
    alone = dataclasses.replace(static.settings, distillation=0.0)
    yield contestant("static", dataclasses.replace(static, settings=alone), costs.classifier[0])

    all_at_once = sum(costs.classifier) + costs.predictor * costs.classifies
    yield contestant("stage 1", make_step(setup, "pretrain", optimizers["pretrain"]), all_at_once)

    def forced(dense: bool) -> ForcedStep:
        sizes = Sizes(config.bucket_multiple, lead=0)
        step = make_step(setup, "finetune", optimizers["finetune"], sizes)
        return ForcedStep.of(dataclasses.replace(step, dense=dense), itertools.repeat(choice))

    yield contestant("dense", forced(True), sum(costs.classifier) + costs.predictor)
    bucketed, local = forced(False), size // mesh.size
    slots = bucketed.sizes.advance(bucketed.deal_out(choice.tobytes())[1].tolist(), local)
    padded = padding(np.sum(choice < len(slots)), mesh.size * sum(slots))
    yield contestant("bucketed", bucketed, _mean_cost(costs, choice), padded)


def initial_state(step: Step, key: jax.Array) -> TrainState:
    """A fresh state for a step, on its mesh."""
    def create(key: jax.Array) -> TrainState:
        state = create_state(step.drnet, step.optimizer, step.ema, key)
        if not isinstance(step, FinetuneStep) and not step.drnet.classifies:
            # Neither routing nor learning: no predictor to carry along.
            without = {name: tree | {"predictor": {}} for name, tree in state.weights.items()}
            state = state.beginning_with(**without).replace(
                opt_state=step.optimizer.init(without["params"])
            )
        return state

    return jax.jit(create, out_shardings=replicated(step.mesh))(key)


def _mean_cost(costs: Costs, choice: np.ndarray) -> float:
    mix = np.bincount(choice, minlength=len(costs.options)) / len(choice)
    return costs.mean(mix.tolist(), with_predictor=True)


def inference(
    drnet: DRNet, costs: Costs, mesh: Mesh, images: np.ndarray, mix: np.ndarray, seed: int,
    announce: Callable[[Compilation], None],
) -> Iterator[Contestant]:
    """A plain classifier at the base size, routing through queues, and the predictor alone."""
    variables = jax.jit(drnet.init, out_shardings=replicated(mesh))(jax.random.key(seed))
    size = len(images)
    engine = Engine(drnet, costs, size, announce)
    engine.load(*variables)
    choice = deal(mix, STREAM * size, seed)

    def put(
        queues: Queues, batch: jax.Array, decided: jax.Array, _: jax.Array,
        own: jax.Array | None, rows: np.ndarray,
    ) -> Any:
        jax.block_until_ready(decided)  # at its price; the table decides
        return queues.put(batch, choice[rows], rows, own)

    def routed() -> dict[str, np.ndarray]:
        queues, done, waiting = Queues(engine), [], []
        for rows in np.split(np.arange(len(choice)), STREAM):
            batch = engine.upload(images)
            waiting.append((batch, *engine.choose(batch, 0.0), rows))
            if len(waiting) == IN_FLIGHT:
                done += put(queues, *waiting.pop(0))
        for each in waiting:
            done += put(queues, *each)
        done += queues.drain()
        tickets = np.concatenate([answers.tickets for answers in done])
        return {"chosen": np.bincount(choice[tickets], minlength=drnet.options)}

    counts = np.bincount(choice, minlength=drnet.options)[: len(drnet.resolutions)]
    full = -(-counts // size) * size
    for name, per_call, call, cost, padded in (
        ("static", size, lambda: engine.classify(0, engine.upload(images)),
         costs.classifier[0], 0.0),
        ("predictor", size, lambda: engine.choose(engine.upload(images), 0.0)[0],
         costs.predictor, 0.0),
        ("routed", len(choice), routed, _mean_cost(costs, choice),
         padding(counts.sum(), full.sum())),
    ):
        yield Contestant(name, per_call, call, "inference", cost, padded)


def draw(config: Config, batch_size: int) -> dict[str, np.ndarray]:
    """A batch of drawn images and labels, uint8 [B, H, W, 3] and int32 [B]."""
    random, base = np.random.default_rng(config.seed), config.resolutions[0]
    return {
        "image": random.integers(0, 256, (batch_size, base, base, 3), np.uint8),
        "label": random.integers(0, config.classifier.classes, batch_size, np.int32),
    }
