"""Tasks on tables: classification, regression and forecasting."""

from maas_ray.tasks.tables.classification import TabularClassification
from maas_ray.tasks.tables.forecasting import TimeSeriesForecasting
from maas_ray.tasks.tables.regression import TabularRegression

__all__ = ["TabularClassification", "TabularRegression", "TimeSeriesForecasting"]
