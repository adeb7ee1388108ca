"""Transfer: heads of some classes, norms of other resolutions, and what starts anew."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from drnet_jax import transfer
from drnet_jax.drnet import DRNet
from drnet_jax.errors import UserError
from drnet_jax.models.predictor import sureness
from drnet_jax.transfer import Knowledge
from tests.tiny import assert_equal, random_batch, random_variables, tiny_config

NAMES = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu")
KEPT = (4, 1, 6)
OUTCOME = {"router.objective": "outcome", "budget": 1e-5}
CLASSIFIES = OUTCOME | {"predictor.classifies": True}


def drnet_of(overrides: dict[str, Any], classes: int = len(NAMES)) -> DRNet:
    return DRNet.from_config(tiny_config(overrides | {"classifier.classes": classes}), classes)


def logits_of(drnet: DRNet, variables, batch):
    """The classifier's at every resolution, and the predictor's of classes and options."""
    params, stats = jax.tree.map(jnp.asarray, variables)
    fixed = [drnet.classify(index, params, stats, batch)[0] for index in range(3)]
    return fixed, drnet.predict(params, stats, batch)[0]


@pytest.mark.parametrize("overrides", [
    {}, CLASSIFIES, {"classifier.name": "tests.tiny:TinyResNet", "classifier.width": 1 / 16},
])
def test_a_network_of_some_classes_answers_as_before_among_them(overrides):
    whole, part = drnet_of(overrides), drnet_of(overrides, len(KEPT))
    variables, batch = random_variables(whole), random_batch(5)["image"]
    axes = transfer.class_axes(tiny_config(overrides), len(NAMES))
    picked = transfer.pick_classes(variables, axes, len(NAMES), KEPT)
    shapes = jax.eval_shape(part.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, picked) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    fixed, prediction = logits_of(whole, variables, batch)
    found, predicted = logits_of(part, picked, batch)
    for before, after in zip(fixed, found, strict=True):
        np.testing.assert_allclose(after, before[:, list(KEPT)], rtol=1e-5, atol=1e-6)
    if prediction.classes is None:
        np.testing.assert_allclose(predicted.options, prediction.options, rtol=1e-5)
        return
    classes = prediction.classes[:, list(KEPT)]
    np.testing.assert_allclose(predicted.classes, classes, rtol=1e-5, atol=1e-6)
    # The options hear how sure the answer among these classes is.
    sure = variables[0]["predictor"]["sure"]["kernel"]
    of_features = prediction.options - sureness(prediction.classes) @ sure
    np.testing.assert_allclose(
        predicted.options, of_features + sureness(classes) @ sure, rtol=1e-4, atol=1e-5)


class Hidden(nn.Module):
    """Has a layer of twice as many features as there are classes."""

    classes: int
    width: float
    norm: Any
    dtype: Any

    @nn.compact
    def __call__(self, x, train, mask=None):
        return nn.Dense(self.classes)(nn.Dense(2 * self.classes, name="hidden")(x.mean((1, 2))))


def test_layers_from_which_no_classes_can_be_picked_are_named():
    config = tiny_config({"classifier.name": "tests.test_transfer:Hidden"})
    with pytest.raises(UserError, match=r"is \[14, 7\] for 7 classes and \[16, 8\] for"):
        transfer.class_axes(config, len(NAMES))


def test_norms_of_new_resolutions_are_copies_of_the_bases():
    variables = random_variables(drnet_of({}))
    found = transfer.set_norms(variables, "16", ("20", "16", "8"))
    for tree, before in zip(found, variables, strict=True):
        assert list(tree["norms"]) == ["20", "16", "8"]
        assert_equal(tree["norms"]["20"], before["norms"]["16"])
        assert_equal(tree["norms"]["16"], before["norms"]["16"])
        assert_equal(tree["norms"]["8"], before["norms"]["8"])
        assert tree["predictor"] is before["predictor"]
    assert found[0]["shared"] is variables[0]["shared"]


def moved(source: Knowledge, target: Knowledge):
    """(what was, what is fresh, what is made of them)."""
    of = [random_variables(DRNet.from_config(each.config, len(each.classes)), seed)
          for seed, each in enumerate((source, target))]
    return *of, transfer.move(*of, source, target)


SOURCE = Knowledge(tiny_config(CLASSIFIES), NAMES)


def target(classes=NAMES, **overrides) -> Knowledge:
    config = tiny_config(CLASSIFIES | {"classifier.classes": len(classes)} | {
        name.replace("__", "."): value for name, value in overrides.items()})
    return Knowledge(config, classes)


def test_the_same_network_takes_everything():
    before, _, after = moved(SOURCE, target())
    assert_equal(after, before)
    assert transfer.differences(SOURCE, target()) == []


def test_some_of_the_classes_take_their_rows_of_both_heads():
    wanted = target(("elk", "bee", "gnu"))
    before, _, after = moved(SOURCE, wanted)
    head, predictor = (each["shared"]["head"]["kernel"] for each in (before[0], after[0]))
    np.testing.assert_array_equal(predictor, head[:, list(KEPT)])
    head, picked = (each["predictor"]["network"]["head"]["bias"] for each in (before[0], after[0]))
    np.testing.assert_array_equal(picked, head[[*KEPT, 7, 8, 9, 10]])  # and the four options
    assert transfer.differences(SOURCE, wanted) == [
        "of the last layer are kept the rows of 3 of 7 classes"]


def test_unknown_classes_start_the_heads_anew_and_nothing_else():
    wanted = target(("bee", "yak"))
    before, fresh, after = moved(SOURCE, wanted)
    assert_equal(after[0]["shared"]["head"], fresh[0]["shared"]["head"])
    assert_equal(after[0]["shared"]["conv1"], before[0]["shared"]["conv1"])
    for tree, was, new in zip(after, before, fresh, strict=True):
        assert_equal(tree["norms"], was["norms"])
        assert_equal(tree["predictor"], new["predictor"])
    assert transfer.differences(SOURCE, wanted) == [
        "the last layer starts anew: 1 of the 2 classes are none of the 7 known, such as 'yak'",
        "the predictor starts anew",
    ]


def test_as_many_other_classes_start_anew_too():
    wanted = target((*NAMES[:-1], "yak"))
    _, fresh, after = moved(SOURCE, wanted)
    assert_equal(after[0]["shared"]["head"], fresh[0]["shared"]["head"])


@pytest.mark.parametrize("overrides", [
    {"predictor__width": 1.0}, {"predictor__classifies": False}, {"resolutions": (20, 8)},
])
def test_another_predictor_starts_anew(overrides):
    wanted = target(**overrides)
    before, fresh, after = moved(SOURCE, wanted)
    assert_equal([tree["predictor"] for tree in after], [tree["predictor"] for tree in fresh])
    assert_equal(after[0]["shared"], before[0]["shared"])
    expected = ["the predictor starts anew"]
    if "resolutions" in overrides:
        expected.insert(0, "the norms of 20 px begin as those of 16 px")
        assert_equal(after[1]["norms"]["20"], before[1]["norms"]["16"])
        assert list(after[1]["norms"]) == ["20", "8"]
    assert transfer.differences(SOURCE, wanted) == expected


def test_the_predictor_of_a_source_that_does_not_classify_is_not_trained_in_stage_1():
    plain = Knowledge(tiny_config(OUTCOME), NAMES)
    assert not transfer.keeps_predictor(plain, plain)
    assert transfer.keeps_predictor(SOURCE, SOURCE)


def test_one_set_of_norms_for_all_resolutions():
    shared = functools.partial(target, classifier__resolution_aware_norm=False)
    before, _, after = moved(shared(), shared(resolutions=(20, 8)))
    assert_equal(after[0]["norms"], before[0]["norms"])
    assert list(after[0]["norms"]) == ["all"]


@pytest.mark.parametrize(("classes", "known", "rows"), [
    ("ab", "ba", (1, 0)), ("b", "abc", (1,)), ("abd", "abc", None), ("", "ab", ()),
])
def test_rows(classes, known, rows):
    assert transfer.rows_of(tuple(classes), tuple(known)) == rows


def test_move_runs_under_jit_without_sharing_arrays():
    """A step donates its state: no array may be in it twice."""
    wanted = target(resolutions=(20, 12, 10))
    before, fresh = (jax.tree.map(jnp.asarray, random_variables(
        DRNet.from_config(each.config, 7))) for each in (SOURCE, wanted))
    found = jax.jit(lambda *trees: transfer.move(*trees, SOURCE, wanted))(before, fresh)
    places = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(found)]
    assert len(set(places)) == len(places)
