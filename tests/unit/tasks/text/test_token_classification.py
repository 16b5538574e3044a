"""Token classification: pieces and their tags, spans as CoNLL has them, answers as Hugging Face's pipeline gives."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maas_ray.errors import DataError, InvalidError, RequestError, UnlearntError
from maas_ray.tasks import NetworkSpec, load_task
from maas_ray.tasks.pretrained import Pretrained
from maas_ray.tasks.text.networks import Bert, RecurrentText
from maas_ray.tasks.text.token_classification import TaggedText, TokenClassification, TokenClassificationSpec, spans_of
from maas_ray.tasks.text.tokenization import FittedTokenizer
from tests.support.encoders import save_bundle, wordpiece_bert
from tests.support.errors import raises

ROWS: list[dict[str, Any]] = [
    {
        "tokens": ["Ada", "Lovelace", "met", "Babbage", "in", "London"],
        "tags": ["B-PER", "I-PER", "O", "B-PER", "O", "B-LOC"],
    },
    {"tokens": ["New", "York", "is", "large", "."], "tags": ["B-LOC", "I-LOC", "O", "O", "O"]},
    {"tokens": ["Nobody", "lives", "there"], "tags": ["O", "O", "O"]},
]
NETWORKS: dict[str, NetworkSpec] = {
    "bilstm": RecurrentText(cell="lstm", embedding_size=16, hidden_size=16, dropout=0.0),
    "gru": RecurrentText(cell="gru", bidirectional=False, embedding_size=16, hidden_size=16, layers=2, dropout=0.0),
    "bert": Bert(hidden_size=16, layers=2, heads=2, dropout=0.0),
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Use one thread: for networks as small as these, more threads only wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def fitted(max_length: int = 32, rows: list[dict[str, Any]] = ROWS) -> TokenClassification:
    spec = TokenClassificationSpec(tokenizer=FittedTokenizer(vocab_size=300), max_length=max_length)
    return spec.fit(rows)  # type: ignore[return-value]


def tokens_of(*words: str) -> np.ndarray:
    return np.array([words], dtype=object)


@pytest.mark.parametrize(
    ("row", "code", "named"),
    [
        ({"tokens": "a b", "tags": ["O"]}, "wrong_type", ("tokens",)),
        ({"tokens": ["a", 5], "tags": ["O", "O"]}, "wrong_type", ("tokens",)),
        ({"tokens": ["a", "b"], "tags": ["O"]}, "length_mismatch", ("2 tokens", "1 tags")),
    ],
)
def test_a_malformed_row_is_refused(row: dict[str, Any], code: str, named: tuple[str, ...]) -> None:
    with raises(InvalidError, code, *named):
        TokenClassificationSpec().parse_row(row)


def test_rows_without_tokens_are_empty_and_unknown_tags_are_named() -> None:
    spec = TokenClassificationSpec()
    assert spec.parse_row({"tokens": [], "tags": []}) is None
    assert spec.parse_row({"tokens": None, "tags": ["O"]}) is None
    assert spec.parse_row(ROWS[0]) == ROWS[0]
    with raises(UnlearntError, "not_in_training", "'B-ORG'"):
        TASK.encode([{"tokens": ["a"], "tags": ["B-ORG"]}])
    with raises(DataError, "too_few_labels", "['O']"):
        spec.fit(ROWS[2:])


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("B-X I-X O B-Y", [(0, 2, "X"), (3, 4, "Y")]),
        ("B-X B-X I-X", [(0, 1, "X"), (1, 3, "X")]),
        ("I-X I-X O I-Y", [(0, 2, "X"), (3, 4, "Y")]),  # as CoNLL's own script: it begins a span
        ("B-X I-Y I-Y", [(0, 1, "X"), (1, 3, "Y")]),
        ("O O", []),
        ("", []),
    ],
)
def test_bio_tags_form_spans(tags: str, expected: list[tuple[int, int, str]]) -> None:
    assert spans_of(tags.split(), prefixed=True) == expected


def test_neighbours_with_the_same_plain_tag_are_one_span() -> None:
    assert spans_of(["X", "X", "Y", "O", "X"], prefixed=False) == [(0, 2, "X"), (2, 3, "Y"), (4, 5, "X")]
    assert not fitted(rows=[{"tokens": ["a", "b"], "tags": ["X", "O"]}]).prefixed
    assert TASK.prefixed


def test_the_first_piece_of_each_token_carries_its_tag() -> None:
    found = TASK.encode([{"tokens": ["Lovelace", "Unheardof", "."], "tags": ["B-PER", "I-PER", "O"]}])
    ids, labels = found["input_ids"][0], found["label"][0]
    pieces = [TASK.encoder.tokenizer.id_to_token(int(one)) for one in ids[: found["length"][0]]]
    tagged = {pieces[place]: TASK.labels[labels[place]] for place in np.flatnonzero(labels != -100)}
    assert list(tagged.values()) == ["B-PER", "I-PER", "O"]
    assert [piece[0] for piece in tagged] == ["Ġ"] * 3  # each begins a word
    assert len(pieces) > 5
    assert (labels[found["length"][0] :] == -100).all()


def test_metrics_are_those_of_whole_spans() -> None:
    truth = [["B-PER", "I-PER", "O", "B-LOC"], ["B-LOC", "O"], ["O", "O"]]
    said = [["B-PER", "O", "O", "B-LOC"], ["B-PER", "O"], ["O", "B-LOC"]]
    found = TASK.metrics({"loss": np.zeros(3), "label": objects(truth), "prediction": objects(said)})
    # One of three true spans is found whole; four were said.
    assert found["precision"] == pytest.approx(1 / 4)
    assert found["recall"] == pytest.approx(1 / 3)
    assert found["f1"] == pytest.approx(2 / 7)
    assert found["accuracy"] == pytest.approx(5 / 8)
    nothing = TASK.metrics({"loss": np.zeros(1), "label": objects([["O"]]), "prediction": objects([["O"]])})
    assert nothing == {"loss": 0.0, "accuracy": 1.0}


def objects(rows: list[list[str]]) -> np.ndarray:
    found = np.empty(len(rows), object)
    found[:] = rows
    return found


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_padding_does_not_change_a_rows_answer(network: NetworkSpec, tmp_path: Path) -> None:
    import torch

    directory = save_bundle(TASK, network, tmp_path / "bundle")
    task = load_task(directory)
    model = task.load_model(directory)
    stored = TASK.encode(ROWS)
    batch = TASK.collate(stored)
    with torch.no_grad():
        together = TASK.outcomes(model, batch)
        for place in range(len(ROWS)):
            alone = TASK.outcomes(
                model, TASK.collate({name: values[place : place + 1] for name, values in stored.items()})
            )
            assert alone["loss"][0] == pytest.approx(together["loss"][place], rel=1e-4)
            assert alone["prediction"][0] == together["prediction"][place]
            assert alone["label"][0] == ROWS[place]["tags"]
        assert together["loss"].mean() == pytest.approx(TASK.loss(model, batch).item(), rel=1e-5)


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_every_network_learns_and_answers_as_it_was_measured(network: NetworkSpec) -> None:
    import torch

    torch.manual_seed(0)
    model = network.build(TASK)
    batch = TASK.collate(TASK.encode(ROWS))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(60):
        loss = TASK.loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        found = TASK.metrics(TASK.outcomes(model.eval(), batch))
    assert found["f1"] == found["accuracy"] == 1
    answer = TASK.predict(model, {"tokens": tokens_of(*ROWS[0]["tokens"])})
    assert answer["tags"][0].tolist() == ROWS[0]["tags"]
    said = TASK.to_answer({name: values[0] for name, values in answer.items()})
    joined = " ".join(ROWS[0]["tokens"])
    assert [(one.entity_group, one.word, joined[one.start : one.end]) for one in said.entities] == [
        ("PER", "Ada Lovelace", "Ada Lovelace"),
        ("PER", "Babbage", "Babbage"),
        ("LOC", "London", "London"),
    ]
    assert said.entities[0].score == pytest.approx(np.mean(said.scores[:2]))
    text = "Nobody;  Ada Lovelace\n"
    inputs = TASK.to_inputs(TaggedText(text=text))
    row = {name: values[0] for name, values in TASK.predict(model, {n: v[None] for n, v in inputs.items()}).items()}
    of_text = TASK.to_answer(row)
    assert of_text.tokens == ["Nobody", ";", "Ada", "Lovelace"]
    places = [(int(start), int(end)) for start, end in zip(row["start"], row["end"], strict=True)]
    assert [text[start:end] for start, end in places] == of_text.tokens


def test_a_pretrained_model_answers_as_hugging_faces_pipeline(tmp_path: Path) -> None:
    from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline

    wordpiece_bert(tmp_path / "pretrained", [" ".join(row["tokens"]) for row in ROWS])
    task = TokenClassificationSpec(tokenizer=str(tmp_path / "pretrained"), max_length=24).fit(ROWS)
    network = Pretrained(path=str(tmp_path / "pretrained"))
    directory = save_bundle(task, network, tmp_path / "bundle")
    loaded = load_task(directory)
    text = "Ada Lovelace, of New York, met nobody in London."
    inputs = loaded.to_inputs(TaggedText(text=text))
    answer = loaded.predict(loaded.load_model(directory), {name: values[None] for name, values in inputs.items()})
    ours = loaded.to_answer({name: values[0] for name, values in answer.items()})
    model = AutoModelForTokenClassification.from_pretrained(directory)
    assert model.config.label2id == {"B-LOC": 0, "B-PER": 1, "I-LOC": 2, "I-PER": 3, "O": 4}
    tokenizer = AutoTokenizer.from_pretrained(directory)
    theirs = pipeline("token-classification", model, tokenizer=tokenizer, aggregation_strategy="first", device="cpu")(
        text
    )
    assert len(theirs) > 1
    assert [(one.entity_group, one.start, one.end) for one in ours.entities] == [
        (one["entity_group"], one["start"], one["end"]) for one in theirs
    ]
    np.testing.assert_allclose([one.score for one in ours.entities], [one["score"] for one in theirs], atol=1e-5)


def test_requests_that_would_leave_tokens_without_a_tag_are_refused() -> None:
    short = fitted(max_length=8)
    with raises(RequestError, "context_length_exceeded", 9, 8):
        short.predict(lambda **_: None, {"tokens": tokens_of(*"abcdefghi")})
    with raises(RequestError, "invalid_value", "''") as caught:
        short.predict(lambda **_: None, {"tokens": tokens_of("a", "")})
    assert caught.value.param == "tokens[1]"
    with raises(RequestError, "invalid_value", "word"):
        short.to_inputs(TaggedText(text=" \n"))
    for fields in ({}, {"tokens": []}, {"text": "a", "tokens": ["a"]}):
        with pytest.raises(ValueError, match="Give either 'text' or 'tokens'"):
            TaggedText(**fields)


TASK = fitted()
