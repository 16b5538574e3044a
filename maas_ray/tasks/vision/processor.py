"""Image processors of Transformers: size, cropping and normalisation from a local directory."""

from pathlib import Path
from typing import Any, cast

import numpy as np

from maas_ray.errors import DataError
from maas_ray.tasks.pretrained import check_built_whole

PROCESSOR_FILE = "preprocessor_config.json"


class ImageProcessor:
    """The image processor in a directory, which holds a `preprocessor_config.json`.

    Args:
        directory: the directory.
        channels: channels of the input images: 1 or 3.

    Raises:
        DataError: Transformers cannot load it, or its images cannot be stored.
    """

    def __init__(self, directory: Path, channels: int) -> None:
        from transformers import AutoImageProcessor

        try:
            self._processor = AutoImageProcessor.from_pretrained(directory, local_files_only=True)
            probe = self.resized(np.zeros((40, 50, channels), np.uint8))
        except (OSError, ValueError, KeyError, ImportError, AttributeError) as error:
            raise DataError(
                f"processor: {directory} does not hold an image processor that works here: {error}",
                code="invalid_processor",
            ) from error
        if probe.ndim != 3 or probe.dtype != np.uint8 or probe.shape != self.resized(_OTHER[..., :channels]).shape:
            raise DataError(
                f"processor: {directory} does not resize images to one size, so they cannot be stored.",
                code="invalid_processor",
            )
        self.height, self.width = probe.shape[1:]
        processor = self._processor
        scale = 255 * (processor.rescale_factor if processor.do_rescale else 1.0)
        mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ([0.0], [1.0])
        self.mean, self.std = ([float(value) / scale for value in _each(values, channels)] for values in (mean, std))
        if len(self.mean) != channels:
            raise DataError(
                f"processor: {directory} is for {len(self.mean)} channels, but the model for {channels}.",
                code="invalid_processor",
            )

    def resized(self, image: np.ndarray) -> np.ndarray:
        """uint8 [H, W, C] of any size → uint8 [C, height, width], resized and cropped for the model."""
        output = self._processor(
            image, do_rescale=False, do_normalize=False, input_data_format="channels_last", return_tensors="np"
        )
        return cast(np.ndarray, output["pixel_values"][0])

    def save(self, directory: Path) -> None:
        """Write its file into a directory."""
        self._processor.save_pretrained(directory)


_OTHER = np.zeros((90, 30, 3), np.uint8)


def _each(values: Any, channels: int) -> list[Any]:
    each = list(values) if isinstance(values, (list, tuple)) else [values]
    return each * channels if len(each) == 1 else each


def check_takes(config: Any, directory: Path, shape: tuple[int, int, int]) -> None:
    """Return if a model takes images of a shape (channels, height, width).

    Raises:
        DataError: it does not.
    """
    import torch
    from transformers import AutoModelForImageClassification

    check_built_whole(config)
    try:
        with torch.device("meta"):  # on the meta device, shapes are checked without computing
            AutoModelForImageClassification.from_config(config)(pixel_values=torch.empty(1, *shape))
    except (ValueError, RuntimeError) as error:
        channels, height, width = shape
        raise DataError(
            f"network.path: the model in {directory} does not take the dataset's images of {height}x{width} pixels and "
            f"{channels} channels ({str(error).splitlines()[0]}). Prepare it with `processor: {directory}`.",
            code="wrong_image_shape",
        ) from error
