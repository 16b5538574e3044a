"""Prompts to ids, ids to text: nothing broken, nothing leaked."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maas_ray.errors import PromptTooLongError, RequestError
from maas_ray.serve.text import ChatTemplate, Detokenizer, StopStrings, TextCodec, TextRequest
from tests.bundles import TEXT, text_task

TASK = text_task()
CHAT_ML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def ask(prompt, **changes) -> TextRequest:
    fields = {"max_tokens": 4, "temperature": 1.0, "top_p": 1.0, "stop": (), "seed": 1}
    return TextRequest(prompt=prompt, **(fields | changes))


@pytest.fixture
def codec(tmp_path: Path) -> TextCodec:
    TASK.save(tmp_path)
    return TextCodec(TASK, tmp_path, context=64, end_ids=())


@given(st.text(max_size=40), st.lists(st.integers(1, 4), min_size=1, max_size=60))
@settings(max_examples=200, deadline=None)
def test_text_is_whole_however_its_ids_arrive(text: str, sizes: list[int]) -> None:
    ids = TASK.tokenizer.encode(text).ids
    detokenizer, out, at = Detokenizer(TASK.tokenizer), "", 0
    for size in [*sizes, len(ids)]:
        piece = detokenizer.push(ids[at : at + size])
        assert not piece.endswith("\ufffd") or "\ufffd" in text
        out, at = out + piece, at + size
    assert out + detokenizer.flush() == text


def test_a_character_is_held_back_until_it_is_whole() -> None:
    ids = TASK.tokenizer.encode("é🚀").ids
    assert len(ids) > 2
    detokenizer = Detokenizer(TASK.tokenizer)
    pieces = [detokenizer.push([one]) for one in ids]
    assert [piece for piece in pieces if piece] == ["é", "🚀"]


def test_bytes_that_never_become_a_character_come_at_the_end() -> None:
    ids = TASK.tokenizer.encode("a🚀").ids[:-1]
    detokenizer = Detokenizer(TASK.tokenizer)
    assert detokenizer.push(ids) == "a"
    assert detokenizer.flush() == "\ufffd"


@given(
    st.text("abc", max_size=40),
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=4),
    st.lists(st.integers(1, 5), min_size=1),
)
def test_a_stop_string_never_leaks(text: str, stops: list[str], sizes: list[int]) -> None:
    strings, out, at, stopped = StopStrings(tuple(stops)), "", 0, False
    for size in [*sizes, len(text)]:
        piece, stopped = strings.push(text[at : at + size])
        out, at = out + piece, at + size
        if stopped:
            break
    out += "" if stopped else strings.flush()
    # A stop string that is met first in time ends the answer, so what came out never holds a whole one.
    places = [text.find(stop) for stop in stops if stop in text]
    assert stopped == bool(places)
    assert text.startswith(out)
    assert not any(stop in out for stop in stops)
    assert out == text or stopped


def test_prompts_are_tokenised_as_the_training_text_was(codec: TextCodec) -> None:
    for text in TEXT:
        prepared = codec.prepare(ask(text, max_tokens=1))
        assert prepared.prompt_ids == TASK.encode([{"text": text}])["input_ids"][0][:-1].tolist()
    special = codec.prepare(ask("<|endoftext|>")).prompt_ids
    assert len(special) > 1  # text is never taken for a special token
    assert TASK.end_of_text_id not in special


def test_an_empty_prompt_begins_a_document(codec: TextCodec) -> None:
    assert codec.prepare(ask("")).prompt_ids == [TASK.end_of_text_id]
    assert TASK.end_of_text_id in codec.prepare(ask("")).end_ids


def test_context_is_kept(codec: TextCodec) -> None:
    prompt = TASK.tokenizer.encode("x" * 10).ids
    assert codec.prepare(ask(prompt, max_tokens=None)).max_tokens == 64 - len(prompt)
    assert codec.prepare(ask(prompt, max_tokens=64 - len(prompt))).max_tokens == 64 - len(prompt)
    with pytest.raises(PromptTooLongError, match="64 tokens") as caught:
        codec.prepare(ask(prompt, max_tokens=65 - len(prompt)))
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "prompt")
    with pytest.raises(PromptTooLongError) as caught:
        codec.prepare(ask([{"role": "user", "content": "x" * 200}], max_tokens=None))
    assert caught.value.param == "messages"


@pytest.mark.parametrize("ids", [[1, 99999], [-1]])
def test_ids_outside_the_vocabulary_are_refused(codec: TextCodec, ids: list[int]) -> None:
    with pytest.raises(RequestError, match="0 to 319") as caught:
        codec.prepare(ask(ids))
    assert caught.value.status == 400


def test_seeds_differ_unless_given(codec: TextCodec) -> None:
    assert codec.prepare(ask("a", seed=7)).seed == 7
    assert codec.prepare(ask("a", seed=None)).seed != codec.prepare(ask("a", seed=None)).seed


def test_a_template_s_own_special_tokens_become_tokens(tmp_path: Path) -> None:
    from tokenizers import AddedToken, Tokenizer

    TASK.save(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(f"<|im_{end}|>", special=True) for end in ("start", "end")])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "chat_template.jinja").write_text(CHAT_ML)
    task = type(TASK).load_state(TASK.spec, {}, tmp_path)
    codec = TextCodec(task, tmp_path, context=64, end_ids=())
    ids = codec.prepare(ask([{"role": "user", "content": "hi"}])).prompt_ids
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(tmp_path)
    expected = reference.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, return_dict=False
    )
    assert ids == expected
    assert tokenizer.token_to_id("<|im_start|>") in ids


def test_a_template_may_refuse_messages_but_not_reach_out(tmp_path: Path) -> None:
    refusing = ChatTemplate("{{ raise_exception('roles must alternate') }}", {})
    with pytest.raises(RequestError, match="roles must alternate"):
        refusing.render([{"role": "user", "content": "x"}])
    escaping = ChatTemplate("{{ ''.__class__.__mro__[1].__subclasses__() }}", {})
    with pytest.raises(RequestError, match="unsafe"):
        escaping.render([{"role": "user", "content": "x"}])


def test_without_a_template_a_chat_is_refused(tmp_path: Path) -> None:
    TASK.save(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    codec = TextCodec(TASK, tmp_path, context=64, end_ids=())
    with pytest.raises(RequestError, match="/v1/completions"):
        codec.prepare(ask([{"role": "user", "content": "x"}]))
