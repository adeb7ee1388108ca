"""Loader: batches for training and evaluation, decoded by Grain in threads or worker processes.

The order of the training examples, their crops and their flips are functions of the seed and of an
example's position in the endless global stream. So they depend neither on which thread or process
decodes it, nor on how many of them, or how many hosts, there are.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np
from absl import flags

from drnet_jax import config
from drnet_jax.data import transforms
from drnet_jax.data.examples import Bad, EvalExample, TrainExample
from drnet_jax.data.sources import Source
from drnet_jax.data.waiting import next_batch

Batch = dict[str, np.ndarray]


def train_batches(
    source: Source,
    data: config.Data,
    *,
    size: int,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator[Batch]:
    """Endless shuffled, augmented batches; every epoch sees each image once over all hosts.

    Args:
        size: height and width of the crops, in pixels.
        batch_size: examples per batch of this host, B.

    Returns:
        An iterator of {"image": uint8 [B, size, size, 3], "label": int32 [B], "index": int32 [B],
        "bad": int32 [B]}, `index` the example's place in the source, and `bad` that of the one in
        whose place it is (see `TrainExample`). Its state, {"examples": n}, is the number of
        examples that all hosts together have consumed; setting it continues with the same batches,
        also under another number of workers, hosts or examples per batch. Any n will do for any
        source: to go on with a data set that has changed, set {"examples": epoch * len(source)},
        from where the next len(source) examples are its images of that epoch, each once. Close it
        at the end.

    Raises:
        UserError: from `next`, if an image cannot be read, unless `data.max_bad`, which is named;
            and as `next_batch`.
    """
    # Grain seeds epoch e with (seed + e) mod 2^32; hashing keeps runs of neighbouring seeds from
    # sharing them.
    shuffle_seed, augment_seed = np.random.SeedSequence(seed).generate_state(2)
    augmented = TrainExample(
        source, size, data.crop_area, data.crop_ratio, pass_over=data.max_bad > 0
    )
    stream = (
        grain.MapDataset.range(len(source))
        .shuffle(seed=int(shuffle_seed))
        .repeat()
        .random_map(augmented, seed=int(augment_seed))
    )

    def start_at(position: int) -> grain.DatasetIterator[Batch]:
        share = _HostShare(stream, position, batch_size, process_index, process_count)
        return iter(_batched(share, batch_size, data))

    return _TrainIterator(start_at, batch_size * process_count, data)


def eval_batches(
    source: Source,
    data: config.Data,
    *,
    size: int,
    square: transforms.Square,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Every image once, in order; host `process_index` yields every `process_count`-th of them.

    Args:
        size: height and width of the crops, in pixels.
        square: what images are squashed to before (see `transforms.resize_and_centre_crop`).
        batch_size: examples per batch of this host, B.

    Yields:
        {"image": uint8 [B, size, size, 3], "label": int32 [B], "index": int32 [B], "mask": bool
        [B], "needed_scale": float32 [B], 0 where it is not known}. The mask is False in the
        rows that fill up the last batch, and in those of images that could not be read, which are
        copies of the first row.

    Raises:
        UserError: if more images than `data.max_bad` cannot be read, of which one is named; and as
            `next_batch`.
    """
    share = range(process_index, len(source), process_count)
    if not share:
        return
    count, bad = -(-len(share) // batch_size), Bad(source, data.max_bad)
    # Padding without end: workers make whole batches, and Grain leaks memory when it reads an end.
    rows = grain.MapDataset.range(sys.maxsize).map(
        EvalExample(source, size, square, share, pass_over=data.max_bad > 0)
    )
    batches = iter(_batched(rows, batch_size, data))
    try:
        for batch in (_own(next_batch(batches, data)) for _ in range(count)):
            for name, why in bad.add(batch.pop("bad")):
                print(f"warning: left out {name}: {why}", file=sys.stderr)
            padding = ~batch["mask"]
            if padding.any():
                for name in batch.keys() - {"mask"}:
                    batch[name][padding] = batch[name][0]
            yield batch
    finally:
        batches.close()


def check_source(source: Source, data: config.Data, size: int, count: int = 8) -> None:
    """Makes training examples of the first few images, to fail before long work starts.

    Raises:
        UserError: if one of them cannot be read, or has a label that is no class.
    """
    if data.max_bad:  # which is counted as they come
        return
    augmented = TrainExample(source, size, data.crop_area, data.crop_ratio, pass_over=False)
    for index in range(min(count, len(source))):
        augmented(index, np.random.default_rng(0))


def _batched(
    examples: grain.MapDataset, batch_size: int, data: config.Data
) -> grain.IterDataset[Batch]:
    if data.workers:
        # Grain's worker processes are told the values of absl's flags, which must be parsed for
        # that; in a notebook or a test nobody has done so.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        examples = _WorkerOrder(examples, batch_size, data.workers)
    # Two batches ahead, counted in examples: threads share the work on the next batch.
    options = grain.ReadOptions(
        num_threads=data.threads, prefetch_buffer_size=max(2 * batch_size, data.threads)
    )
    batches = examples.to_iter_dataset(options).batch(batch_size)
    if data.workers:
        batches = batches.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=data.workers, per_worker_buffer_size=2)
        )
    return batches


def _own(batch: Batch) -> Batch:
    """Copies what workers left in shared memory, which must not outlive Grain's iterator."""
    return {
        name: array if type(array) is np.ndarray else np.array(array)
        for name, array in batch.items()
    }


class _HostShare(grain.MapDataset):
    """A host's rows of each global batch, which follow one another and those of the host before.

    So row by row a global batch is the same on any number of hosts.
    """

    def __init__(
        self, parent: grain.MapDataset, start: int, batch_size: int, process: int, processes: int
    ):
        super().__init__(parent)
        self._start, self._batch_size = start + process * batch_size, batch_size
        self._global_batch = processes * batch_size

    def __len__(self) -> int:
        return len(self._parent)

    def __getitem__(self, position):
        if isinstance(position, slice):
            return self.slice(position)
        batch, row = divmod(position, self._batch_size)
        return self._parent[self._start + batch * self._global_batch + row]


class _WorkerOrder(grain.MapDataset):
    """Reorders examples so that with W workers the batches are the same as with none.

    Grain gives worker w the positions w, w + W, w + 2W, ... and takes batches from the workers in
    turn. Here the k-th batch of worker w is made the (kW + w)-th run of `batch_size` examples.
    """

    def __init__(self, parent: grain.MapDataset, batch_size: int, workers: int):
        super().__init__(parent)
        self._batch_size = batch_size
        self._workers = workers

    def __len__(self) -> int:
        return len(self._parent)

    def __getitem__(self, position):
        if isinstance(position, slice):
            return self.slice(position)
        place, worker = divmod(position, self._workers)
        batch, row = divmod(place, self._batch_size)
        return self._parent[(batch * self._workers + worker) * self._batch_size + row]


class _TrainIterator(grain.DatasetIterator[Batch]):
    """Counts examples over a pipeline that can start anywhere, which makes the count its state.

    Grain's own state describes the workers, and so fits only the same number of them.
    """

    def __init__(
        self, start_at: Callable[[int], grain.DatasetIterator[Batch]], examples_per_batch: int,
        data: config.Data,
    ):
        super().__init__()
        self._start_at, self._data = start_at, data
        self._examples_per_batch = examples_per_batch
        self._examples = 0
        self._batches = None

    def __next__(self) -> Batch:
        self._assert_not_closed()
        self.start_prefetch()
        batch = _own(next_batch(self._batches, self._data))
        self._examples += self._examples_per_batch
        return batch

    def start_prefetch(self) -> None:
        if self._batches is None:
            self._batches = self._start_at(self._examples)
            self._batches.start_prefetch()

    def get_state(self) -> dict[str, Any]:
        return {"examples": self._examples}

    def set_state(self, state: dict[str, Any]) -> None:
        self._stop()
        self._examples = state["examples"]

    def close(self) -> None:
        self._stop()
        super().close()

    def _stop(self) -> None:
        if self._batches is not None:
            self._batches.close()
            self._batches = None
