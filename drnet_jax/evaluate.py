"""How good and how costly a DRNet is, under several routers, each image seen exactly once."""

import dataclasses
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from drnet_jax import routing
from drnet_jax.config import Config
from drnet_jax.cost import Costs
from drnet_jax.data.loader import Batch, eval_batches
from drnet_jax.data.sources import Source
from drnet_jax.inference import Queues, Server

RANDOM_DRAWS = 5

Router = Callable[[Batch], np.ndarray]  # a batch -> the resolution index of each row, int [N]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What happened to each of N images, in the order of their index in the data set."""

    index: np.ndarray  # int64 [N]
    label: np.ndarray  # int64 [N]
    choice: np.ndarray  # int64 [N], resolution index
    top: np.ndarray  # int64 [N, min(5, C)], predicted classes, best first
    smallest_scale: np.ndarray  # float64 [N], of the data set (see `data.sources`); 0 if unknown
    images_per_second: float  # of routing and classifying, over all hosts; waiting for data is not

    def hits(self, k: int) -> np.ndarray:
        """bool [N]: whether the label is among the k best classes."""
        return (self.top[:, :k] == self.label[:, None]).any(axis=1)

    def mix(self, resolutions: int) -> np.ndarray:
        """float64 [R]: the share of the images at each resolution."""
        return np.bincount(self.choice, minlength=resolutions) / len(self.choice)


def fixed(index: int) -> Router:
    """Every image at one resolution."""
    return lambda batch: np.full(len(batch["label"]), index)


def routed(server: Server) -> Router:
    """Each image where the predictor sends it."""
    return lambda batch: server.choose(batch["image"])


def given(choice: np.ndarray) -> Router:
    """Each image where a table [images of the data set] sends it."""
    return lambda batch: choice[batch["index"]]


def run(server: Server, batches: Iterable[Batch], router: Router) -> Outcome:
    """Routes and classifies all images, in buckets, and gathers what came of it from all hosts."""
    columns: dict[str, list[np.ndarray]] = {"index": [], "label": [], "choice": [], "scale": []}
    tickets, tops = [], []
    queues, seen, seconds = Queues(server), 0, 0.0

    def collect(done: Iterable[tuple[np.ndarray, np.ndarray]]) -> None:
        for ticket, top in done:
            tickets.append(ticket)
            tops.append(top)

    for batch in batches:
        batch = {name: values[batch["mask"]] for name, values in batch.items()}
        count = len(batch["label"])
        began = time.perf_counter()
        choice = router(batch)
        collect(queues.put(batch["image"], choice, np.arange(seen, seen + count)))
        seconds += time.perf_counter() - began
        seen += count
        for name, values in (
            ("index", batch["index"]), ("label", batch["label"]), ("choice", choice),
            ("scale", batch.get("smallest_scale", np.zeros(count))),
        ):
            columns[name].append(values)
    began = time.perf_counter()
    collect(queues.drain())
    seconds += time.perf_counter() - began

    table = {name: np.concatenate(values) for name, values in columns.items()}
    order = np.argsort(np.concatenate(tickets))
    table["top"] = np.concatenate(tops)[order]
    table, rate = _from_all_hosts(table, seen / seconds)
    order = np.argsort(table["index"])
    table = {name: values[order] for name, values in table.items()}
    return Outcome(
        table["index"], table["label"], table["choice"], table["top"], table["scale"], rate
    )


def _from_all_hosts(table: dict[str, np.ndarray], rate: float):
    if jax.process_count() == 1:
        return table, rate
    counts = multihost_utils.process_allgather(np.array([len(table["index"]), rate]))
    most = int(counts[:, 0].max())
    padded = {
        name: np.concatenate([values, np.repeat(values[:1], most - len(values), axis=0)])
        for name, values in table.items()
    }
    gathered = multihost_utils.process_allgather(padded)
    real = np.arange(most) < counts[:, :1]
    return {name: values[real] for name, values in gathered.items()}, float(counts[:, 1].sum())


def oracle_choice(outcomes: list[Outcome], costs: np.ndarray) -> np.ndarray:
    """The cheapest resolution at which each image is right, int [N]; if none is, the cheapest.

    Args:
        outcomes: one for each resolution, every image at that resolution.
        costs: [R], multiply-adds.
    """
    right = np.stack([outcome.hits(1) for outcome in outcomes], axis=1)  # [N, R]
    cheapest = np.argmin(np.where(right, costs, np.inf), axis=1)
    return np.where(right.any(axis=1), cheapest, np.argmin(costs))


def evaluate(
    server: Server, open_batches: Callable[[], Iterable[Batch]], costs: Costs, seed: int
) -> tuple[dict[str, Any], Outcome]:
    """The evaluation of a checkpoint: every fixed resolution, routed, random and oracle.

    Each is really run, through the same queues. The random router deals the routed choices out to
    other images, `RANDOM_DRAWS` times; one draw is run for its speed, and the accuracy of all is
    read off the fixed runs, which hold every image at every resolution. The predictor's cost is
    part of the routed cost alone: nothing else runs it.

    Returns:
        What `eval.json` holds: "images", "batch_size" and "policies", a list of {"name", "top1",
        "top5" (shares), "multiply_adds" (mean), "mix" ([R] shares), "images_per_second"}; and what
        routing did to each image.
    """
    server.warm_up()
    classifier = np.array(costs.classifier, float)
    at = [
        run(server, open_batches(), fixed(index)) for index in range(len(costs.resolutions))
    ]
    by_predictor = run(server, open_batches(), routed(server))
    draws = [routing.shuffled(by_predictor.choice, seed + draw) for draw in range(RANDOM_DRAWS)]
    at_random = run(server, open_batches(), given(_by_index(at[0], draws[0])))
    best = oracle_choice(at, classifier)
    at_best = run(server, open_batches(), given(_by_index(at[0], best)))

    policies = [
        _policy(f"fixed {resolution}", outcome, classifier, 0)
        for resolution, outcome in zip(costs.resolutions, at, strict=True)
    ]
    policies.append(_policy("routed", by_predictor, classifier, costs.predictor))
    policies.append(_policy("random", at_random, classifier, 0) | _draws(at, draws))
    policies.append(_policy("oracle", at_best, classifier, 0))
    report = {
        "images": len(at[0].label),
        "batch_size": server.batch_size,
        "resolutions": list(costs.resolutions),
        "policies": policies,
    }
    if by_predictor.smallest_scale.any():
        scales = np.array(costs.resolutions) / costs.resolutions[0]
        enough = scales[by_predictor.choice] >= by_predictor.smallest_scale - 1e-6
        report["at_or_above_smallest_scale"] = float(enough.mean())
    return report, by_predictor


def _by_index(outcome: Outcome, choice: np.ndarray) -> np.ndarray:
    """A choice for each image of an outcome -> a table by index in the data set."""
    table = np.zeros(outcome.index.max() + 1, choice.dtype)
    table[outcome.index] = choice
    return table


def _policy(name: str, outcome: Outcome, costs: np.ndarray, predictor: int) -> dict[str, Any]:
    mix = outcome.mix(len(costs))
    return {
        "name": name,
        "top1": float(outcome.hits(1).mean()),
        "top5": float(outcome.hits(5).mean()),
        "multiply_adds": float(mix @ costs + predictor),
        "mix": mix.tolist(),
        "images_per_second": outcome.images_per_second,
    }


def _draws(at: list[Outcome], draws: list[np.ndarray]) -> dict[str, float]:
    """Mean and deviation of the accuracy over random draws, from the fixed runs."""
    found = {}
    for k in (1, 5):
        hits = np.stack([outcome.hits(k) for outcome in at], axis=1)  # [N, R]
        shares = [hits[np.arange(len(draw)), draw].mean() for draw in draws]
        found |= {f"top{k}": float(np.mean(shares)), f"top{k}_deviation": float(np.std(shares))}
    return found


def validation_batches(config: Config, source: Source) -> Iterable[Batch]:
    """This host's share of the validation images, each once."""
    return eval_batches(
        source, config.data, size=config.model.resolutions[0],
        batch_size=config.evaluation.batch_size,
        process_index=jax.process_index(), process_count=jax.process_count(),
    )
