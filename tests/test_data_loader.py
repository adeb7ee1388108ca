"""Batches: each image once, the same under any number of hosts, threads and worker processes."""

import itertools
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from drnet_jax import config
from drnet_jax.data import loader, transforms
from drnet_jax.data.sources import open_source
from drnet_jax.errors import UserError

COUNT = 10
SIZE = 16
ORDER_OF_SEED_3 = [0, 3, 1, 2, 4, 5, 6, 7, 9, 8, 5, 8, 9, 1, 2, 3, 6, 0, 7, 4]


def settings(directory, **overrides):
    values = {
        "name": "folder", "dir": str(directory), "train_split": "train", "val_split": "train",
        "classes": "", "images_per_class": 0, "crop_area": (0.2, 1.0), "crop_ratio": (0.75, 4 / 3),
        "max_bad": 0.0, "timeout": 60.0, "workers": 0, "threads": 4,
    }
    return config.Data(**values | overrides)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten images of noise in two classes, 7 and 3."""
    directory = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for index in range(COUNT):
        path = directory / "train" / ("few" if index >= 7 else "a lot") / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), rng.integers(0, 256, (20 + index, 30, 3), np.uint8))
    return directory


@pytest.fixture(scope="module")
def damaged(folder, tmp_path_factory):
    """The same, but image 8 is cut short."""
    directory = tmp_path_factory.mktemp("damaged")
    for path in folder.glob("train/*/*.png"):
        copy = directory / path.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        content = path.read_bytes()
        copy.write_bytes(content[:200] if path.stem == "8" else content)
    return directory


def opened(directory):
    return open_source(settings(directory), training=True)


def train(directory, count, state=None, *, batch_size=4, seed=3, hosts=(0, 1), **overrides):
    """The first `count` batches, or those after `state`, and the state behind them."""
    batches = loader.train_batches(
        opened(directory), settings(directory, **overrides), size=SIZE, batch_size=batch_size,
        seed=seed, process_index=hosts[0], process_count=hosts[1],
    )
    if state:
        batches.set_state(state)
    result = [next(batches) for _ in range(count)]
    state = batches.get_state()
    batches.close()
    return result, state


def evaluate(directory, *, batch_size=4, hosts=(0, 1), source=None, **overrides):
    return loader.eval_batches(
        source or opened(directory), settings(directory, **overrides), size=SIZE,
        square=transforms.square_for(SIZE, 0.875), batch_size=batch_size,
        process_index=hosts[0], process_count=hosts[1],
    )


def joined(batches, name):
    return np.concatenate([batch[name] for batch in batches])


def assert_same(batches, expected):
    for batch, wanted in zip(batches, expected, strict=True):
        assert batch.keys() == wanted.keys()
        for name, array in wanted.items():
            np.testing.assert_array_equal(batch[name], array)


def test_train_batch_shapes_and_labels(folder):
    batches, _ = train(folder, 3)
    for batch in batches:
        shapes = {name: (array.shape, array.dtype) for name, array in batch.items()}
        assert shapes == {
            "image": ((4, SIZE, SIZE, 3), np.uint8),
            "label": ((4,), np.int32),
            "index": ((4,), np.int32),
            "bad": ((4,), np.int32),
        }
        np.testing.assert_array_equal(batch["label"], batch["index"] >= 7)


def test_each_epoch_sees_each_image_once_in_another_order(folder):
    index = joined(train(folder, 15)[0], "index").reshape(6, COUNT)
    np.testing.assert_array_equal(np.sort(index), np.tile(np.arange(COUNT), (6, 1)))
    assert len({tuple(epoch) for epoch in index}) == 6


def test_neighbouring_seeds_share_no_epoch(folder):
    epochs = [
        tuple(epoch)
        for seed in range(3)
        for epoch in joined(train(folder, 10, seed=seed)[0], "index").reshape(4, COUNT)
    ]
    assert len(set(epochs)) == 12


def test_the_order_of_a_seed_never_changes(folder):
    # Runs that go on, and published figures, depend on it.
    index = joined(train(folder, 5)[0], "index")
    assert index.tolist() == ORDER_OF_SEED_3


def test_epochs_whose_seeds_pass_2_to_the_32(folder):
    # The hash of this seed is 2^32 - 912, to which Grain adds the number of the epoch.
    assert np.random.SeedSequence(2667687).generate_state(2)[0] == 2**32 - 912
    batches, _ = train(folder, 4, {"examples": 910 * COUNT}, batch_size=COUNT, seed=2667687)
    epochs = [batch["index"].tolist() for batch in batches]
    assert [sorted(epoch) for epoch in epochs] == [list(range(COUNT))] * 4
    assert len(set(map(tuple, epochs))) == 4


def test_images_are_cropped_anew_each_epoch(folder):
    batches, _ = train(folder, 2, batch_size=COUNT)
    first, second = (batch["image"][np.argsort(batch["index"])] for batch in batches)
    assert (first != second).any(axis=(1, 2, 3)).all()


def test_hosts_share_the_stream_of_one(folder):
    whole, whole_state = train(folder, 6, batch_size=6)
    shares = [train(folder, 6, batch_size=3, hosts=(host, 2)) for host in range(2)]
    for step in range(6):
        for name, array in whole[step].items():
            both = np.concatenate([batches[step][name] for batches, _ in shares])
            np.testing.assert_array_equal(both, array)
    assert [state for _, state in shares] == [whole_state] * 2


def test_threads_change_nothing(folder):
    assert_same(train(folder, 5, threads=1)[0], train(folder, 5, threads=16)[0])


def test_restored_batches_go_on_exactly(folder):
    expected, _ = train(folder, 9)
    _, state = train(folder, 4)
    assert_same(train(folder, 5, state)[0], expected[4:])
    # Back in time, on an iterator that has run ahead.
    batches = loader.train_batches(
        opened(folder), settings(folder), size=SIZE, batch_size=4, seed=3
    )
    for _ in range(7):
        next(batches)
    batches.set_state(state)
    assert batches.get_state() == state
    assert_same(list(itertools.islice(batches, 5)), expected[4:])
    batches.close()


def test_restore_under_another_batch_size_continues_the_stream(folder):
    expected = joined(train(folder, 9)[0], "index")
    _, state = train(folder, 4)
    continued = joined(train(folder, 2, state, batch_size=10)[0], "index")
    np.testing.assert_array_equal(continued, expected[16:36])


@pytest.mark.parametrize("hosts", [1, 3])
def test_a_changed_data_set_goes_on_at_any_epoch(folder, tmp_path, hosts):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "train" / "few" / "8.png").unlink()
    _, state = train(folder, 7)  # 28 examples of 10 images: within epoch 2
    left = COUNT - 1
    epoch = -(-state["examples"] // COUNT)
    begun = [
        train(
            tmp_path, 2 * 9 // (3 * hosts) + 1, {"examples": epoch * left}, batch_size=3,
            hosts=(host, hosts),
        )
        for host in range(hosts)
    ]
    shares = (batches for batches, _ in begun)
    index = np.concatenate([each["index"] for step in zip(*shares, strict=True) for each in step])
    np.testing.assert_array_equal(np.sort(index[: 2 * left].reshape(2, left)), [range(left)] * 2)
    # Where it would be after that many epochs of its own.
    whole = joined(train(tmp_path, 15, batch_size=3)[0], "index")
    np.testing.assert_array_equal(index[: 2 * left], whole[epoch * left :])
    assert begun[0][1]["examples"] == epoch * left + len(index)


def test_worker_processes_change_nothing(folder):
    expected, _ = train(folder, 8)
    _, state = train(folder, 3)
    batches, after = train(folder, 5, state, workers=2)
    assert_same(batches, expected[3:])
    assert after == {"examples": 32}


def test_a_closed_iterator_says_so(folder):
    batches = loader.train_batches(
        opened(folder), settings(folder), size=SIZE, batch_size=4, seed=3
    )
    next(batches)
    batches.close()
    batches.close()
    with pytest.raises(ValueError, match="closed"):
        next(batches)


@pytest.mark.parametrize("hosts", [1, 2, 3, 4, 12])
@pytest.mark.parametrize("batch_size", [1, 4, 5, 16])
def test_evaluation_sees_each_image_once(folder, hosts, batch_size):
    source = opened(folder)
    seen = []
    for host in range(hosts):
        batches = list(evaluate(folder, batch_size=batch_size, hosts=(host, hosts)))
        share = len(range(host, COUNT, hosts))
        assert len(batches) == -(-share // batch_size)
        for batch in batches:
            mask = batch["mask"]
            assert mask.dtype == bool and mask.any()
            assert (mask[:-1] >= mask[1:]).all()  # padding comes last
            for row in range(batch_size):
                example = source[int(batch["index"][row])]
                image = transforms.decode(example["image"])
                expected = transforms.resize_and_centre_crop(
                    image, transforms.square_for(SIZE, 0.875), SIZE
                )
                np.testing.assert_array_equal(batch["image"][row], expected)
                assert batch["label"][row] == example["label"]
            np.testing.assert_array_equal(batch["index"][~mask], batch["index"][0])
            seen.extend(batch["index"][mask])
    assert sorted(seen) == list(range(COUNT))


class Scaled:
    """Adds a needed_scale to a source."""

    def __init__(self, source):
        self._source = source
        self.classes = source.classes

    def __len__(self):
        return len(self._source)

    def __getitem__(self, index):
        return {**self._source[index], "needed_scale": index / COUNT}

    def key(self, index):
        return self._source.key(index)


def test_evaluation_passes_needed_scale_through(folder):
    *_, last = evaluate(folder, source=Scaled(opened(folder)))
    assert last["needed_scale"].dtype == np.float32
    np.testing.assert_allclose(last["needed_scale"], [0.8, 0.9, 0.8, 0.8])
    np.testing.assert_array_equal(last["mask"], [True, True, False, False])
    assert not next(evaluate(folder))["needed_scale"].any()


def test_evaluation_in_worker_processes(folder):
    assert_same(list(evaluate(folder, workers=2)), list(evaluate(folder)))


def test_damaged_image_is_named(damaged):
    batches = evaluate(damaged)
    next(batches), next(batches)
    with pytest.raises(UserError, match=r"few/8\.png: expected a whole image"):
        next(batches)
    with pytest.raises(UserError, match=r"few/8\.png"):
        train(damaged, 4)


def test_damaged_image_is_named_by_worker_processes(damaged):
    with pytest.raises(UserError, match=r"few/8\.png"):
        train(damaged, 4, workers=1)


def test_check_source_looks_at_the_first_images(damaged):
    source = opened(damaged)
    loader.check_source(source, settings(damaged), SIZE, count=8)
    with pytest.raises(UserError, match=r"few/8\.png"):
        loader.check_source(source, settings(damaged), SIZE, count=9)


def test_labels_that_are_no_class_are_refused(folder):
    source = Scaled(opened(folder))
    source.classes = ("only one",)
    with pytest.raises(UserError, match=r"few/7\.png: expected a label from 0 to 0, received 1"):
        list(evaluate(folder, source=source))


def test_closed_iterators_leave_nothing_behind(folder):
    code = (
        "from tests.test_data_loader import *\n"
        "if __name__ == '__main__':\n"
        f"    train({str(folder)!r}, 3, workers=1)\n"
        f"    kept = list(evaluate({str(folder)!r}, workers=1))\n"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert (done.returncode, done.stderr) == (0, "")
