"""`image-classification`: one label for an image. Stored pixels are uint8, [channels, height, width]."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import model_validator

from maas_ray.errors import DataError, InvalidError, RequestError
from maas_ray.spec import Spec
from maas_ray.tasks.cells import label as label_of
from maas_ray.tasks.classifying import Classifying, fit_labels
from maas_ray.tasks.fitting import SummedTaskSpec
from maas_ray.tasks.network import CONFIG_FILE, Forward
from maas_ray.tasks.pretrained import Pretrained, as_weights, model_directory
from maas_ray.tasks.rows import Column, Row, TensorSpec
from maas_ray.tasks.traits import Picture, Trait, lengths
from maas_ray.tasks.vision import images
from maas_ray.tasks.vision.networks import Cnn, ResNet
from maas_ray.tasks.vision.processor import PROCESSOR_FILE, ImageProcessor, check_takes
from maas_ray.tasks.vision.requests import ImageRow
from maas_ray.tasks.vision.totals import PixelTotals

if TYPE_CHECKING:
    import torch


_SIDES = ((0, "high"), (1, "wide"))


class ImageClassificationSpec(SummedTaskSpec):
    """`task: {type: image-classification}`"""

    type: Literal["image-classification"] = "image-classification"
    """Which task."""
    image_size: int | tuple[int, int] | None = None
    """Side, or (height, width), to resize images to, pixels. None: the most frequent size in training."""
    color: Literal["rgb", "grey"] | None = None
    """Colour mode to convert images to. None: grey if every training image is grey, else rgb."""
    processor: str | None = None
    """Local directory of a Transformers vision model: images get its size, cropping and normalisation, for the network
    `pretrained`. Without a `preprocessor_config.json`: its size, with the normalisation of the training images."""

    columns: ClassVar[tuple[str, ...]] = ("image", "label")
    inputs: ClassVar[tuple[str, ...]] = ("image",)

    @model_validator(mode="after")
    def _either(self) -> "ImageClassificationSpec":
        if self.processor is not None and (self.image_size is not None or self.color is not None):
            raise InvalidError(
                "conflicting_fields",
                "`processor` already sets `image_size` and `color`. Remove these two, or `processor`.",
            )
        return self

    def identity(self) -> dict[str, Any]:
        """The fields, with digests of its files in place of a processor's path."""
        document = self.document()
        if self.processor is None:
            del document["processor"]  # absent in fingerprints from before processors
            return document
        directory = model_directory(self.processor)
        files = [directory / name for name in (CONFIG_FILE, PROCESSOR_FILE)]
        digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.is_file()}
        return document | {"processor": digests}

    def parse_row(self, row: Row) -> Row | None:
        """`image` decoded to uint8 [H, W, 1 or 3]; the name of the `label`; None if either is missing."""
        image, name = row["image"], label_of(row["label"])
        if image is None or (isinstance(image, bytes) and not image) or not name:
            return None
        return {"image": images.decode(image), "label": name}

    def totals(self) -> PixelTotals:
        return PixelTotals()

    def fitted(self, sample: None, totals: PixelTotals) -> "ImageClassification":
        """Labels, image size and colour, and the mean and standard deviation of each channel."""
        size = self.image_size or totals.most_frequent_size
        height, width = (size, size) if isinstance(size, int) else size
        channels = {"rgb": 3, "grey": 1, None: 3 if totals.colored else 1}[self.color]
        processor = None
        if self.processor is not None:
            from transformers import AutoConfig

            directory = model_directory(self.processor)
            config = AutoConfig.from_pretrained(directory, local_files_only=True)
            channels = int(getattr(config, "num_channels", 3))
            if (directory / PROCESSOR_FILE).is_file():
                processor = ImageProcessor(directory, channels)
                height, width = processor.height, processor.width
            elif own := getattr(config, "image_size", None):
                height, width = (own, own) if isinstance(own, int) else own
        features = ImageFeatures(
            labels=fit_labels(totals.labels),
            height=height,
            width=width,
            channels=channels,
            mean=processor.mean if processor else totals.mean[:channels],
            std=processor.std if processor else totals.std[:channels],
            upright=True,
        )
        return ImageClassification(self, features, processor)


class ImageFeatures(Spec):
    """Labels, image size and pixel statistics of the training split."""

    labels: list[str]
    """Names of the classes, in the order of their ids."""
    height: int
    """Pixels."""
    width: int
    """Pixels."""
    channels: Literal[1, 3]
    """1 for grey, 3 for rgb."""
    mean: list[float]
    """Per-channel mean of the pixels, in [0, 1]."""
    std: list[float]
    """Per-channel standard deviation of the pixels, in [0, 1]."""
    upright: bool = False
    """True if images were turned as their EXIF orientation says. maas_ray 0.2 did not turn them."""


class ImageClassification(Classifying):
    """A fitted `image-classification` task.

    Args:
        spec: the fields under `task:`.
        features: labels, size and statistics of the training split.
        processor: the image processor of `spec.processor`, if it has one.
    """

    spec: ImageClassificationSpec
    spec_type = ImageClassificationSpec
    networks = (Cnn, ResNet, Pretrained)
    auto_model = "AutoModelForImageClassification"
    unit = "rows"
    kind = "predict"
    headline = ("accuracy", "loss")
    request, file = ImageRow, "image"

    def __init__(
        self, spec: ImageClassificationSpec, features: ImageFeatures, processor: ImageProcessor | None = None
    ) -> None:
        super().__init__(spec)
        self.features, self._processor = features, processor

    @property
    def labels(self) -> list[str]:
        return self.features.labels

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)"""
        return self.features.channels, self.features.height, self.features.width

    @property
    def stored(self) -> dict[str, Column]:
        return {"pixel_values": Column("uint8", self.shape), "label": Column("int64")}

    def encode(self, rows: list[Row]) -> dict[str, Any]:
        """`pixel_values` uint8 [n, C, H, W]; `label` int64 [n], -1 for a row without a label (a request)."""
        pixels = np.stack([self._resize(row["image"]) for row in rows])
        return {"pixel_values": pixels, "label": self.label_ids(rows)}

    def traits(self, rows: list[Row], encoded: Mapping[str, Any]) -> list[Trait]:
        """Heights and widths before resizing; labels."""
        high, wide = (lengths(f"pixels {side}", (row["image"].shape[n] for row in rows)) for n, side in _SIDES)
        return [high, wide, self.label_trait(encoded["label"])]

    def describe(self, stored: Mapping[str, np.ndarray]) -> dict[str, Any]:
        channels, height, width = self.shape
        pixels = stored["pixel_values"].transpose(1, 2, 0)
        note = f"{width}×{height} pixels, {'rgb' if channels == 3 else 'grey'}"
        picture = Picture(pixels if channels == 3 else pixels[..., 0], note)
        return {"image": picture, "label": self.labels[int(stored["label"])]}

    def _resize(self, image: np.ndarray) -> np.ndarray:
        """uint8 [H, W, C] of any size and colour → uint8 [C, height, width]."""
        channels, height, width = self.shape
        image = _to_channels(image, channels)
        if self._processor:
            return self._processor.resized(image)
        if image.shape[:2] != (height, width):
            from PIL import Image

            picture = Image.fromarray(image[..., 0] if channels == 1 else image)
            picture = picture.resize((width, height), Image.Resampling.BILINEAR)
            image = np.asarray(picture).reshape(height, width, channels)
        return np.ascontiguousarray(image.transpose(2, 0, 1))

    def save_state(self, directory: Path) -> dict[str, Any]:
        if self._processor:
            self._processor.save(directory)
        return self.features.document()

    @classmethod
    def load_state(cls, spec: Any, state: dict[str, Any], directory: Path) -> "ImageClassification":
        features = ImageFeatures.parse(state, source=f"{directory}: features")
        processed = spec.processor is not None and (directory / PROCESSOR_FILE).is_file()
        return cls(spec, features, ImageProcessor(directory, features.channels) if processed else None)

    def collate(self, batch: Mapping[str, np.ndarray]) -> dict[str, "torch.Tensor"]:
        import torch

        return {
            "pixel_values": torch.from_numpy(np.ascontiguousarray(batch["pixel_values"])),
            "label": torch.from_numpy(np.ascontiguousarray(batch["label"])),
        }

    def logits(self, model: Forward, batch: Mapping[str, "torch.Tensor"]) -> "torch.Tensor":
        pixels = self._as_the_network_takes_them(batch["pixel_values"])
        output: Any = model(pixel_values=as_weights(model, pixels) if pixels.is_floating_point() else pixels)
        logits: torch.Tensor = getattr(output, "logits", output).float()
        return logits

    def _as_the_network_takes_them(self, pixels: "torch.Tensor") -> "torch.Tensor":
        """[B, C, H, W], normalised for Transformers' networks: where they are, so that bytes are copied to a GPU.

        The platform's networks normalise themselves. Floats are taken as already normalised.
        """
        import torch

        if self.spec.processor is None or pixels.is_floating_point():
            return pixels
        mean, std = (
            torch.tensor(values).view(-1, 1, 1).to(pixels.device, non_blocking=True)
            for values in (self.features.mean, self.features.std)
        )
        return (pixels / 255.0 - mean) / std

    def config_fields(self) -> dict[str, Any]:
        names = dict(enumerate(self.labels))
        return {"num_labels": len(names), "id2label": names, "label2id": {name: index for index, name in names.items()}}

    def check_pretrained(self, config: Any, directory: Path) -> None:
        if self.spec.processor is None:
            raise DataError(
                "network.path: the dataset was prepared without a processor, so a Transformers model cannot read it. "
                f"Prepare it with `processor: {directory}`.",
                code="processor_missing",
            )
        check_takes(config, directory, self.shape)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        channels, height, width = self.shape
        return (TensorSpec("image", "UINT8", (-1, height, width, channels)),)

    def to_inputs(self, row: ImageRow) -> dict[str, Any]:
        try:
            pixels = images.decode(
                row.image, max_pixels=images.MAX_PIXELS, formats=images.FORMATS, upright=self.features.upright
            )
        except ValueError as error:
            raise RequestError(f"{error}.", param="image", code="invalid_image") from error
        return {"image": np.ascontiguousarray(self._resize(pixels).transpose(1, 2, 0))}

    def predict(self, model: Forward, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """`image` uint8 [n, H, W, C] → `label` (names, [n]) and `scores` (probabilities, float32 [n, labels])."""
        import torch

        images = inputs["image"]
        if images.ndim != 4 or images.shape[-1] not in (1, 3):
            raise RequestError(
                f"image has shape {list(images.shape)}; it must be [n, height, width, channels].", param="image"
            )
        _, height, width = self.shape
        # An image of the shape in `inputs` is ready for the network; a processor would crop it again.
        ready = images.shape[1:] == (height, width, self.features.channels)
        pixels = images.transpose(0, 3, 1, 2) if ready else np.stack([self._resize(image) for image in images])
        with torch.inference_mode():
            tensor = torch.from_numpy(np.ascontiguousarray(pixels))
            return self.answered(self.logits(model, {"pixel_values": tensor}))


def _to_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """uint8 [H, W, 1 or 3] → uint8 [H, W, channels]. Grey is ITU-R 601 luma, as in Pillow's `L`."""
    if image.shape[2] == channels:
        return image
    if channels == 3:
        return np.repeat(image, 3, axis=2)
    from PIL import Image

    return np.asarray(Image.fromarray(image).convert("L"))[..., None]
