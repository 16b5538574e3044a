"""The way one CSV file is written. Everything that `parse` has to know of a source."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Dialect:
    """How one file is written.

    Args:
        charset: its encoding, by Python's name.
        delimiter: the character between two values.
        quote: the character around values that contain delimiters or line breaks. Empty: no value is quoted.
        names: names of the columns. None: the first row is the header.
        missing: texts that mean a missing value.
        escape: the character before a quote, a delimiter or a line break that has no meaning. Empty: there is none.
        decimal: the sign before the decimals of a number.
    """

    charset: str = "utf-8"
    delimiter: str = ","
    quote: str = '"'
    names: tuple[str, ...] | None = None
    missing: tuple[str, ...] = ()
    escape: str = ""
    decimal: str = "."
