"""Sizes, labels and pixel statistics of images, as exact sums."""

import math
from collections import Counter
from fractions import Fraction

import numpy as np

from maas_ray.tasks.fitting import Totals, root
from maas_ray.tasks.rows import Row

_VALUES = np.arange(256)
_LEAST_VARIANCE = Fraction(1, 10_000)


class PixelTotals(Totals):
    """Totals of labelled images. Each image weighs the same, whatever its size.

    Pixels are integers, so the sums over images of one size are too; only the results are divided and rounded.
    """

    def __init__(self) -> None:
        self.labels: set[str] = set()
        self.colored = False
        """True if an image is not grey."""
        self._counts: Counter[tuple[int, int]] = Counter()
        # Sums of pixels and of their squares, [2, 3 channels], as Python's integers, which do not overflow.
        self._sums: dict[tuple[int, int], np.ndarray] = {}

    def add(self, row: Row) -> None:
        from PIL import Image

        image, size = row["image"], row["image"].shape[:2]
        self.labels.add(row["label"])
        self.colored |= image.shape[2] == 3
        picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
        counts = np.array(picture.histogram()).reshape(-1, 256)  # [channels, 256]
        sums = np.stack([counts @ _VALUES, counts @ _VALUES**2]).astype(object)
        self._add(size, 1, np.broadcast_to(sums, (2, 3)))

    def _add(self, size: tuple[int, int], count: int, sums: np.ndarray) -> None:
        self._counts[size] += count
        self._sums[size] = self._sums[size] + sums if size in self._sums else sums

    def merge(self, other: "PixelTotals") -> None:
        self.labels |= other.labels
        self.colored |= other.colored
        for size, sums in other._sums.items():
            self._add(size, other._counts[size], sums)

    @property
    def most_frequent_size(self) -> tuple[int, int]:
        """(height, width); the largest of several."""
        return max(self._counts, key=lambda size: (self._counts[size], size))

    @property
    def _means(self) -> list[list[Fraction]]:
        """The means of pixels and of their squares, in [0, 1], by channel."""
        scales = np.array([[255], [255**2]], object)
        parts = [sums * Fraction(1, math.prod(size)) / scales for size, sums in self._sums.items()]
        means: list[list[Fraction]] = (sum(parts) / self._counts.total()).tolist()
        return means

    @property
    def mean(self) -> list[float]:
        """The mean of each channel of rgb, in [0, 1]."""
        return [float(mean) for mean in self._means[0]]

    @property
    def std(self) -> list[float]:
        """The standard deviation of each channel of rgb, in [0, 1]; at least 0.01."""
        return [root(max(square - mean**2, _LEAST_VARIANCE)) for mean, square in zip(*self._means, strict=True)]
