"""`image`: drops images that are too small, too thin or blank, and finds corrupt files. It decodes as the tasks do."""

from typing import Literal

from pydantic import Field

from maas_ray.data.cleaning.base import CleaningStep, Dropped, Notes, named
from maas_ray.errors import InvalidError
from maas_ray.tasks.rows import Row
from maas_ray.tasks.vision import images


class Image(CleaningStep):
    """`{step: image, min_side: 32}`"""

    step: Literal["image"] = "image"
    """Name of the step."""
    column: str = Field("image", min_length=1)
    """Column of image files."""
    min_side: int = Field(1, ge=1)
    """Minimum length of the shorter side, pixels."""
    max_aspect_ratio: float | None = Field(None, ge=1)
    """Maximum ratio of the longer side to the shorter side. None: no limit."""
    max_pixels: int = Field(images.MAX_PIXELS, ge=1)
    """Maximum number of pixels. An image with more pixels is not decoded, and counts as corrupt."""
    min_contrast: int = Field(1, ge=0, le=255)
    """Minimum range from the darkest to the lightest value of 255, in the channel with the largest range. 0: blank
    images are kept."""
    corrupt: Literal["quarantine", "drop"] = "quarantine"
    """Outcome of a file that is not a BMP, GIF, JPEG, PNG, TIFF or WebP image, or cannot be decoded."""

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.column,)

    def clean(self, row: Row, notes: Notes) -> Row:
        content = named(row, self.column)
        if content is None:
            return row  # the task counts it as empty
        try:
            pixels = images.decode(content, max_pixels=self.max_pixels, formats=images.FORMATS)
        except ValueError as error:
            if self.corrupt == "drop":
                raise Dropped("corrupt") from None
            raise InvalidError("corrupt_image", f"{self.column}: {error}") from error
        shorter, longer = sorted(pixels.shape[:2])
        if shorter < self.min_side:
            raise Dropped("too small")
        if self.max_aspect_ratio is not None and longer > self.max_aspect_ratio * shorter:
            raise Dropped("too long and thin")
        if int((pixels.max((0, 1)).astype(int) - pixels.min((0, 1))).max()) < self.min_contrast:
            raise Dropped("blank")
        return row
