"""Forecasting tasks for short series."""

from typing import Any

from maas_ray.tasks.tables.forecasting import TimeSeriesForecasting, TimeSeriesForecastingSpec


def spec_of(**changes: Any) -> TimeSeriesForecastingSpec:
    fields = {"target": "y", "context_length": 4, "horizon": 2} | changes
    return TimeSeriesForecastingSpec.parse(fields)


def fitted(values: Any, **changes: Any) -> TimeSeriesForecasting:
    spec = spec_of(**changes)
    return spec.fit([spec.parse_row({name: list(column) for name, column in zip(spec.channels, values, strict=True)})])
