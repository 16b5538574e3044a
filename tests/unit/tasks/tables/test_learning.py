"""Networks for tables learn what scikit-learn's models do."""

from typing import Any

import numpy as np
import pytest

from maas_ray.tasks.tables.classification import TabularClassificationSpec
from maas_ray.tasks.tables.networks import Linear, Mlp
from maas_ray.tasks.tables.regression import TabularRegression, TabularRegressionSpec
from tests.support.tables import HOUSES, houses, parsed, request


def trained(task: Any, network: Any, stored: dict[str, np.ndarray]) -> Any:
    """The network at the optimum of its loss."""
    import torch

    torch.manual_seed(0)
    model = network.build(task)
    batch = task.collate(stored)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss: torch.Tensor = task.loss(model, batch)
        loss.backward()
        return loss

    optimizer.step(closure)
    return model.eval()


def diabetes() -> tuple[TabularRegression, list[dict[str, Any]]]:
    from sklearn.datasets import load_diabetes

    data = load_diabetes(scaled=False)
    spec = TabularRegressionSpec(target="y", categorical=("sex",))
    rows = parsed(
        spec,
        [
            dict(zip(data.feature_names, map(float, values), strict=True)) | {"y": float(target)}
            for values, target in zip(data.data, data.target, strict=True)
        ],
    )
    return spec.fit(rows), rows


def test_the_linear_network_is_linear_regression() -> None:
    import torch
    from sklearn.datasets import load_diabetes
    from sklearn.linear_model import LinearRegression
    from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

    task, rows = diabetes()
    stored = task.encode(rows)
    model = trained(task, Linear(), stored)
    data = load_diabetes(scaled=False)
    expected = LinearRegression().fit(data.data, data.target).predict(data.data)
    with torch.inference_mode():
        outcomes = task.outcomes(model, task.collate(stored))
    np.testing.assert_allclose(outcomes["prediction"], expected, rtol=2e-3)
    np.testing.assert_array_equal(outcomes["target"], data.target)
    found = task.metrics(outcomes)
    assert found["loss"] == pytest.approx(mean_squared_error(data.target, expected) / data.target.var(), rel=1e-3)
    assert found["mse"] == pytest.approx(mean_squared_error(data.target, outcomes["prediction"]))
    assert found["mae"] == pytest.approx(mean_absolute_error(data.target, outcomes["prediction"]))
    assert found["r2"] == pytest.approx(r2_score(data.target, outcomes["prediction"]))

    # Requests by column name give the same numbers.
    asked = [request(task, row["features"]) for row in rows[:5]]
    inputs = {name: np.stack([row[name] for row in asked]) for name in asked[0]}
    answer = task.predict(model, inputs)
    np.testing.assert_allclose(answer["prediction"], outcomes["prediction"][:5], rtol=1e-6)
    assert task.to_answer({"prediction": answer["prediction"][0]}).model_dump() == {
        "prediction": answer["prediction"][0]
    }


def test_the_linear_network_is_logistic_regression() -> None:
    import torch
    from sklearn.datasets import load_wine
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score
    from sklearn.preprocessing import StandardScaler

    data = load_wine()
    spec = TabularClassificationSpec(target="grower", features=("alcohol", "hue"))
    rows = [
        {"features": {"alcohol": alcohol, "hue": hue}, "target": str(label)}
        for alcohol, hue, label in zip(data.data[:, 0], data.data[:, 10], data.target, strict=True)
    ]
    task = spec.fit(rows)
    assert task.labels == ["0", "1", "2"]
    stored = task.encode(rows)
    model = trained(task, Linear(), stored)
    with torch.inference_mode():
        outcomes = task.outcomes(model, task.collate(stored))
    scaled = StandardScaler().fit_transform(data.data[:, [0, 10]])
    expected = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000).fit(scaled, data.target).predict_proba(scaled)
    np.testing.assert_allclose(outcomes["scores"], expected, atol=2e-3)
    found = task.metrics(outcomes)
    assert found["f1"] == pytest.approx(f1_score(data.target, outcomes["scores"].argmax(1), average="macro"))
    assert {"loss", "accuracy", "precision", "recall", "roc_auc"} < set(found)
    answer = task.to_answer({"label": "1", "scores": np.float32([0.1, 0.7, 0.2])})
    assert answer.model_dump() == {"label": "1", "scores": {"0": 0.1, "1": 0.7, "2": 0.2}}


def test_a_perceptron_memorises_a_small_table() -> None:
    import torch

    task, rows = diabetes()
    rows = rows[:64]
    network = Mlp(hidden_sizes=(1000, 500, 250, 100))
    widths = [parameter.shape for name, parameter in network.skeleton(task).named_parameters() if "weight" in name]
    assert [tuple(width) for width in widths] == [
        (1000, 9),
        (3, 1000),
        (500, 1000),
        (250, 500),
        (100, 250),
        (1, 100),
    ]
    stored = task.encode(rows)
    torch.manual_seed(0)
    model = network.build(task)
    batch = task.collate(stored)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(40):
        optimizer.zero_grad()
        task.loss(model, batch).backward()
        optimizer.step()
    with torch.inference_mode():
        assert task.metrics(task.outcomes(model.eval(), batch))["r2"] > 0.95


def test_what_training_has_not_seen_adds_nothing() -> None:
    import torch

    task = houses(features=["town"])
    model = trained(task, Linear(), task.encode(parsed(task.spec, HOUSES)))
    with torch.inference_mode():
        assert model(categories=torch.tensor([[0]])) == model.columns.bias
        assert model(categories=torch.tensor([[2]])) != model.columns.bias
