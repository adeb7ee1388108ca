"""Sizes: which static ones the buckets of a run are padded to, step by step."""

from collections.abc import Sequence

from drnet_jax import buckets

Size = tuple[int, int]  # of a bucket: index of its resolution, padded size


class Sizes:
    """A new size comes into use `lead` steps after a bucket would first have done with it.

    Until then, while its program is compiled in the background, the next larger size in use serves;
    that there is one, the whole batch is in use from the start. With a lead of 0 each bucket has
    the size it wants at once, and its step waits for the compiler.

    All of this follows from the counts alone, not from how long anything took to compile: all hosts
    run the same programs, and a run that was killed and goes on runs those that it would have.
    """

    def __init__(self, multiple: int, lead: int, left: dict[Size, int] | None = None):
        """
        Args:
            multiple: of which sizes are multiples (see `buckets.sizes`).
            lead: steps from when a size is first wanted until it is used.
            left: of a run that goes on: how many steps are left until each size is in use.
        """
        self._multiple, self._lead = multiple, lead
        self.left = dict(left or {})

    def advance(self, counts: Sequence[int], limit: int) -> list[int]:
        """The sizes of a step's buckets, [R]; 0 for an empty one, which is not run.

        Args:
            counts: int [R], samples in each bucket, the largest of any device.
            limit: samples of a device's batch.
        """
        whole = {(index, limit): 0 for index in range(len(counts))}
        # After a change of devices some sizes may be of a larger batch.
        self.left = whole | {
            (index, size): max(steps - 1, 0)
            for (index, size), steps in self.left.items() if size <= limit
        }
        return [
            self._size(index, int(count), limit) if count else 0
            for index, count in enumerate(counts)
        ]

    def ahead(self) -> list[Size]:
        """The sizes that are in use or will be, to be compiled while the device works."""
        return list(self.left) if self._lead else []

    def by_resolution(self, resolutions: Sequence[int]) -> dict[str, dict[str, int]]:
        """The steps left by resolution and size, for a checkpoint."""
        found: dict[str, dict[str, int]] = {}
        for (index, size), steps in self.left.items():
            found.setdefault(str(resolutions[index]), {})[str(size)] = steps
        return found

    @staticmethod
    def left_of(
        by_resolution: dict[str, dict[str, int]], resolutions: Sequence[int]
    ) -> dict[Size, int]:
        """The inverse of `by_resolution`."""
        return {
            (index, int(size)): steps
            for index, resolution in enumerate(resolutions)
            for size, steps in by_resolution.get(str(resolution), {}).items()
        }

    def _size(self, index: int, count: int, limit: int) -> int:
        wanted = buckets.padded_size(count, self._multiple, limit)
        self.left.setdefault((index, wanted), self._lead)
        return min(
            size for (at, size), steps in self.left.items()
            if at == index and size >= count and steps == 0
        )
