"""The bucketed training step against plain references, on one device and on several."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec as P
from scipy import stats

from drnet_jax import buckets, images
from drnet_jax.devices import AXIS, per_device, put_batch
from drnet_jax.drnet import DRNet
from drnet_jax.ops import conv
from drnet_jax.train import device as device_step
from drnet_jax.train import passes
from drnet_jax.train.base_step import run_buckets
from drnet_jax.train.objectives import OutcomeObjective
from tests.tiny import (
    CLASSES,
    OBJECTIVE,
    RESOLUTIONS,
    Trainer,
    assert_close,
    assert_equal,
    gradients,
    make_plan,
    mesh_of,
    random_batch,
    random_variables,
    tiny_drnet,
)

R = len(RESOLUTIONS)


# --- One device: buckets against all resolutions for all samples --------------------------------


class Device:
    """The gradient programs of one device, each compiled once."""

    batch_size, multiple = 7, 4

    def __init__(self, smoothing=0.0):
        self.smoothing = smoothing
        self.drnet = tiny_drnet()
        self.variables = random_variables(self.drnet)
        # Float images, so that garbage need not fit into uint8.
        self.batch = random_batch(self.batch_size)
        self.batch["image"] = self.batch["image"].astype(np.float32)
        self.dense_program = self._program(
            functools.partial(passes.add_dense, self.drnet, smoothing))
        self.bucket_program = functools.cache(lambda index, size: self._program(
            functools.partial(
                device_step.add_bucket, self.drnet,
                device_step.Bucket(index, size, label_smoothing=smoothing))))

    def dense(self, choice):
        return self._run(self.dense_program, self.batch, choice)

    def bucketed(self, choice):
        sums = []
        for index, count in enumerate(np.bincount(choice, minlength=R)[:R]):
            if size := buckets.padded_size(count, self.multiple, self.batch_size):
                sums.append(self.bucket(index, size, self.batch, choice))
        return jax.tree.map(lambda *leaves: sum(leaves), *sums)

    def bucket(self, index, size, batch, choice):
        return self._run(self.bucket_program(index, size), batch, choice)

    def _program(self, add):
        def run(params, batch_stats, batch, plan):
            zeros = device_step.start(
                self.drnet, params, batch_stats, batch, smooth=self.smoothing > 0)
            return add(params, batch_stats, batch, plan, zeros)

        specs = (P(), P(), P(AXIS), P(AXIS))
        return jax.jit(per_device(mesh_of(1), run, specs, P(AXIS)))

    def _run(self, program, batch, choice):
        sums = jax.tree.map(np.asarray, program(*self.variables, batch, make_plan(choice)))
        own = functools.partial(jax.tree.map, lambda leaf: leaf[0])
        return sums.replace(grads=own(sums.grads), moments=own(sums.moments))


@pytest.fixture(scope="module")
def device():
    return Device()


@pytest.fixture(scope="module")
def smoothing_device():
    return Device(smoothing=0.1)


MIXES = {
    "some answered by the predictor": [0, 3, 2, 3, 3, 0, 2],
    "full and empty": [0, 0, 0, 0, 0, 0, 0],
    "full, the smallest": [2, 2, 2, 2, 2, 2, 2],
    "one empty": [0, 2, 2, 0, 0, 2, 0],
    "single samples": [1, 1, 2, 1, 1, 0, 1],  # normalised over their pixels alone
} | {
    f"random {seed}": np.random.default_rng(seed).integers(R, size=7).tolist() for seed in range(3)
}


@pytest.mark.parametrize("mix", MIXES)
def test_buckets_add_up_to_dense(device, mix):
    choice = np.array(MIXES[mix])
    found, expected = device.bucketed(choice), device.dense(choice)
    assert_close(found.grads, expected.grads)
    assert_close(found.moments, expected.moments)
    assert_close(found.loss, expected.loss)
    assert_equal(found.correct, expected.correct)
    # The selected estimator's derivatives are those of the chosen entries.
    hard = np.eye(R + 1)[choice][:, :R]
    assert_close(found.choice_grad, expected.choice_grad * hard)
    assert (found.choice_grad[hard == 1] != 0).all()


@pytest.mark.parametrize("mix", ["some answered by the predictor", "one empty"])
def test_buckets_that_smooth_labels_add_up_to_dense_and_tell_the_cross_entropy(
    device, smoothing_device, mix,
):
    choice = np.array(MIXES[mix])
    found, expected = smoothing_device.bucketed(choice), smoothing_device.dense(choice)
    for name in ("grads", "moments", "loss", "cross_entropy"):
        assert_close(getattr(found, name), getattr(expected, name))
    plain = device.bucketed(choice)
    assert plain.cross_entropy is None
    assert_close(found.cross_entropy, plain.loss)
    assert (found.loss[choice < R] != plain.loss[choice < R]).all()


def test_the_loss_of_a_bucket_is_that_of_its_samples_alone(device):
    choice = np.array([1, 0, 1, 2, 0, 1, 2])
    found = device.bucket(1, 4, device.batch, choice)
    assert (found.loss > 0).tolist() == (choice == 1).tolist()
    assert not found.correct[:, [0, 2]].any() and not found.choice_grad[:, [0, 2]].any()
    params, batch_stats = device.variables
    rows = np.flatnonzero(choice == 1)
    logits, moments = jax.jit(device.drnet.classify, static_argnums=(0, 4))(
        1, params, batch_stats, device.batch["image"][rows], True)
    labels = device.batch["label"][rows]
    entropies = -np.asarray(jax.nn.log_softmax(logits))[np.arange(3), labels]
    np.testing.assert_allclose(found.loss[rows], entropies, rtol=1e-5)
    np.testing.assert_array_equal(found.correct[rows, 1], np.argmax(logits, -1) == labels)
    assert_close(found.moments["12"], moments)


@pytest.mark.parametrize("index", range(R))
def test_garbage_in_padded_rows_changes_no_bit(device, index):
    choice = np.array([0, 1, 2, 0, 1, 2, 2])
    size = buckets.padded_size(np.sum(choice == index), 4, 7)
    clean = device.bucket(index, size, device.batch, choice)
    others = choice != index
    assert size > np.sum(~others)
    dirty = {name: values.copy() for name, values in device.batch.items()}
    dirty["image"][others] = 1e4
    dirty["label"][others] = 0
    assert_equal(device.bucket(index, size, dirty, choice), clean)
    # Garbage in a real row does change everything.
    dirty["image"][~others] = 1e4
    assert (device.bucket(index, size, dirty, choice).loss != clean.loss)[~others].all()


def test_the_plan_in_which_everyone_is_everywhere():
    plan = device_step.everyone(tiny_drnet(), random_batch(5))
    np.testing.assert_array_equal(plan.order, np.arange(5)[:, None].repeat(R, 1))
    np.testing.assert_array_equal(plan.counts, [[5] * R])


# --- The whole step against a reference without mesh, buckets or padding ------------------------


def forcing(choice, resolutions=R):
    """Noise that all but forces the choices, and lets a gradient through to the predictor."""
    random = np.random.default_rng(0)
    noise = 4 * np.eye(resolutions)[choice] + random.normal(0, 0.3, (len(choice), resolutions))
    return noise.astype(np.float32)


def reference(trainer, variables, batch, noise):
    """A finetuning step by end-to-end differentiation of Eqs. 1-11, the devices one by one.

    For the `selected` estimator without masks: each resolution sees the rows that chose it.

    Returns:
        Gradients, moments summed over the devices, choices, and the metrics as the step's.
    """
    drnet, objective, devices = trainer.drnet, trainer.step.objective, trainer.mesh.size
    params, batch_stats = variables
    costs = np.array(objective.costs, np.float32)
    images, labels, noise = (
        np.split(array, devices) for array in (batch["image"], batch["label"], noise))
    size = len(batch["label"])

    def log_probabilities(params, images):
        (logits, _), moments = drnet.predict(params, batch_stats, images, True)
        return jax.nn.log_softmax(logits), moments, jnp.sum(logits)

    choose = jax.jit(lambda image, g: jnp.argmax(log_probabilities(params, image)[0] + g, -1))
    choices = [np.asarray(choose(*each)) for each in zip(images, noise, strict=True)]

    def loss_of(params):
        classifier = {key: None for key in dict.fromkeys(drnet.norm_keys)}
        predictor, metrics, mix = None, None, 0
        for image, label, g, choice in zip(images, labels, noise, choices, strict=True):
            log_p, found, total = log_probabilities(params, image)
            predictor = added(predictor, found)
            soft = jax.nn.softmax((log_p + g) / objective.temperature)
            hard = np.eye(R)[choice] + soft - jax.lax.stop_gradient(soft)
            mix += hard.sum(0) / size
            loss, correct = 0, []
            y = jnp.zeros((len(label), drnet.classifier.classes))
            for index, key in enumerate(drnet.norm_keys):
                member = choice == index
                rows = np.flatnonzero(member)
                if trainer.step.dense:
                    logits, found = drnet.classify(index, params, batch_stats, image, True, member)
                    y += hard[:, index, None] * logits
                    logits = logits[rows]
                elif len(rows):
                    logits, found = drnet.classify(index, params, batch_stats, image[rows], True)
                    y = y.at[rows].set(hard[rows, index, None] * logits)
                else:
                    logits, found = y[rows], None
                if found is not None:
                    classifier[key] = added(classifier[key], found)
                correct.append(jnp.sum(jnp.argmax(logits, -1) == label[rows]))
            loss = -jnp.sum(smoothed(label, objective.label_smoothing) * jax.nn.log_softmax(y))
            metrics = added(
                metrics, {"loss": loss, "correct": jnp.stack(correct), "logits": total})
        excess = jnp.maximum(0, mix @ costs - objective.alpha) / (costs.max() - costs.min())
        total = metrics["loss"] / size + objective.eta * excess
        metrics["router_loss"] = size * objective.eta * excess
        return total, ({"norms": classifier, "predictor": predictor}, metrics)

    grads, (moments, metrics) = jax.jit(jax.grad(loss_of, has_aux=True))(params)
    choice = np.concatenate(choices)
    metrics |= {"count": size, "chosen": np.bincount(choice, minlength=R)}
    return grads, moments, choice, metrics


def smoothed(label, smoothing):
    return (1 - smoothing) * np.eye(CLASSES)[label] + smoothing / CLASSES


def added(total, tree):
    return tree if total is None else jax.tree.map(jnp.add, total, tree)


def moved_statistics(old, moments):
    """PyTorch's update by moments; resolutions without any keep their statistics."""
    if moments is None:
        return old
    if "count" not in moments:
        return {name: moved_statistics(old[name], moments[name]) for name in old}
    sums, squares, count = (
        np.asarray(moments[name], np.float64) for name in ("sum", "sum_of_squares", "count"))
    if not count:
        return old
    offset = sums / count  # moments are about the old mean
    mean, var = old["mean"] + offset, (squares - count * offset**2) / (count - 1)
    return {"mean": 0.9 * old["mean"] + 0.1 * mean, "var": 0.9 * old["var"] + 0.1 * var}


@dataclasses.dataclass(frozen=True)
class Run:
    """One step, and all that went into it."""

    trainer: Trainer
    variables: tuple
    batch: dict
    state: object  # after the step
    metrics: dict
    noise: np.ndarray | None = None  # None: the step's own


NO_DECAY = {"optimizer.weight_decay": 0.0}
# Two devices with six samples each. The first has all at the largest resolution, the second two
# there and four at the next; nobody is at the smallest.
UNEVEN = np.array([0, 0, 0, 0, 0, 0, 1, 0, 1, 1, 0, 1])


@functools.cache
def uneven_run(estimator, aware=True, smoothing=0.0):
    trainer = Trainer(
        2, estimator=estimator, objective=dataclasses.replace(OBJECTIVE, label_smoothing=smoothing),
        overrides=NO_DECAY | {"classifier.resolution_aware_norm": aware})
    variables, batch = random_variables(trainer.drnet), random_batch(12)
    batch["image"][6:] //= 2  # the second device's are darker: their moments differ
    noise = forcing(UNEVEN)
    state, metrics = trainer.run(trainer.state(variables), batch, noise=noise)
    np.testing.assert_array_equal(metrics["chosen"], np.bincount(UNEVEN, minlength=R))
    return Run(trainer, variables, batch, state, metrics, noise)


@functools.cache
def pretrain_run(distillation=0.0, teacher="base", smoothing=0.0, aware=True):
    trainer = Trainer(2, "pretrain", overrides=NO_DECAY | {
        "pretrain.distillation": distillation, "pretrain.teacher": teacher,
        "pretrain.label_smoothing": smoothing, "classifier.resolution_aware_norm": aware})
    variables, batch = random_variables(trainer.drnet), random_batch(10)
    return Run(trainer, variables, batch, *trainer.run(trainer.state(variables), batch))


def assert_is_reference(run, grads, moments, metrics):
    assert_close(gradients(run.state), grads)
    params, batch_stats = run.variables
    expected = {
        "norms": {
            key: moved_statistics(old, moments["norms"][key])
            for key, old in batch_stats["norms"].items()
        },
        "predictor": moved_statistics(batch_stats["predictor"], moments["predictor"]),
    }
    assert_close(run.state.batch_stats, expected)
    assert_close(run.state.params, updated(run.trainer, params, grads))
    assert_close({name: run.metrics[name] for name in run.metrics if name != "slots"}, metrics)
    assert int(run.state.step) == 1


def updated(trainer, params, grads):
    @jax.jit
    def update(params, grads):
        updates, _ = trainer.optimizer.update(grads, trainer.optimizer.init(params), params)
        return optax.apply_updates(params, updates)

    return update(params, grads)


@pytest.mark.parametrize(("estimator", "aware", "smoothing"), [
    ("selected", True, 0.0), ("dense", True, 0.0), ("selected", False, 0.0),
    ("selected", True, 0.1), ("dense", True, 0.1),
])
def test_uneven_step_is_the_reference(estimator, aware, smoothing):
    run = uneven_run(estimator, aware, smoothing) if smoothing or not aware else (
        uneven_run(estimator))
    grads, moments, choice, metrics = reference(
        run.trainer, run.variables, run.batch, forcing(UNEVEN))
    np.testing.assert_array_equal(choice, UNEVEN)
    assert_is_reference(run, grads, moments, metrics)
    assert metrics["router_loss"] > 0
    if not aware:
        assert run.state.params["norms"].keys() == {"all"}


@pytest.mark.parametrize(("estimator", "slots"), [("selected", [12, 8, 0]), ("dense", [12] * 3)])
def test_slots_are_the_rows_that_were_run(estimator, slots):
    # Of UNEVEN, the fuller device sets the sizes of both: 6, 4 and none.
    np.testing.assert_array_equal(uneven_run(estimator).metrics["slots"], slots)


@functools.cache
def natural_run(estimator):
    """One device and the step's own noise, seeded such that every resolution is chosen."""
    trainer = Trainer(1, estimator=estimator)
    variables, batch = random_variables(trainer.drnet), random_batch(9)
    run = Run(trainer, variables, batch, *trainer.run(trainer.state(variables), batch, seed=0))
    assert (run.metrics["chosen"] > 0).all()
    return run


def test_step_with_its_own_noise_is_the_reference():
    run = natural_run("selected")
    noise = np.asarray(jax.random.gumbel(jax.random.fold_in(jax.random.key(0), 0), (9, R)))
    grads, moments, _, metrics = reference(run.trainer, run.variables, run.batch, noise)
    assert_is_reference(run, grads, moments, metrics)


@pytest.mark.parametrize(("distillation", "teacher", "smoothing", "aware"), [
    (0.0, "base", 0.0, True), (0.75, "base", 0.0, True), (1.0, "base", 0.0, True),
    (0.75, "base", 0.1, True),
    # Without anyone to teach there is no ensemble.
    (0.0, "ensemble", 0.1, True), (0.75, "ensemble", 0.0, True), (0.5, "ensemble", 0.1, False),
])
def test_pretraining_sums_the_losses_of_all_resolutions(distillation, teacher, smoothing, aware):
    run = pretrain_run(distillation, teacher, smoothing, aware)
    drnet, (params, batch_stats) = run.trainer.drnet, run.variables
    shards = list(zip(np.split(run.batch["image"], 2), np.split(run.batch["label"], 2),
                      strict=True))

    def loss_of(params):
        total, correct, moments = 0, 0, {}
        for image, label in shards:
            passes = [
                drnet.classify(index, params, batch_stats, image, True) for index in range(R)]
            answers = [jax.lax.stop_gradient(jax.nn.softmax(logits)) for logits, _ in passes]
            taught = answers[0] if teacher == "base" else sum(answers) / R
            for index, (logits, found) in enumerate(passes):
                target = smoothed(label, smoothing)
                if index or teacher == "ensemble":
                    target = (1 - distillation) * target + distillation * taught
                total -= jnp.sum(target * jax.nn.log_softmax(logits))
                key = drnet.norm_keys[index]
                moments[key] = added(moments.get(key), found)
            correct += jnp.stack([jnp.sum(jnp.argmax(logits, -1) == label) for logits, _ in passes])
        return total / 10, (moments, {"loss": total, "correct": correct})

    grads, (moments, metrics) = jax.jit(jax.grad(loss_of, has_aux=True))(params)
    assert_is_reference(
        run, grads, {"norms": moments, "predictor": None}, metrics | {"count": 10})


# --- A predictor that knows the classes, and may answer -----------------------------------------


@dataclasses.dataclass(frozen=True)
class Told(OutcomeObjective):
    """Its choices are those that the noise names; all else is as ever."""

    def choose(self, logits, noise):
        return jnp.argmax(noise, axis=1).astype(jnp.int32)


OPTIONS = R + 1
TOLD = Told((100, 60, 20, 0), target=50.0, exploration=0.1)
KNOWING = {"predictor.classifies": True, "pretrain.distillation": 0.75}
# Of two devices with six samples each; nobody is at the smallest resolution.
ANSWERED = np.array([0, 0, 3, 3, 3, 1, 3, 0, 0, 3, 1, 1])


@functools.cache
def knowing_run(smoothing=0.0):
    """Finetuning; the predictor answers five of twelve samples."""
    trainer = Trainer(
        2, objective=dataclasses.replace(TOLD, label_smoothing=smoothing), overrides=KNOWING)
    variables, batch = random_variables(trainer.drnet), random_batch(12)
    batch["image"][6:] //= 2
    noise = np.eye(OPTIONS, dtype=np.float32)[ANSWERED]
    return Run(
        trainer, variables, batch, *trainer.run(trainer.state(variables), batch, noise=noise),
        noise)


@functools.cache
def knowing_pretrain_run(teacher="base"):
    """That of `pretrain_run(0.75)`, but for the predictor."""
    trainer = Trainer(2, "pretrain", overrides=NO_DECAY | KNOWING | {"pretrain.teacher": teacher})
    plain, variables = pretrain_run(0.75), random_variables(trainer.drnet)
    variables = tuple(
        of_classifier | {"predictor": tree["predictor"]}
        for of_classifier, tree in zip(plain.variables, variables, strict=True))
    return Run(
        trainer, variables, plain.batch, *trainer.run(trainer.state(variables), plain.batch))


def halves(batch):
    return list(zip(np.split(batch["image"], 2), np.split(batch["label"], 2), strict=True))


def cross_entropies(logits, label):
    return -jax.nn.log_softmax(logits)[np.arange(len(label)), label]


def binary_cross_entropies(logits, target):
    p = jax.nn.sigmoid(logits)
    return -(target * jnp.log(p) + (1 - target) * jnp.log(1 - p))


@functools.cache
def teachers_answers(which="base"):
    """(teacher [B, C], trust [B, R]) of `knowing_pretrain_run`, pass by pass."""
    run = knowing_pretrain_run(which)
    classify = jax.jit(run.trainer.drnet.classify, static_argnums=(0, 4))
    found = []
    for image, _ in halves(run.batch):
        logits = [np.asarray(classify(r, *run.variables, image, True)[0]) for r in range(R)]
        teacher = softmax(logits[0]) if which == "base" else softmax(np.array(logits)).mean(0)
        answers = np.argmax(logits, -1)  # [R, B]
        found.append((teacher, np.take_along_axis(teacher, answers.T, axis=1)))
    return tuple(map(np.concatenate, zip(*found, strict=True)))


@pytest.mark.parametrize("which", ["base", "ensemble"])
def test_trust_is_what_the_teacher_thinks_of_each_answer(which):
    run = knowing_pretrain_run(which)
    step, state = run.trainer.step, run.trainer.state(run.variables)
    batch, key = put_batch(run.trainer.mesh, run.batch), jax.random.key(0)
    plan, sums = step.programs.run(
        step.begin_program, state.params, state.batch_stats, batch, key, state.step)
    if which == "ensemble":
        sums = step.programs.run(
            step.ensemble_program, state.params, state.batch_stats, batch, plan, sums)
    else:
        sums = run_buckets(step, [5] * R, state, batch, plan, sums)
    teacher, trust = teachers_answers(which)
    np.testing.assert_allclose(sums.teacher, teacher, rtol=1e-4)
    np.testing.assert_allclose(sums.trust, trust, rtol=1e-4)
    if which == "base":
        np.testing.assert_allclose(trust[:, 0], teacher.max(1))
    assert (trust[:, 2] < trust[:, 0]).any()  # somewhere the smallest says something else


@pytest.mark.parametrize("which", ["base", "ensemble"])
def test_in_stage_1_the_predictor_learns_the_classes_and_what_each_option_is_worth(which):
    run = knowing_pretrain_run(which)
    drnet, (params, batch_stats) = run.trainer.drnet, run.variables
    teachers, trusts = (np.split(each, 2) for each in teachers_answers(which))

    def loss_of(predictor):
        loss, metrics, moments = 0, None, None
        for (image, label), teacher, trust in zip(
            halves(run.batch), teachers, trusts, strict=True
        ):
            (options, own), found = drnet.predict(
                {"predictor": predictor}, batch_stats, image, True)
            answer = jnp.argmax(own, -1)
            trust = jnp.column_stack([trust, jnp.array(teacher)[np.arange(5), answer]])
            of_options = jnp.sum(binary_cross_entropies(options, trust))
            target = 0.25 * np.eye(CLASSES)[label] + 0.75 * teacher
            loss += of_options - jnp.sum(target * jax.nn.log_softmax(own))
            moments = added(moments, found)
            metrics = added(metrics, {
                "router_loss": of_options, "right": jnp.sum(answer == label),
                "logits": jnp.sum(options) + jnp.sum(own)})
        return loss / 10, (metrics, moments)

    grads, (metrics, moments) = jax.jit(jax.grad(loss_of, has_aux=True))(params["predictor"])
    assert_close(gradients(run.state)["predictor"], grads)
    assert_close(run.state.batch_stats["predictor"],
                 moved_statistics(batch_stats["predictor"], moments))
    assert_moved(run.state.params["predictor"], params["predictor"])
    assert run.metrics["correct"].shape == (OPTIONS,)
    assert run.metrics["correct"][-1] == metrics.pop("right")
    assert_close({name: run.metrics[name] for name in metrics}, metrics)


def test_in_stage_1_the_classifier_learns_as_it_would_alone_bit_for_bit():
    run, alone = knowing_pretrain_run(), pretrain_run(0.75)
    for found, expected in (
        (gradients(run.state), gradients(alone.state)), (run.state.params, alone.state.params),
        (run.state.batch_stats, alone.state.batch_stats),
    ):
        for name in expected.keys() - {"predictor"}:
            assert_equal(found[name], expected[name])
    assert_equal(run.metrics["loss"], alone.metrics["loss"])
    assert_equal(run.metrics["correct"][:R], alone.metrics["correct"])


def test_in_stage_1_a_predictor_that_is_nan_shows_and_touches_nothing_else():
    run = knowing_pretrain_run()
    params, batch_stats = run.variables
    spoilt = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), params["predictor"])
    variables = params | {"predictor": spoilt}, batch_stats
    state, metrics = run.trainer.run(run.trainer.state(variables), run.batch)
    assert np.isnan(metrics["logits"]) and np.isnan(metrics["router_loss"])
    assert_equal(metrics["loss"], run.metrics["loss"])
    assert_equal(state.params["shared"], run.state.params["shared"])


def reference_of_outcomes(run):
    """A finetuning step with `Told`, the devices one by one; as `reference`, without choices."""
    drnet, (params, batch_stats) = run.trainer.drnet, run.variables
    smoothing = run.trainer.step.objective.label_smoothing

    def smoothed_entropies(logits, label):
        return -jnp.sum(smoothed(label, smoothing) * jax.nn.log_softmax(logits), axis=-1)

    def loss_of(params):
        classifier, predictor = dict.fromkeys(drnet.norm_keys), None
        total, metrics = 0, None
        for (image, label), choice in zip(halves(run.batch), np.split(ANSWERED, 2), strict=True):
            (options, own), found = drnet.predict(params, batch_stats, image, True)
            predictor = added(predictor, found)
            of_own = smoothed_entropies(own, label)
            losses = jnp.where(choice == R, of_own, 0)
            given = jnp.where(choice == R, cross_entropies(own, label), 0)
            correct = [0] * R + [jnp.sum((choice == R) & (jnp.argmax(own, -1) == label))]
            learnt = 0
            for index, key in enumerate(drnet.norm_keys):
                if not len(rows := np.flatnonzero(choice == index)):
                    continue
                logits, found = drnet.classify(index, params, batch_stats, image[rows], True)
                classifier[key] = added(classifier[key], found)
                of_bucket = smoothed_entropies(logits, label[rows])
                learnt += jnp.sum(of_bucket)
                losses = losses.at[rows].set(of_bucket)
                given = given.at[rows].set(cross_entropies(logits, label[rows]))
                correct[index] = jnp.sum(jnp.argmax(logits, -1) == label[rows])
            # The probability of the label, whatever the loss makes of it.
            target = jnp.exp(-jax.lax.stop_gradient(given))
            of_options = jnp.sum(binary_cross_entropies(options[np.arange(6), choice], target))
            total += learnt + of_options + jnp.sum(of_own)
            metrics = added(metrics, {
                "loss": jnp.sum(losses), "correct": jnp.stack(correct),
                "router_loss": of_options, "logits": jnp.sum(options) + jnp.sum(own)})
        return total / 12, ({"norms": classifier, "predictor": predictor}, metrics)

    grads, (moments, metrics) = jax.jit(jax.grad(loss_of, has_aux=True))(params)
    return grads, moments, metrics | {
        "count": 12, "chosen": np.bincount(ANSWERED, minlength=OPTIONS)}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_step_whose_predictor_answers_some_is_the_reference(smoothing):
    run = knowing_run(smoothing) if smoothing else knowing_run()
    assert_is_reference(run, *reference_of_outcomes(run))
    np.testing.assert_array_equal(run.metrics["chosen"], [4, 3, 0, 5])
    np.testing.assert_array_equal(run.metrics["slots"], [8, 8, 0])  # 2 and 2, in multiples of 4


def test_what_the_predictor_answers_the_classifier_never_sees():
    run = knowing_run()
    batch = {name: values.copy() for name, values in run.batch.items()}
    batch["image"][ANSWERED == R] = 255 - batch["image"][ANSWERED == R]
    batch["label"][ANSWERED == R] = (batch["label"][ANSWERED == R] + 1) % CLASSES
    state, metrics = run.trainer.run(run.trainer.state(run.variables), batch, noise=run.noise)
    for name in ("shared", "norms"):
        assert_equal(gradients(state)[name], gradients(run.state)[name])
    assert_equal(state.batch_stats["norms"], run.state.batch_stats["norms"])
    assert_equal(metrics["correct"][:R], run.metrics["correct"][:R])
    assert metrics["loss"] != run.metrics["loss"]  # where its answers count
    assert_moved(gradients(state)["predictor"], gradients(run.state)["predictor"])


def test_where_the_predictor_answers_all_no_bucket_runs_and_the_classifier_coasts():
    run = knowing_run()
    trainer, compiled = run.trainer, list(run.trainer.announced)
    to_all = np.eye(OPTIONS, dtype=np.float32)[np.full(12, R)]
    state, _ = trainer.run(trainer.state(run.variables), run.batch, noise=run.noise)
    before = jax.tree.map(np.copy, (state.params, state.batch_stats, gradients(state)))
    state, metrics = trainer.run(state, run.batch, noise=to_all)
    assert trainer.announced == compiled
    assert not metrics["slots"].any()
    np.testing.assert_array_equal(metrics["chosen"], [0, 0, 0, 12])
    assert not metrics["correct"][:R].any() and metrics["loss"] > 0
    params, batch_stats, grads = before
    assert_equal(state.batch_stats["norms"], batch_stats["norms"])
    for name in ("shared", "norms"):
        assert not any(leaf.any() for leaf in jax.tree.leaves(gradients(state)[name]))
    # It goes on by momentum and decays: there is no gradient, but the optimiser is as ever.
    for leaf in ("head", "kernel"), ("conv1", "kernel"):
        old, first, grad = (
            functools.reduce(dict.__getitem__, leaf, tree["shared"])
            for tree in (params, run.variables[0], grads))
        found = functools.reduce(dict.__getitem__, leaf, state.params["shared"])
        velocity = 0.9 * (grad + 1e-4 * first) + 1e-4 * old
        np.testing.assert_allclose(found, old - 0.1 * 2 / 3 * velocity, rtol=1e-5, atol=1e-7)
    assert_moved(state.params["predictor"], params["predictor"])
    assert_moved(state.batch_stats["predictor"], batch_stats["predictor"])


# --- Several devices ----------------------------------------------------------------------------


MODERN = {
    "pretrain.distillation": 0.5, "pretrain.teacher": "ensemble", "pretrain.label_smoothing": 0.1,
    "pretrain.mixup": 0.5, "pretrain.cutmix": 1.0, "optimizer.ema": 0.9,
}


@pytest.mark.parametrize(
    ("stage", "estimator", "classifies", "overrides"),
    [("pretrain", "selected", False, {}), ("finetune", "selected", False, {}),
     ("finetune", "dense", False, {}), ("pretrain", "selected", True, {}),
     ("pretrain", "selected", True, MODERN), ("finetune", "selected", True, {})],
)
def test_eight_devices_are_one(stage, estimator, classifies, overrides):
    # Four samples, the same on every device: then eight normalise as one does over all of them.
    batch = {name: np.concatenate([rows] * 8) for name, rows in random_batch(4).items()}
    results, objective = [], dataclasses.replace(OBJECTIVE, costs=(100, 20))
    noise = forcing([1, 0, 1, 1], 2)
    if classifies:
        objective, noise = dataclasses.replace(TOLD, costs=(100, 20, 0)), forcing([1, 0, 2, 2], 3)
    noise = np.tile(noise, (8, 1)) if stage == "finetune" else None
    for devices in (8, 1):
        trainer = Trainer(
            devices, stage, estimator, objective,
            overrides={
                "resolutions": (16, 8), "predictor.classifies": classifies} | overrides)
        state, metrics = trainer.run(trainer.state(), batch, noise=noise)
        results.append({
            "params": state.params, "batch_stats": state.batch_stats, "grads": gradients(state),
            "average": state.average,
            "metrics": {name: metrics[name] for name in metrics if name != "slots"},
        })
    assert_close(*results)


def test_statistics_over_devices_are_weighted_by_counts():
    # The first norm follows the first convolution, which the other norms do not touch.
    run = uneven_run("selected")
    params, batch_stats = run.variables
    for index, key in enumerate(run.trainer.drnet.norm_keys[:2]):
        image = run.batch["image"][index == UNEVEN]
        view = images.view(jnp.asarray(image), RESOLUTIONS[index])
        rows = np.asarray(conv(view, params["shared"]["conv1"]["kernel"], 2), np.float64)
        old = batch_stats["norms"][key]["norm1"]
        found = run.state.batch_stats["norms"][key]["norm1"]
        mean, var = rows.mean((0, 1, 2)), rows.var((0, 1, 2), ddof=1)
        np.testing.assert_allclose(found["mean"], 0.9 * old["mean"] + 0.1 * mean, 1e-4, 1e-5)
        np.testing.assert_allclose(found["var"], 0.9 * old["var"] + 0.1 * var, rtol=1e-4)
        if index == 0:  # six rows on the first device, two on the second
            halves = (rows[:6].mean((0, 1, 2)) + rows[6:].mean((0, 1, 2))) / 2
            assert np.abs(0.1 * (halves - mean)).max() > 1e-2  # the test would tell


def test_choices_do_not_depend_on_the_number_of_devices():
    plans = []
    for devices in (1, 4):
        trainer = Trainer(devices, drnet=lookup_drnet())
        batch = put_batch(trainer.mesh, flat_batch(np.arange(16) % 4))
        noise = drawn(trainer, trainer.state(), batch, seed=1)
        plan, _, counts = trainer.step.route(trainer.state(), batch, noise, jax.random.key(1))
        plans.append((plan.choice, noise))
        # The counts that the host reads are the largest of any device.
        expected = np.max([np.bincount(part, minlength=R)
                           for part in np.split(np.asarray(plan.choice), devices)], 0)
        np.testing.assert_array_equal(counts, expected)
    assert_equal(*plans)


def drawn(trainer, state, batch, seed=0):
    """The noise that a step draws."""
    program = trainer.step.noise_program(len(batch["label"]))
    return trainer.step.programs.run(program, jax.random.key(seed), state.step)


# --- The moving average of weights and statistics --------------------------------------------


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_three_steps_of_an_average_by_numpy(stage):
    """Decays of 1/10, 2/11 and then, less than 3/12, the config's."""
    averaging, plain = (
        Trainer(1, stage, overrides={"optimizer.ema": ema}) for ema in (0.2, 0.0))
    variables, batch = random_variables(plain.drnet), random_batch(8)
    state, raw = averaging.state(variables), plain.state(variables)
    assert raw.average is None
    expected = dict(zip(("params", "batch_stats"), variables, strict=True))
    for decay in (1 / 10, 2 / 11, 0.2):
        (state, _), (raw, _) = averaging.run(state, batch), plain.run(raw, batch)
        expected = jax.tree.map(
            lambda old, new, decay=decay: decay * old + (1 - decay) * np.asarray(new),
            expected, raw.weights)
        # What is trained knows nothing of it.
        assert_equal(state.weights, raw.weights)
        assert_close(state.average, expected, rtol=1e-5, atol=1e-6)
    assert state.model is state.average and raw.model == raw.weights


# --- Images that are mixed -------------------------------------------------------------------


def test_a_step_of_mixed_images_is_that_of_their_two_labels():
    overrides = NO_DECAY | {"pretrain.mixup": 0.5, "pretrain.distillation": 0.5}
    trainer, batch = Trainer(2, "pretrain", overrides=overrides), random_batch(8)
    variables = random_variables(trainer.drnet)
    state, metrics = trainer.run(trainer.state(variables), batch, seed=1)
    assert trainer.announced[0] == "mix"
    mixed = jax.tree.map(np.asarray, trainer.step.programs.run(
        trainer.step.mix_program, put_batch(trainer.mesh, batch), jax.random.key(1),
        jnp.int32(0)))
    assert (mixed["image"] != batch["image"]).any() and (mixed["label"] != mixed["other"]).any()
    share, other = mixed["share"][:, None], mixed["other"]
    target = share * np.eye(CLASSES)[mixed["label"]] + (1 - share) * np.eye(CLASSES)[other]
    drnet, (params, batch_stats) = trainer.drnet, variables

    def loss_of(params):
        total, correct = 0, 0
        for rows in np.split(np.arange(8), 2):
            logits = [drnet.classify(index, params, batch_stats, mixed["image"][rows], True)[0]
                      for index in range(R)]
            taught = jax.lax.stop_gradient(jax.nn.softmax(logits[0]))
            for index, each in enumerate(logits):
                learnt = target[rows] if index == 0 else (target[rows] + taught) / 2
                total -= jnp.sum(learnt * jax.nn.log_softmax(each))
            correct += np.array([
                jnp.sum(jnp.argmax(each, -1) == mixed["label"][rows]) for each in logits])
        return total / 8, (total, correct)

    grads, (total, correct) = jax.grad(loss_of, has_aux=True)(params)
    assert_close(gradients(state), grads)
    np.testing.assert_allclose(metrics["loss"], total, rtol=1e-5)
    np.testing.assert_array_equal(metrics["correct"], correct)  # of the label that most is of


# --- What stands still and what moves -----------------------------------------------------------


@pytest.mark.parametrize("estimator", ["selected", "dense"])
def test_an_unused_resolution_stands_still_bit_for_bit(estimator):
    run = uneven_run(estimator)
    params, batch_stats = run.variables
    assert_equal(run.state.params["norms"]["8"], params["norms"]["8"])
    assert_equal(run.state.batch_stats["norms"]["8"], batch_stats["norms"]["8"])
    for key in ("16", "12"):
        assert_moved(run.state.params["norms"][key], params["norms"][key])
        assert_moved(run.state.batch_stats["norms"][key], batch_stats["norms"][key])


@pytest.mark.parametrize("estimator", ["selected", "dense"])
def test_every_parameter_learns_in_finetuning(estimator):
    run = natural_run(estimator)
    grads = gradients(run.state)
    assert {"predictor", "shared", "norms"} == grads.keys()
    assert_moved(grads, jax.tree.map(jnp.zeros_like, grads))
    assert_moved(run.state.params, run.variables[0])
    assert_moved(run.state.batch_stats, run.variables[1])


def test_pretraining_moves_everything_but_the_predictor():
    run = pretrain_run()
    for new, old in zip((run.state.params, run.state.batch_stats), run.variables, strict=True):
        assert_equal(new["predictor"], old["predictor"])
        assert_moved({**new, "predictor": {}}, {**old, "predictor": {}})


def test_fixed_statistics_stand_still_and_make_two_devices_one():
    """No sample's gradient depends on who else is in its bucket; the predictor's norms are free."""
    variables, found = None, []
    for devices in (1, 2):
        trainer = Trainer(devices, overrides={"classifier.fixed_statistics": True})
        variables = variables or random_variables(trainer.drnet)
        state, _ = trainer.run(trainer.state(variables), random_batch(12), noise=forcing(UNEVEN))
        (params, batch_stats), shared = variables, state.params["shared"]
        assert_equal(state.batch_stats["norms"], batch_stats["norms"])
        assert_moved(state.batch_stats["predictor"], batch_stats["predictor"])
        assert_moved({"shared": shared, "norms": state.params["norms"]["16"]},
                     {"shared": params["shared"], "norms": params["norms"]["16"]})
        found.append({"shared": shared, "norms": state.params["norms"]})
    assert_close(*found)


def assert_moved(new, old):
    paths = jax.tree_util.tree_leaves_with_path(old)
    for (path, before), after in zip(paths, jax.tree.leaves(new), strict=True):
        assert (np.asarray(after) != before).any(), jax.tree_util.keystr(path)


# --- Programs -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run", "names"),
    [
        (functools.partial(uneven_run, "selected"),
         ["route", "bucket 16px x6", "bucket 12px x4", "update of stage 2"]),
        (functools.partial(uneven_run, "dense"), ["route", "dense", "update of stage 2"]),
        (functools.partial(natural_run, "dense"),
         ["noise", "route", "dense", "update of stage 2"]),
        *[(pretrain, [
            "begin", *(f"bucket {at}px x5 of stage 1" for at in RESOLUTIONS), "update of stage 1",
        ]) for pretrain in (pretrain_run, knowing_pretrain_run)],
        (functools.partial(pretrain_run, 0.75, "ensemble", 0.0, True),
         ["begin", "ensemble", "update of stage 1"]),
        (knowing_run, ["route", "bucket 16px x4", "bucket 12px x4", "update of stage 2"]),
    ],
    ids=["selected", "dense", "own noise", "pretrain", "knowing pretrain", "ensemble", "knowing"],
)
def test_a_second_step_of_the_same_sizes_compiles_nothing(run, names):
    run = run()
    trainer, batch = run.trainer, run.batch
    assert trainer.announced == names
    state, _ = trainer.run(trainer.state(), batch, noise=run.noise)
    events = []

    def listen(event, duration, **_):
        if "compile" in event:
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        state, _ = trainer.run(state, batch, noise=run.noise)
        assert events == []
        jax.jit(lambda x: x + 1).lower(0.0).compile()
        assert events  # they are really heard
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert int(state.step) == 2
    assert trainer.announced == names
    assert sorted(program.name for program in trainer.step.programs.compiled) == sorted(names)


# --- The straight-through estimator and the regulariser, worked in numpy ------------------------
#
# The image of sample i is a flat grey of brightness 20 + 40 i. The predictor looks up row i of a
# table, so the gradient of the table is d(loss)/d(logits). The classifier's logits depend on the
# brightness and on the resolution.


def grey(x):
    return jnp.mean(x, (1, 2))[:, 0] * images.DEVIATION[0] + images.MEAN[0]


class LookUp(nn.Module):
    """Logits by the brightness of a flat image; a table of [4, R] parameters."""

    @nn.compact
    def __call__(self, x, train, mask=None):
        table = self.param("table", nn.initializers.zeros, (4, R))
        return table[jnp.round((grey(x) - 20) / 40).astype(jnp.int32)]


class Affine(nn.Module):
    """size / 16 * brightness / 100 * weight + bias, of three classes."""

    classes: int = 3

    @nn.compact
    def __call__(self, x, train, mask=None):
        weight = self.param("weight", nn.initializers.ones, (self.classes,))
        bias = self.param("bias", nn.initializers.zeros, (self.classes,))
        return x.shape[1] / 16 * grey(x)[:, None] / 100 * weight + bias


def lookup_drnet():
    keys = tuple(map(str, RESOLUTIONS))
    return DRNet(Affine(), LookUp(), RESOLUTIONS, keys, 8, False, jax.nn.log_softmax)


def flat_batch(samples):
    shape = (len(samples), 16, 16, 3)
    brightness = 20 + 40 * np.asarray(samples).reshape(-1, 1, 1, 1)
    labels = np.array([0, 2, 1, 1], np.int32)
    return {"image": np.broadcast_to(brightness, shape).astype(np.uint8),
            "label": labels[np.asarray(samples)]}


TABLE = np.array([[0.5, -0.2, 0.1], [0.0, 0.3, -0.4], [-0.6, 0.2, 0.9], [1.0, 0.1, 0.4]])
WEIGHT, BIAS = np.array([1.5, -0.5, 0.25]), np.array([0.2, 0.1, -0.3])
VARIABLES = (
    {"predictor": {"table": TABLE.astype(np.float32)},
     "shared": {"weight": WEIGHT.astype(np.float32), "bias": BIAS.astype(np.float32)},
     "norms": {"16": {}, "12": {}, "8": {}}},
    {"predictor": {}, "norms": {"16": {}, "12": {}, "8": {}}},
)
# Two devices share the first bucket. The mean cost is (100 + 60 + 100 + 20) / 4 = 70; the devices'
# own are 80 and 60, on either side of the target.
CHOICE = np.array([0, 1, 0, 2])
NOISE = forcing(CHOICE)
PULLING = dataclasses.replace(OBJECTIVE, alpha=65.0)
FREE = dataclasses.replace(PULLING, eta=0.0)


@functools.cache
def lookup_step(objective, devices, estimator="selected"):
    """(d(loss)/d(logits), metrics) of one step on the four samples."""
    trainer = Trainer(devices, estimator=estimator, objective=objective, drnet=lookup_drnet())
    state, metrics = trainer.run(trainer.state(VARIABLES), flat_batch(range(4)), noise=NOISE)
    np.testing.assert_array_equal(metrics["chosen"], [2, 1, 1])
    return np.asarray(gradients(state)["predictor"]["table"]), metrics


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def straight_through(estimator, objective):
    """(d(loss)/d(logits), cross-entropies) of the four samples."""
    brightness = 20 + 40 * np.arange(4) + 0.0
    scale = np.array(RESOLUTIONS) / 16 * brightness[:, None] / 100  # [B, R]
    logits = scale[..., None] * WEIGHT + BIAS  # F_j(x), [B, R, C]
    y = logits[np.arange(4), CHOICE]
    one_hot = np.eye(3)[[0, 2, 1, 1]]
    # d(loss)/dh_j = d(loss)/dy . F_j(x): of the chosen j alone, or of all.
    of_choice = np.einsum("bc,brc->br", (softmax(y) - one_hot) / 4, logits)
    if estimator == "selected":
        of_choice *= np.eye(R)[CHOICE]
    of_choice += objective.eta * np.array([100, 60, 20]) / 80 / 4
    # Back through softmax((log p + g) / tau); log p adds nothing to a gradient that sums to 0.
    soft = softmax((np.log(softmax(TABLE)) + NOISE) / objective.temperature)
    grads = soft * (of_choice - (soft * of_choice).sum(-1, keepdims=True)) / objective.temperature
    return grads, -np.log((softmax(y) * one_hot).sum(-1))


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("estimator", ["selected", "dense"])
def test_straight_through_gradient_by_numpy(estimator, devices):
    found, metrics = lookup_step(PULLING, devices, estimator)
    expected, entropies = straight_through(estimator, PULLING)
    assert_close(found, expected, atol=1e-4)
    np.testing.assert_allclose(metrics["loss"], entropies.sum(), rtol=1e-5)
    # 0.3 * (70 - 65) / 80, over the global batch, times the count.
    np.testing.assert_allclose(metrics["router_loss"], 4 * 0.3 * 5 / 80, rtol=1e-5)


def test_the_regulariser_alone_by_numpy():
    # Its gradient is the difference of two steps that differ in eta.
    with_it, _ = lookup_step(PULLING, 2)
    without, metrics = lookup_step(FREE, 2)
    assert metrics["router_loss"] == 0
    costs, tau = np.array([100.0, 60, 20]), OBJECTIVE.temperature
    soft = softmax((np.log(softmax(TABLE)) + NOISE) / tau)
    expected = 0.3 / 80 / 4 / tau * soft * (costs - (soft * costs).sum(-1, keepdims=True))
    np.testing.assert_allclose(with_it - without, expected, rtol=1e-3, atol=1e-7)
    # The samples of the device whose own mean is below the target are pulled, too.
    assert np.abs(expected[2:]).max() > 1e-5


@pytest.mark.parametrize("alpha", [70.0, 90.0])
def test_the_regulariser_has_no_gradient_at_or_below_the_target(alpha):
    found, metrics = lookup_step(dataclasses.replace(PULLING, alpha=alpha, eta=100.0), 2)
    assert metrics["router_loss"] == 0
    np.testing.assert_array_equal(found, lookup_step(FREE, 2)[0])


def test_a_single_candidate_leaves_nothing_to_learn_to_the_predictor():
    objective = dataclasses.replace(OBJECTIVE, costs=(100,))
    trainer = Trainer(2, objective=objective, overrides={"resolutions": (16,)})
    state, metrics = trainer.run(trainer.state(), random_batch(8))
    assert metrics["router_loss"] == 0 and metrics["chosen"] == [8]
    grads = gradients(state)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(grads["predictor"]))
    assert all(np.asarray(leaf).any() for leaf in jax.tree.leaves(grads["shared"]))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((grads, metrics)))


def test_a_step_draws_choices_from_the_softmax_anew_each_step():
    trainer, size = Trainer(1, drnet=lookup_drnet()), 8000
    batch = put_batch(trainer.mesh, flat_batch(np.full(size, 3)))
    state = trainer.state(VARIABLES)
    choices = []
    for step in (0, 1):
        at = state.replace(step=jax.device_put(jnp.int32(step), state.step.sharding))
        plan, *_ = trainer.step.route(
            at, batch, drawn(trainer, at, batch), jax.random.key(0))
        choices.append(np.asarray(plan.choice))
        counts = np.bincount(choices[-1], minlength=R)
        assert stats.chisquare(counts, size * softmax(TABLE[3])).pvalue > 0.01
    assert (choices[0] != choices[1]).any()
