"""A small table of houses, tasks that read it, and requests to them."""

import asyncio
import json
from typing import Any

from maas_ray.serve.api.predict import PredictBody, parse_rows
from maas_ray.tasks.rows import REST
from maas_ray.tasks.tables.regression import TabularRegression, TabularRegressionSpec
from maas_ray.tasks.tables.spec import TableSpec

HOUSES = [
    {"rooms": "3", "mean area": "70", "town": "Köln", "lift": "true", "price": "100"},
    {"rooms": "4", "mean area": None, "town": "Bonn", "lift": "false", "price": "200"},
    {"rooms": "5", "mean area": "110", "town": "Köln", "lift": None, "price": "300"},
    {"rooms": None, "mean area": "90", "town": None, "lift": "true", "price": "240"},
    {"rooms": "3", "mean area": "74", "town": "Aachen", "lift": "true", "price": "110"},
]


def parsed(spec: TableSpec, table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    raws = [{spec.target: row[spec.target]} | _columns(spec, row) for row in table]
    return [row for raw in raws if (row := spec.parse_row(raw)) is not None]


def _columns(spec: TableSpec, row: dict[str, Any]) -> dict[str, Any]:
    """As reading gives them."""
    if spec.features is not None:
        return {name: row[name] for name in spec.features}
    return {REST: {name: value for name, value in row.items() if name != spec.target}}


def houses(**changes: Any) -> TabularRegression:
    spec = TabularRegressionSpec.parse({"type": "tabular-regression", "target": "price"} | changes)
    return spec.fit(parsed(spec, HOUSES))


def request(task: Any, row: Any) -> dict[str, Any]:
    body = PredictBody(json.dumps(row).encode(), "application/json")
    [found] = asyncio.run(parse_rows(body, task).inputs(task))
    return found
