"""The parts that cleaning steps are made of: the step itself, steps over text, statistics, and the user's own code."""

from maas_ray.data.cleaning.base.step import CleaningStep, Dropped, Notes, changed, named, names_in, value

__all__ = ["CleaningStep", "Dropped", "Notes", "changed", "named", "names_in", "value"]
