"""Text classification: what is fitted, every network, and padding that changes nothing."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maas_ray.errors import CorruptError, DataError, InvalidError, RequestError, SpecError, UnlearntError
from maas_ray.tasks import AnyNetworkSpec, NetworkSpec, load_task
from maas_ray.tasks.pretrained import Pretrained
from maas_ray.tasks.text.classification import TextClassification, TextClassificationSpec
from maas_ray.tasks.text.tokenization import FittedTokenizer, TextEncoder
from tests.support.encoders import save_bundle, wordpiece_bert
from tests.support.errors import raises

TEXTS = {
    "code": ["def add(a, b): return a + b", "for name in sorted(names): print(name)", "import os, sys"],
    "prose": ["The quick brown fox jumps over the lazy dog.", "Grüße aus Köln, 東京 und 🙂!", "It rained all day."],
}
ROWS = [{"text": text, "label": label} for label, texts in TEXTS.items() for text in texts]
NETWORKS: dict[str, dict[str, Any]] = {
    **{
        f"{cell}-{pooling}": {"type": "recurrent-text", "cell": cell, "pooling": pooling, "bidirectional": both}
        | {"embedding_size": 16, "hidden_size": 16, "layers": layers}
        for cell, pooling, both, layers in (
            ("rnn", "mean", False, 1),
            ("gru", "attention", True, 2),
            ("lstm", "last", True, 1),
            ("lstm", "last", False, 2),
        )
    },
    "attention": {"type": "attention-pooling", "embedding_size": 16, "hidden_size": 16, "heads": 2},
    "bert": {"type": "bert", "hidden_size": 16, "layers": 2, "heads": 2},
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Use one thread: for networks as small as these, more threads only wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def fitted(**changes: Any) -> TextClassification:
    spec = TextClassificationSpec(tokenizer=FittedTokenizer(vocab_size=300), max_length=32, **changes)
    return spec.fit(ROWS)  # type: ignore[return-value]


def network(document: dict[str, Any]) -> NetworkSpec:
    from pydantic import TypeAdapter

    return TypeAdapter(AnyNetworkSpec).validate_python(document)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"text": "a", "label": 7}, {"text": "a", "label": "7"}),
        ({"text": " \n", "label": "a"}, None),
        ({"text": None, "label": "a"}, None),
        ({"text": "a", "label": None}, None),
        ({"text": "a", "label": ""}, None),
    ],
)
def test_rows_have_a_text_and_a_label(row: dict[str, Any], expected: Any) -> None:
    assert TextClassificationSpec().parse_row(row) == expected


def test_malformed_rows_and_unknown_labels_are_refused() -> None:
    with raises(InvalidError, "wrong_type", "text", "int"):
        TextClassificationSpec().parse_row({"text": 5, "label": "a"})
    with raises(UnlearntError, "not_in_training", "'other'"):
        fitted().encode([{"text": "a", "label": "other"}])
    with raises(DataError, "too_few_labels", "['code']"):
        TextClassificationSpec().fit(ROWS[:3])


def test_labels_are_of_all_rows_whatever_the_tokenizer_was_fitted_on() -> None:
    task = TextClassificationSpec(tokenizer=FittedTokenizer(vocab_size=300, fit_megabytes=1e-6)).fit(ROWS)
    assert task.labels == ["code", "prose"]  # type: ignore[attr-defined]


@given(texts=st.lists(st.text(), min_size=1, max_size=3))
def test_any_text_is_encoded_into_its_columns(texts: list[str]) -> None:
    task = TASK
    found = task.encode([{"text": text} for text in texts])
    assert found["input_ids"].shape == (len(texts), 32)
    for row, length, text in zip(found["input_ids"], found["length"], texts, strict=True):
        assert 2 <= length <= 32
        assert (row[length:] == task.encoder.pad_id).all()
        if length < 32:
            assert task.encoder.tokenizer.decode(row[:length].tolist(), skip_special_tokens=True) == text
    assert found["label"].tolist() == [-1] * len(texts)


def test_transformers_own_tokenizer_gives_the_same_tokens(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    TASK.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    texts = [row["text"] for row in ROWS]
    ours = TASK.encode([{"text": text} for text in texts])
    given = theirs(texts, padding="max_length", truncation=True, max_length=32, return_tensors="np")
    np.testing.assert_array_equal(given["input_ids"], ours["input_ids"])
    np.testing.assert_array_equal(given["attention_mask"].sum(1), ours["length"])
    assert theirs.pad_token_id == TASK.encoder.pad_id
    assert theirs.model_max_length == 32


def test_a_special_token_that_is_spelled_out_is_text() -> None:
    ids = TASK.encode([{"text": "a [SEP] b"}])["input_ids"][0].tolist()
    assert ids.count(TASK.encoder.tokenizer.token_to_id("[SEP]")) == 1


def test_a_given_tokenizer_is_used_unchanged_except_for_padding(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    TASK.save(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.enable_padding(length=7)
    tokenizer.enable_truncation(5)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    given_one = TextClassificationSpec(tokenizer=str(tmp_path), max_length=32).fit(ROWS)
    assert isinstance(given_one.encoder, TextEncoder)  # type: ignore[attr-defined]
    for name, values in TASK.encode(ROWS).items():
        np.testing.assert_array_equal(given_one.encode(ROWS)[name], values)
    before = TextClassificationSpec(tokenizer=str(tmp_path)).identity()
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert TextClassificationSpec(tokenizer=str(tmp_path)).identity() != before
    assert TextClassificationSpec(tokenizer=str(tmp_path)).fit(ROWS).encoder.pad_id == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("document", NETWORKS.values(), ids=NETWORKS)
def test_padding_does_not_change_a_rows_answer(document: dict[str, Any], tmp_path: Path) -> None:
    directory = save_bundle(TASK, network(document), tmp_path / "bundle")
    task = load_task(directory)
    model = task.load_model(directory)
    texts = np.array(["short", ROWS[0]["text"], ROWS[3]["text"] * 4], dtype=object)
    together = task.predict(model, {"text": texts})
    for place, text in enumerate(texts):
        alone = task.predict(model, {"text": np.array([text], dtype=object)})
        np.testing.assert_allclose(alone["scores"][0], together["scores"][place], atol=1e-5)
        assert alone["label"][0] == together["label"][place]
    assert np.ptp(together["scores"], axis=0).min() > 1e-4  # else this would show nothing
    np.testing.assert_allclose(together["scores"].sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize("document", NETWORKS.values(), ids=NETWORKS)
def test_every_network_learns_and_its_metrics_agree_with_scikit_learn(document: dict[str, Any]) -> None:
    import torch

    torch.manual_seed(0)
    model = network({**document, "dropout": 0.0}).build(TASK)
    batch = TASK.collate(TASK.encode(ROWS))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(40):
        loss = TASK.loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        outcomes = TASK.outcomes(model.eval(), batch)
    found = TASK.metrics(outcomes)
    assert found["accuracy"] == found["f1"] == found["roc_auc"] == 1
    assert found["loss"] < 0.1
    assert outcomes["scores"].shape == (6, 2)
    assert found["loss"] == pytest.approx(TASK.loss(model, batch).item(), rel=1e-4)


def test_a_pretrained_model_gets_a_head_of_the_tasks_labels_and_loads_by_its_auto_class(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    theirs = wordpiece_bert(tmp_path / "pretrained", [row["text"] for row in ROWS])
    spec = TextClassificationSpec(tokenizer=str(tmp_path / "pretrained"), max_length=24)
    task = spec.fit([*ROWS, {"text": "x", "label": "other"}])
    built = Pretrained(path=str(tmp_path / "pretrained")).build(task)
    own = theirs.state_dict()["embeddings.word_embeddings.weight"]
    assert torch.equal(built.state_dict()["bert.embeddings.word_embeddings.weight"], own)
    directory = save_bundle(task, Pretrained(path=str(tmp_path / "pretrained")), tmp_path / "bundle")
    model = AutoModelForSequenceClassification.from_pretrained(directory)
    assert model.config.id2label == {0: "code", 1: "other", 2: "prose"}
    tokenizer = AutoTokenizer.from_pretrained(directory)
    text = ROWS[4]["text"]
    with torch.inference_mode():
        expected = model(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0].numpy()
    loaded = load_task(directory)
    found = loaded.predict(loaded.load_model(directory), {"text": np.array([text], dtype=object)})
    np.testing.assert_allclose(found["scores"][0], expected, atol=1e-5)


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "distilbert": {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 32},
    # Its positions begin behind the padding token's id, so of 34 it reads 33.
    "roberta": {
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 34,
    }
    | {"hidden_size": 16, "pad_token_id": 0},
    "llama": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_pretrained_models_of_other_architectures_classify_and_are_not_changed_by_padding(
    architecture: str, tmp_path: Path
) -> None:
    from transformers import AutoConfig, AutoModel

    TASK.save(tmp_path)
    vocabulary = {"vocab_size": TASK.vocab_size, **ARCHITECTURES[architecture]}
    AutoModel.from_config(AutoConfig.for_model(architecture, **vocabulary)).save_pretrained(tmp_path)
    task = TextClassificationSpec(tokenizer=str(tmp_path), max_length=32).fit(ROWS)
    directory = save_bundle(task, Pretrained(path=str(tmp_path)), tmp_path / "bundle")
    model = task.load_model(directory)
    texts = np.array([row["text"] for row in ROWS], dtype=object)
    together = task.predict(model, {"text": texts})["scores"]
    for text, scores in zip(texts, together, strict=True):
        alone = task.predict(model, {"text": np.array([text], dtype=object)})["scores"][0]
        np.testing.assert_allclose(alone, scores, atol=1e-5)
    assert np.ptp(together, axis=0).min() > 1e-4
    if architecture == "roberta":
        longer = TextClassificationSpec(tokenizer=str(tmp_path), max_length=34).fit(ROWS)
        with raises(DataError, "texts_too_long", 33, 34):
            Pretrained(path=str(tmp_path)).build(longer)


def test_a_pretrained_model_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    wordpiece_bert(tmp_path / "pretrained", ["a b"], positions=16)
    pretrained = Pretrained(path=str(tmp_path / "pretrained"))
    with raises(DataError, "vocabulary_too_large", TASK.vocab_size, pretrained.path):
        pretrained.build(TASK)
    task = TextClassificationSpec(tokenizer=pretrained.path, max_length=32).fit(ROWS)
    with raises(DataError, "texts_too_long", 32, "`max_length: 16`"):
        pretrained.build(task)


def test_a_text_without_tokens_is_refused_and_not_computed(tmp_path: Path) -> None:
    wordpiece_bert(tmp_path, ["a b"])
    from tokenizers import Tokenizer, processors

    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    task = TextClassificationSpec(tokenizer=str(tmp_path)).fit(ROWS)
    with raises(RequestError, "invalid_value", "token") as caught:
        task.predict(lambda **_: None, {"text": np.array([" "], dtype=object)})
    assert caught.value.param == "text"


def test_invalid_networks_and_incomplete_features_are_refused(tmp_path: Path) -> None:
    from maas_ray.tasks.text.networks import Bert

    with raises(SpecError, "not_divisible", "heads (3)", "hidden_size (16)"):
        Bert.parse({"type": "bert", "hidden_size": 16, "heads": 3})
    TASK.save(tmp_path)
    path = tmp_path / "task.json"
    path.write_text(path.read_text().replace('"labels"', '"names"'))
    with raises(CorruptError, "features_incomplete", tmp_path, "labels"):
        load_task(tmp_path)


TASK = fitted()
