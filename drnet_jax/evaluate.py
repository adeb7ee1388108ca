"""How good and how costly a DRNet is, under several routers, each image seen exactly once."""

import dataclasses
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from drnet_jax import gains, policies, routing
from drnet_jax.config import Config
from drnet_jax.cost import Costs
from drnet_jax.data.loader import Batch, eval_batches
from drnet_jax.data.sources import Source
from drnet_jax.inference import Answers, CascadeQueues, Queues, Server
from drnet_jax.policies import Cascade, Table

RANDOM_DRAWS = 5

Batches = Callable[[], Iterable[Batch]]  # opens this host's share of the images, from the first on
Router = Callable[[Batch], np.ndarray]  # a batch -> the resolution index of each row, int [N]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What happened to each of N images, in the order of their index in the data set."""

    index: np.ndarray  # int64 [N]
    label: np.ndarray  # int64 [N]
    choice: np.ndarray  # int64 [N], index of the resolution whose answer counts (the last)
    log_p: np.ndarray  # float32 [N, C], log-probabilities of the classes
    smallest_scale: np.ndarray  # float64 [N], of the data set (see `data.sources`); 0 if unknown
    images_per_second: float  # of routing and classifying, over all hosts; waiting for data is not

    def hits(self, k: int) -> np.ndarray:
        """bool [N]: whether the label is among the k best classes."""
        return policies.rank(self.log_p, self.label) < k

    def mix(self, resolutions: int) -> np.ndarray:
        """float64 [R]: the share of the images at each resolution."""
        return np.bincount(self.choice, minlength=resolutions) / len(self.choice)


def fixed(index: int) -> Router:
    """Every image at one resolution."""
    return lambda batch: np.full(len(batch["label"]), index)


def routed(server: Server, dial: float) -> Router:
    """Each image where the predictor sends it at a dial (see `routing.charge`)."""
    return lambda batch: server.choose(batch["image"], dial)


def given(choice: np.ndarray) -> Router:
    """Each image where a table [images of the data set] sends it."""
    return lambda batch: choice[batch["index"]]


def run(server: Server, batches: Iterable[Batch], router: Router) -> Outcome:
    """Routes and classifies all images, in buckets, and gathers what came of it from all hosts."""
    queues = Queues(server)
    return _run(
        server, batches, queues.drain,
        lambda batch, tickets: queues.put(batch["image"], router(batch), tickets),
    )


def run_cascades(
    server: Server, batches: Iterable[Batch], cascades: tuple[Cascade, Cascade]
) -> Outcome:
    """Sends the images of even index through the first cascade, those of odd through the second."""
    queues = CascadeQueues(server, cascades)
    return _run(
        server, batches, queues.drain,
        lambda batch, tickets: queues.put(batch["image"], batch["index"] % 2, tickets),
    )


def _run(
    server: Server, batches: Iterable[Batch], drain: Callable[[], Iterable[Answers]],
    put: Callable[[Batch, np.ndarray], Iterable[Answers]],
) -> Outcome:
    """Puts all batches, with tickets, drains, and gathers the answers."""
    names = {"index": "index", "label": "label", "scale": "smallest_scale"}
    columns: dict[str, list[np.ndarray]] = {name: [] for name in names}
    answers, seen, seconds = [], 0, 0.0
    for batch in map(_real, batches):
        count = len(batch["label"])
        began = time.perf_counter()
        answers += put(batch, np.arange(seen, seen + count))
        seconds += time.perf_counter() - began
        seen += count
        for name, key in names.items():
            columns[name].append(batch.get(key, np.zeros(count)))
    began = time.perf_counter()
    answers += drain()
    seconds += time.perf_counter() - began

    types = {"index": np.int64, "label": np.int64, "scale": np.float64}
    table = {
        name: np.concatenate([np.zeros(0), *values]).astype(types[name])
        for name, values in columns.items()
    }
    answers = answers or [_no_answer(server)]
    order = np.argsort(np.concatenate([tickets for tickets, _, _ in answers]))
    table["choice"] = np.concatenate(
        [np.full(len(tickets), index) for tickets, index, _ in answers]
    )[order]
    table["log_p"] = np.concatenate([log_p for _, _, log_p in answers])[order]
    table = _from_all_hosts(table)
    rate = np.sum(multihost_utils.process_allgather(np.array(seen / seconds if seen else 0.0)))
    return Outcome(
        table["index"], table["label"], table["choice"], table["log_p"], table["scale"],
        float(rate),
    )


def all_scores(server: Server, batches: Iterable[Batch]) -> np.ndarray:
    """The predictor's scores of the images of all hosts, by index: float32 [N, R]."""
    found = [(batch["index"], server.scores(batch["image"])) for batch in map(_real, batches)]
    found = found or [(np.zeros(0, np.int32), server.scores(_no_images(server)))]
    index, scores = map(np.concatenate, zip(*found, strict=True))
    table = {"index": index, "scores": scores}
    return _from_all_hosts(table)["scores"]


def find_dial(server: Server, open_batches: Batches, costs: Costs, target: float) -> float:
    """The dial at which routing these images costs `target`, see `policies.find_dial`."""
    if not target:
        return 0.0
    return policies.find_dial(all_scores(server, open_batches()), costs, target)


def _real(batch: Batch) -> Batch:
    """A batch without its padding."""
    return {name: values[batch["mask"]] for name, values in batch.items()}


def _no_images(server: Server) -> np.ndarray:
    base = server.drnet.resolutions[0]
    return np.zeros((0, base, base, 3), np.uint8)


def _no_answer(server: Server) -> Answers:
    """For a host without images, whose columns must be of the shape of the others'."""
    return np.zeros(0, np.int64), 0, server.classify(0, _no_images(server))


def _from_all_hosts(table: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The rows of all hosts, by "index", of columns [n, ...]; n may differ, and may be 0."""
    if jax.process_count() > 1:
        counts = multihost_utils.process_allgather(np.array(len(table["index"])))
        most = counts.max()
        padded = {
            name: np.concatenate([
                values, np.zeros((most - len(values), *values.shape[1:]), values.dtype)
            ])
            for name, values in table.items()
        }
        real = np.arange(most) < counts[:, None]
        gathered = multihost_utils.process_allgather(padded)
        table = {name: values[real] for name, values in gathered.items()}
    order = np.argsort(table["index"])
    return {name: values[order] for name, values in table.items()}


def at_every_resolution(server: Server, open_batches: Batches) -> list[Outcome]:
    """All images at each resolution: [R] outcomes."""
    return [
        run(server, open_batches(), fixed(index)) for index in range(len(server.drnet.resolutions))
    ]


def evaluate(
    server: Server, open_batches: Batches, costs: Costs, target: float, seed: int
) -> tuple[dict[str, Any], Outcome, Table]:
    """The evaluation of a checkpoint: every fixed resolution, routed, random, oracle, a cascade.

    Each is really run, through the same queues. The random router deals the routed choices out to
    other images, `RANDOM_DRAWS` times; one draw is run for its speed, and the accuracy of all is
    read off the fixed runs, which hold every image at every resolution. The cascade is the best
    that costs what routing does, chosen by cross-fitting (see `policies.cross_fit`). The
    predictor's cost is part of the routed cost alone: nothing else runs it.

    Args:
        server: of the model.
        open_batches: opens the images, each once.
        costs: of the model.
        target: mean multiply-adds that routing is to cost, the predictor's included; 0 for none.
        seed: of the random router and of the bootstrap.

    Returns:
        What `eval.json` holds: "images", "batch_size", "resolutions", "policies", a list of
        {"name", "top1", "top5" (shares), "multiply_adds" (mean), "mix" ([R] shares, a cascade's
        by the last pass), "images_per_second"}, "budget" (see `_budget`), "router" (see
        `_router`); what routing did to each image; and the table that all policies can be read off.
    """
    server.warm_up()
    classifier = np.array(costs.classifier, float)
    scores = all_scores(server, open_batches())
    at = at_every_resolution(server, open_batches)
    label = at[0].label
    table = Table.of(scores, [outcome.log_p for outcome in at], label)

    dial = policies.find_dial(scores, costs, target)
    by_predictor = run(server, open_batches(), routed(server, dial))
    draws = [routing.shuffled(by_predictor.choice, seed + draw) for draw in range(RANDOM_DRAWS)]
    at_random = run(server, open_batches(), given(draws[0]))
    at_best = run(server, open_batches(), given(policies.oracle_choice(table.right, classifier)))

    rows = [
        _policy(f"fixed {resolution}", outcome, classifier[outcome.choice], len(classifier))
        for resolution, outcome in zip(costs.resolutions, at, strict=True)
    ]
    for name, outcome, extra in (
        ("routed", by_predictor, costs.predictor), ("random", at_random, 0),
        ("oracle", at_best, 0),
    ):
        cost = classifier[outcome.choice] + extra
        rows.append(_policy(name, outcome, cost, len(classifier)))
    routed_row, random_row = rows[len(at)], rows[len(at) + 1]
    random_row |= _draws(at, draws)
    rows += _cascade(server, open_batches, table, costs, routed_row["multiply_adds"])

    report = {
        "images": len(label),
        "batch_size": server.batch_size,
        "resolutions": list(costs.resolutions),
        "policies": rows,
        "budget": _budget(target, dial, routed_row["multiply_adds"]),
        "router": _router(table.right, by_predictor, costs, seed),
    }
    if by_predictor.smallest_scale.any():
        scales = np.array(costs.resolutions) / costs.resolutions[0]
        enough = scales[by_predictor.choice] >= by_predictor.smallest_scale - 1e-6
        report["at_or_above_smallest_scale"] = float(enough.mean())
    return report, by_predictor, table


def _policy(name: str, outcome: Outcome, cost: np.ndarray, resolutions: int) -> dict[str, Any]:
    return {
        "name": name,
        "top1": float(outcome.hits(1).mean()),
        "top5": float(outcome.hits(5).mean()),
        "multiply_adds": float(cost.mean()),
        "mix": outcome.mix(resolutions).tolist(),
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


def _cascade(
    server: Server, open_batches: Batches, table: Table, costs: Costs, target: float
) -> list[dict[str, Any]]:
    """The row of the best cascade that costs at most `target`; none with a single resolution."""
    found = [policies.with_threshold(each, table, costs, target) for each in
             policies.cascades(costs)]
    found = [cascade for cascade in found if cascade]
    if not found:
        return []
    picked, expected = policies.cross_fit(
        [policies.cascaded(table, costs, cascade) for cascade in found]
    )
    pair = (found[picked[0]], found[picked[1]])
    outcome = run_cascades(server, open_batches(), pair)
    # Where an image ended says what was run for it.
    ended, classifier = outcome.choice, np.array(costs.classifier, float)
    low = np.array([cascade.low for cascade in pair])[outcome.index % 2]
    cost = classifier[low] + np.where(ended == low, 0, classifier[ended])
    row = _policy("cascade", outcome, cost, len(classifier))
    return [row | {
        "cascades": expected.name.replace("cascade ", ""),
        "confidence": [float(np.exp(cascade.threshold)) for cascade in pair],
    }]


def _budget(target: float, dial: float, cost: float) -> dict[str, Any]:
    """{"target", "dial", "multiply_adds"}, and "missed", why if the cost is 2 % off the target."""
    found = {"target": target, "dial": dial, "multiply_adds": cost}
    if target and abs(cost - target) > 0.02 * target:
        found["missed"] = (
            f"routing costs {cost / target - 1:+.1%} of what was asked for, and no dial comes "
            "closer from below: too many images have nearly the same scores, so that they change "
            "their resolution together"
        )
    return found


def _router(right: np.ndarray, outcome: Outcome, costs: Costs, seed: int) -> dict[str, Any]:
    """How good the choices were.

    Returns:
        {"gains" (see `gains.router_gains`), "entropy" (of the mix, in nats), "agreement" (see
        `gains.agreement`), "choices_by_class" ([C, R] images)}.
    """
    resolutions = right.shape[1]
    shape = (outcome.log_p.shape[1], resolutions)
    return {
        "gains": gains.router_gains(right, outcome.choice, outcome.hits(1), costs, seed),
        "entropy": gains.entropy(outcome.mix(resolutions)),
        "agreement": gains.agreement(right, outcome.choice, costs).tolist(),
        "choices_by_class": gains.counts(outcome.label, outcome.choice, shape).tolist(),
    }


def validation_batches(config: Config, source: Source) -> Iterable[Batch]:
    """This host's share of the validation images, each once."""
    return eval_batches(
        source, config.data, size=config.model.resolutions[0],
        batch_size=config.evaluation.batch_size,
        process_index=jax.process_index(), process_count=jax.process_count(),
    )
