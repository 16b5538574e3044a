"""Image processors of Transformers: size, cropping and normalisation from a local directory."""

from pathlib import Path
from typing import Any

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
            self._gain, self._shift = self._measured(directory, channels)
            probe = self.resized(np.zeros((40, 50, channels), np.uint8))
        except (OSError, ValueError, KeyError, ImportError, AttributeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                f"processor: {directory} does not hold an image processor that works here: {error}",
                code="invalid_processor",
            ) from error
        if probe.ndim != 3 or probe.shape != self.resized(_OTHER[..., :channels]).shape:
            raise DataError(
                f"processor: {directory} does not resize images to one size, so they cannot be stored.",
                code="invalid_processor",
            )
        self.height, self.width = probe.shape[1:]
        # (pixel / 255 - mean) / std = gain * pixel + shift
        self.mean = [round(float(-shift / gain / 255), 6) for gain, shift in zip(self._gain, self._shift, strict=True)]
        self.std = [round(float(1 / gain / 255), 6) for gain in self._gain]

    def _measured(self, directory: Path, channels: int) -> tuple[np.ndarray, np.ndarray]:
        """The gain and the shift by which each channel of a pixel becomes a value for the model, float64 [C].

        They are measured, because processors differ in the fields that they are written in.

        Raises:
            DataError: values do not follow from pixels by a gain and a shift.
        """
        shades = [np.full((40, 50, channels), shade, np.uint8) for shade in (0, 102, 255)]
        several = np.concatenate(shades)
        pixels, values = self._pixels(several), self._values(several)
        if pixels.dtype != np.uint8:  # it rescales whatever it is told
            values = np.concatenate([self._values(shade) for shade in shades], axis=-1)
            pixels = np.broadcast_to(np.repeat((0, 102, 255), values.shape[-1] // 3), values.shape)
        if values.ndim != 3 or len(values) != channels:
            raise DataError(
                f"processor: {directory} makes values of shape {list(values.shape)} of an image with {channels} "
                "channels; it must be [channels, height, width].",
                code="invalid_processor",
            )
        pixels, values = pixels.reshape(channels, -1).astype(np.float64), values.reshape(channels, -1)
        low, high = pixels.argmin(axis=1)[:, None], pixels.argmax(axis=1)[:, None]
        rise, run = (np.take_along_axis(each, high, 1) - np.take_along_axis(each, low, 1) for each in (values, pixels))
        gain = rise / run
        shift = np.take_along_axis(values, low, 1) - gain * np.take_along_axis(pixels, low, 1)
        if not np.allclose(values, gain * pixels + shift, rtol=0, atol=1e-4 * float(np.abs(rise).max())):
            raise DataError(
                f"processor: {directory} does more to a pixel than to multiply it and to add to it, so its images "
                "cannot be stored as pixels.",
                code="invalid_processor",
            )
        return gain[:, 0], shift[:, 0]

    def _values(self, image: np.ndarray, **options: bool) -> np.ndarray:
        output = self._processor(image, input_data_format="channels_last", return_tensors="np", **options)
        return np.asarray(output["pixel_values"][0])

    def _pixels(self, image: np.ndarray) -> np.ndarray:
        return self._values(image, do_rescale=False, do_normalize=False)

    def resized(self, image: np.ndarray) -> np.ndarray:
        """uint8 [H, W, C] of any size → uint8 [C, height, width], resized and cropped for the model."""
        pixels = self._pixels(image)
        if pixels.dtype == np.uint8:
            return pixels
        # Resized pixels are whole numbers, as Pillow makes them, so nothing is lost by going back to them.
        values = self._values(image).astype(np.float64)
        pixels = np.rint((values - self._shift[:, None, None]) / self._gain[:, None, None])
        stored: np.ndarray = np.clip(pixels, 0, 255).astype(np.uint8)
        return stored

    def save(self, directory: Path) -> None:
        """Write its file into a directory."""
        self._processor.save_pretrained(directory)


_OTHER = np.zeros((90, 30, 3), np.uint8)


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
