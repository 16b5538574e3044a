"""Feature extraction: the loss and the metrics by hand, pooling, and vectors that Transformers gives too."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maas_ray.errors import DataError, InvalidError, RequestError
from maas_ray.tasks import load_task
from maas_ray.tasks.base import outcomes_of
from maas_ray.tasks.pretrained import Pretrained
from maas_ray.tasks.text.embeddings import EmbeddedText, FeatureExtraction, FeatureExtractionSpec
from maas_ray.tasks.text.networks import Bert
from maas_ray.tasks.text.pooling import Pooling
from maas_ray.tasks.text.tokenization import FittedTokenizer
from tests.support.encoders import save_bundle, wordpiece_bert
from tests.support.errors import raises

ROWS = [
    {"anchor": "add two numbers", "positive": "def add(a, b): return a + b"},
    {"anchor": "close the file", "positive": "def close(self): self.file.close()"},
    {"anchor": "the name of a person", "positive": "return person.name"},
    {"anchor": "sum both", "positive": "def add(a, b): return a + b"},
]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Use one thread: for networks as small as these, more threads only wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def fitted(**changes: Any) -> FeatureExtraction:
    fields = {"tokenizer": FittedTokenizer(vocab_size=300), "max_length": 32} | changes
    return FeatureExtractionSpec(**fields).fit(ROWS)  # type: ignore[return-value]


def texts(*values: str) -> dict[str, np.ndarray]:
    return {"text": np.array(values, dtype=object)}


def test_a_row_needs_two_texts() -> None:
    spec = FeatureExtractionSpec()
    assert spec.parse_row(ROWS[0]) == ROWS[0]
    assert spec.parse_row({"anchor": "a", "positive": " "}) is None
    assert spec.parse_row({"anchor": None, "positive": "b"}) is None
    with raises(InvalidError, "wrong_type", "positive", "int"):
        spec.parse_row({"anchor": "a", "positive": 5})


def test_the_loss_is_infonce_and_takes_no_duplicate_for_a_wrong_answer() -> None:
    import torch

    torch.manual_seed(0)
    model = Bert(hidden_size=16, layers=1, heads=2).build(TASK).eval()
    batch = TASK.collate(TASK.encode(ROWS))
    with torch.no_grad():
        found = TASK.outcomes(model, batch)
        loss = TASK.loss(model, batch).item()
    assert loss == pytest.approx(found["loss"].mean(), rel=1e-5)
    cosines = found["query"] @ found["positive"].T / 0.05
    for row, right in enumerate(cosines):
        against = [cosine for other, cosine in enumerate(right) if other == row or {row, other} != {0, 3}]
        assert found["loss"][row] == pytest.approx(np.log(np.exp(against).sum()) - right[row], rel=1e-3, abs=1e-4)
    assert found["positive_id"][0] == found["positive_id"][3]
    assert len(set(found["positive_id"])) == 3


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_the_loss_that_is_measured_does_not_depend_on_batches(size: int) -> None:
    import torch

    torch.manual_seed(0)
    rows = [{"anchor": f"anchor {number} here", "positive": f"its {number} answer"} for number in range(6)]
    model = Bert(hidden_size=16, layers=1, heads=2).build(TASK).eval()
    batches = [TASK.encode(rows[start : start + size]) for start in range(0, len(rows), size)]
    found = TASK.metrics(outcomes_of(TASK, model, batches, torch.device("cpu")))["loss"]
    with torch.no_grad():  # the loss of training, if one batch holds all rows
        assert found == pytest.approx(TASK.loss(model, TASK.collate(TASK.encode(rows))).item(), abs=1e-5)


def test_positives_of_an_equal_anchor_are_no_wrong_answers_when_the_loss_is_measured() -> None:
    rng = np.random.default_rng(0)
    query, positive = rng.normal(size=(4, 8)).astype(np.float32), rng.normal(size=(4, 8)).astype(np.float32)
    query[3] = query[1]
    outcomes = {"loss": np.zeros(4), "query": query, "positive": positive}
    ids = {"anchor_id": np.array([5, 6, 7, 6]), "positive_id": np.arange(4)}
    cosines = (query / np.linalg.norm(query, axis=1, keepdims=True)) @ (
        positive / np.linalg.norm(positive, axis=1, keepdims=True)
    ).T
    expected = []
    for row, scores in enumerate(cosines / TASK.spec.temperature):
        pool = [score for other, score in enumerate(scores) if {row, other} != {1, 3}]
        expected.append(np.log(np.exp(pool).sum()) - scores[row])
    np.testing.assert_allclose(TASK.by_row(outcomes | ids)["loss"], expected, rtol=1e-4)


def test_an_embedding_network_learns_to_find_each_positive() -> None:
    import torch

    torch.manual_seed(0)
    model = Bert(hidden_size=16, layers=1, heads=2, dropout=0.0).build(TASK)
    batch = TASK.collate(TASK.encode(ROWS))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(40):
        loss = TASK.loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        found = TASK.metrics(TASK.outcomes(model.eval(), batch))
    assert found["mrr"] == found["recall_at_1"] == 1
    assert found["loss"] < 0.1


def retrieved(rows: int, pool: int) -> dict[str, np.ndarray]:
    """Outcomes of queries that lie somewhere near the positives they belong with."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(pool, 8)).astype(np.float32)
    place = rng.permutation(np.arange(rows) % pool)
    query = (vectors[place] + rng.normal(size=(rows, 8)) * 0.7).astype(np.float32)
    return {"loss": np.ones(rows), "query": query, "positive": vectors[place], "positive_id": place * 7}


def test_retrieval_metrics_equal_scikit_learns_over_distinct_positives() -> None:
    from sklearn.metrics import label_ranking_average_precision_score, top_k_accuracy_score

    outcomes = retrieved(3000, 40)  # more queries than are ranked at once
    found = TASK.metrics(outcomes)
    ids, first, place = np.unique(outcomes["positive_id"], return_index=True, return_inverse=True)
    vectors = outcomes["positive"][first]
    scores = outcomes["query"] @ (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).T
    # With one right answer to each query, average precision is 1 / rank.
    assert found["mrr"] == pytest.approx(label_ranking_average_precision_score(np.arange(40) == place[:, None], scores))
    for k in (1, 5, 10):
        expected = top_k_accuracy_score(place, scores, k=k, labels=np.arange(len(ids)))
        assert found[f"recall_at_{k}"] == pytest.approx(expected)
    assert found["loss"] == 1
    assert found == TASK.metrics(TASK.by_row(outcomes))


def test_equal_vectors_for_all_texts_rank_every_positive_last() -> None:
    outcomes = retrieved(20, 20) | {"query": np.ones((20, 8)), "positive": np.ones((20, 8))}
    expected = {"loss": 1, "mrr": 1 / 20} | {f"recall_at_{k}": 0 for k in (1, 5, 10)}
    assert TASK.metrics(outcomes) == pytest.approx(expected)


def test_bootstrap_intervals_contain_the_metric_because_the_pool_is_fixed() -> None:
    from maas_ray.evaluation.measure import Measured
    from maas_ray.evaluation.run import _drawn, _intervals, _slices
    from maas_ray.evaluation.spec import EvaluateSpec

    spec = EvaluateSpec(version="m/1", resamples=200)
    outcomes = retrieved(300, 300)
    value, drawn = _drawn(spec, TASK, outcomes, 200, "m/1")
    (part,) = _slices(spec, TASK, Measured(outcomes, {"lang": np.full(300, "en")}), "lang")
    assert value == part.metrics == TASK.metrics(outcomes)
    for intervals in (_intervals(drawn, 0.95), part.intervals):
        for name in ("mrr", "recall_at_1", "recall_at_5", "recall_at_10"):
            low, high = intervals[name]
            assert low < value[name] < high
            assert np.mean([low, high]) == pytest.approx(value[name], abs=0.01)


@pytest.mark.parametrize("pool", [1, 2, 3])
def test_undefined_metrics_of_few_rows_are_absent(pool: int) -> None:
    vectors = np.eye(3, dtype=np.float32)[:pool]
    outcomes = {"loss": np.zeros(pool), "query": vectors, "positive": vectors, "positive_id": np.arange(pool)}
    expected = {"loss": 0.0} | ({"mrr": 1.0, "recall_at_1": 1.0} if pool > 1 else {})
    assert TASK.metrics(outcomes) == expected


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("normalize", [True, False])
def test_vectors_are_those_of_transformers_and_padding_does_not_change_them(
    pooling: str, normalize: bool, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    wordpiece_bert(tmp_path / "pretrained", [text for row in ROWS for text in row.values()])
    directory = tmp_path / "bundle"
    pretrained = str(tmp_path / "pretrained")
    task = fitted(tokenizer=pretrained, pooling=pooling, normalize=normalize)
    save_bundle(task, Pretrained(path=pretrained), directory)
    loaded = load_task(directory)
    asked = ["add", "close the file of a person", ROWS[0]["positive"]]
    found = loaded.predict(loaded.load_model(directory), texts(*asked))
    model, tokenizer = AutoModel.from_pretrained(directory).eval(), AutoTokenizer.from_pretrained(directory)
    for text, vector, tokens in zip(asked, found["embedding"], found["tokens"], strict=True):
        with torch.inference_mode():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        expected = states.mean(0) if pooling == "mean" else states[0]
        expected = expected / expected.norm() if normalize else expected
        np.testing.assert_allclose(vector, expected.numpy(), atol=1e-4)
        assert tokens == len(states)
    assert np.abs(found["embedding"][0] - found["embedding"][1]).max() > 0.01
    again = fitted(tokenizer=str(directory))  # a bundle says how it pools, as sentence-transformers' models do
    assert (again.pooling.pooling, again.pooling.normalize) == (pooling, normalize)
    ids = tokenizer(asked[1])["input_ids"]
    given = loaded.predict(loaded.load_model(directory), {"tokens": np.array([ids])})
    np.testing.assert_allclose(given["embedding"][0], found["embedding"][1], atol=1e-5)


def sentence_transformer(directory: Path, *modes: str, normalize: bool, more: str = "") -> Path:
    wordpiece_bert(directory, ["a b"])
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else []), *([more] if more else [])]
    modules = [
        {"idx": place, "name": str(place), "path": "" if not place else f"{place}_{kind}"}
        | {"type": f"sentence_transformers.models.{kind}"}
        for place, kind in enumerate(kinds)
    ]
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "1_Pooling").mkdir()
    config = {"word_embedding_dimension": 32, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False}
    config |= {f"pooling_mode_{mode}": True for mode in modes}
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(config))
    return directory


def test_pooling_comes_from_sentence_transformers_files_unless_it_is_written(tmp_path: Path) -> None:
    directory = str(sentence_transformer(tmp_path, "cls_token", normalize=False))
    task = fitted(tokenizer=directory)
    assert (task.pooling.pooling, task.pooling.normalize) == ("cls", False)
    task.save(tmp_path)
    assert load_task(tmp_path).pooling == task.pooling  # type: ignore[attr-defined]
    written = FeatureExtractionSpec(tokenizer=directory, pooling="mean", normalize=True)
    assert written.fit(ROWS).pooling.document() == {"pooling": "mean", "normalize": True}  # type: ignore[attr-defined]
    assert written.identity() != FeatureExtractionSpec(tokenizer=directory).identity()
    assert (TASK.pooling.pooling, TASK.pooling.normalize) == ("mean", True)


@pytest.mark.parametrize(
    ("modes", "more", "named"),
    [(["max_tokens"], "", "max"), (["mean_tokens"], "Dense", "Dense")],
)
def test_a_pooling_that_this_task_does_not_support_is_refused(
    modes: list[str], more: str, named: str, tmp_path: Path
) -> None:
    directory = sentence_transformer(tmp_path, *modes, normalize=True, more=more)
    with raises(DataError, "unsupported_pooling", directory, named):
        fitted(tokenizer=str(directory))


def release_6(directory: Path, pooling_mode: str | list[str]) -> Path:
    """A directory as sentence-transformers 6.2.0 writes it."""
    wordpiece_bert(directory, ["a b"])
    kinds = {
        "": "base.modules.transformer.Transformer",
        "1_Pooling": "sentence_transformer.modules.pooling.Pooling",
        "2_Normalize": "base.modules.normalize.Normalize",
    }
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.{kind}"}
        for index, (path, kind) in enumerate(kinds.items())
    ]
    pooling = {"embedding_dimension": 32, "pooling_mode": pooling_mode, "include_prompt": True}
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return directory


@pytest.mark.parametrize("mode", ["cls", "mean", ["cls"]])
def test_pooling_files_of_release_6_are_read(mode: str | list[str], tmp_path: Path) -> None:
    pooling = fitted(tokenizer=str(release_6(tmp_path, mode))).pooling
    assert pooling == Pooling(pooling="mean" if mode == "mean" else "cls", normalize=True)


@pytest.mark.parametrize("mode", ["lasttoken", ["cls", "mean"]])
def test_other_poolings_of_release_6_are_refused(mode: str | list[str], tmp_path: Path) -> None:
    with raises(DataError, "unsupported_pooling", tmp_path):
        fitted(tokenizer=str(release_6(tmp_path, mode)))


def test_without_a_flag_the_mean_is_taken_as_sentence_transformers_does(tmp_path: Path) -> None:
    assert fitted(tokenizer=str(sentence_transformer(tmp_path, normalize=False))).pooling.pooling == "mean"


@pytest.mark.parametrize(
    ("file", "document"),
    [
        ("config_sentence_transformers.json", {"prompts": {"query": "query: "}, "default_prompt_name": "query"}),
        ("sentence_bert_config.json", {"max_seq_length": 128, "do_lower_case": True}),
    ],
)
def test_a_model_that_changes_texts_first_is_refused(file: str, document: dict[str, Any], tmp_path: Path) -> None:
    directory = sentence_transformer(tmp_path, "mean_tokens", normalize=True)
    (directory / file).write_text(json.dumps(document))
    cased = json.loads((directory / "tokenizer.json").read_text())
    if "do_lower_case" in document:
        assert fitted(tokenizer=str(directory)).pooling.pooling == "mean"  # its tokenizer lowers the case too
    cased["normalizer"]["lowercase"] = False
    (directory / "tokenizer.json").write_text(json.dumps(cased))
    with raises(DataError, "unsupported_pooling", file):
        fitted(tokenizer=str(directory))


def test_a_dataset_must_pool_as_its_pretrained_model_does_unless_it_says_otherwise(tmp_path: Path) -> None:
    directory = sentence_transformer(tmp_path / "model", "cls_token", normalize=False)
    wordpiece_bert(tmp_path / "tokenizer", ["a b"])
    network, other = Pretrained(path=str(directory)), str(tmp_path / "tokenizer")
    with raises(DataError, "pooling_differs", directory):
        network.check(fitted(tokenizer=other))
    network.check(fitted(tokenizer=str(directory)))
    network.check(fitted(tokenizer=other, pooling="mean", normalize=True))


def test_requests_that_a_model_cannot_read_are_refused() -> None:
    assert TASK.to_inputs(EmbeddedText(text="a " * 100))["text"].item() == "a " * 100
    with raises(RequestError, "context_length_exceeded", 32):
        TASK.to_inputs(EmbeddedText(text="a " * 100, truncate=False))
    with raises(RequestError, "invalid_value", 999999, TASK.vocab_size):
        TASK.to_inputs(EmbeddedText(tokens=[1, 999999]))
    with raises(RequestError, "context_length_exceeded", 33, 32):
        TASK.to_inputs(EmbeddedText(tokens=[5] * 33))
    with pytest.raises(ValueError, match="Give either 'text' or 'tokens'"):
        EmbeddedText()


TASK = fitted()
