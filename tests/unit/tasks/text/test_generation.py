"""Text of every tokenizer family: whole documents, their first tokens, their bytes, and their isolation."""

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from maas_ray.errors import DataError
from maas_ray.tasks import load_task
from maas_ray.tasks.pretrained import Pretrained
from maas_ray.tasks.task import Task
from maas_ray.tasks.text.generation import TextGeneration, TextGenerationSpec
from maas_ray.tasks.text.networks import Llama
from maas_ray.tasks.text.tokenization import TextEncoder, read_files
from tests.support.errors import raises
from tests.support.tokenizer_families import BOS, FAMILIES, save

DOCUMENTS = [
    "Hello world, how are you?",
    " leading",
    "  two",
    "Grüße 東京 🙂é",
    "a  b   c\n\td ",
    "x",
    unicodedata.normalize("NFD", "schön é"),
    "<unk> </s>",
]


def task_of(family: str, directory: Path, **fields) -> TextGeneration:
    tokenizer = str(save(family, directory))
    return TextGenerationSpec(tokenizer=tokenizer, **({"sequence_length": 16} | fields)).fit([])


@pytest.mark.parametrize("family", FAMILIES)
def test_documents_begin_and_end_as_the_tokenizer_says(family: str, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    task = task_of(family, tmp_path)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    end = task.end_of_text_id
    for document in DOCUMENTS[:-1]:
        [ids] = task.encode([{"text": document}])["input_ids"]
        expected = theirs(document)["input_ids"]
        assert ids.tolist() == expected + ([] if expected[-1:] == [end] else [end])
        assert task.prompt_ids(document) == ids[:-1].tolist()
    first = [BOS[family]] if family in BOS else []
    assert task.prompt_ids("") == first


@pytest.mark.parametrize("family", FAMILIES)
def test_the_bytes_of_a_document_are_those_of_its_text(family: str, tmp_path: Path) -> None:
    task = task_of(family, tmp_path)
    for document in DOCUMENTS:
        encoded = task.encode([{"text": document}])
        counts = encoded["bytes"][0] if "bytes" in encoded else task._byte_lengths[encoded["input_ids"][0]]
        assert counts.sum() == len(document.encode())
        assert len(counts) == len(encoded["input_ids"][0])


def test_tokens_spell_their_bytes() -> None:
    from tokenizers import Tokenizer, decoders, models

    from maas_ray.tasks.text.spelling import Spelling

    tokenizer = Tokenizer(models.WordLevel({"▁Hello": 0, "<0xC3>": 1, "x": 2}, unk_token="x"))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    assert [Spelling(tokenizer).bytes_of(token) for token in range(3)] == [b" Hello", b"\xc3", b"x"]
    byte_level = FAMILIES["gpt_2"]()
    assert Spelling(byte_level).bytes_of(0) == b"<|endoftext|>"
    text = "é 🚀"
    assert b"".join(map(Spelling(byte_level).bytes_of, byte_level.encode(text).ids)) == text.encode()


def test_bits_per_byte_are_per_byte_of_the_text(tmp_path: Path) -> None:
    import torch

    task = task_of("llama_2", tmp_path, sequence_length=24)
    document = "Grüße 東京 🙂é, how are you?"
    encoded = task.encode([{"text": document}])
    row = {name: values[0][None, : task.spec.sequence_length] for name, values in encoded.items()}
    network = Llama(hidden_size=16, layers=1, heads=2).build(task)
    with torch.no_grad():
        outcomes = task.outcomes(network, task.collate(row))
    spelled = task.tokenizer.decode(row["input_ids"][0, 1:].tolist()).rstrip("\ufffd").encode()
    assert len(spelled) <= outcomes["bytes"][0] <= len(spelled) + 3  # the row may end within a character
    bits = outcomes["loss"][0] / np.log(2) / outcomes["bytes"][0]
    assert task.metrics(outcomes)["bits_per_byte"] == pytest.approx(bits)


@pytest.mark.parametrize("family", ["llama_2", "qwen"])
def test_a_tokenizer_neither_cuts_nor_pads_documents(family: str, tmp_path: Path) -> None:
    save(family, tmp_path)
    tokenizer = FAMILIES[family]()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    task = TextGenerationSpec(tokenizer=str(tmp_path)).fit([])
    encoded = task.encode([{"text": DOCUMENTS[0]}])
    assert task.tokenizer.decode(encoded["input_ids"][0].tolist()) == DOCUMENTS[0]
    assert encoded["bytes"][0].sum() == len(DOCUMENTS[0])


# --- documents that share a sequence


def packed(task: Task, documents: list[str], length: int) -> dict[str, np.ndarray]:
    """One stored row that begins with these documents."""
    encoded = task.encode([{"text": document} for document in documents])
    row = {name: np.concatenate(values)[:length] for name, values in encoded.items()}
    assert len(row["input_ids"]) == length
    return {name: values[None] for name, values in row.items()}


def model_of(name: str, task: TextGeneration, directory: Path):
    """A network whose random weights are large enough to show what it attends to."""
    import torch
    from transformers import AutoModelForCausalLM, GPT2Config, MistralConfig

    sizes = {"vocab_size": task.vocab_size}
    config = {
        "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=64, **sizes),
        "mistral": MistralConfig(
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            sliding_window=8,
            **sizes,
        ),
    }.get(name)
    torch.manual_seed(0)
    if config is None:
        network = Llama(hidden_size=32, layers=2, heads=2).build(task)
    else:
        AutoModelForCausalLM.from_config(config).save_pretrained(directory / "model")
        network = Pretrained(path=str(directory / "model")).build(task)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(5)
    return network.eval()


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral"])
@pytest.mark.parametrize("family", ["gpt_2", "llama_2"])
def test_an_isolated_document_does_not_see_those_before_it(name: str, family: str, tmp_path: Path) -> None:
    import torch

    task = task_of(family, tmp_path, sequence_length=64)
    joined = TextGeneration(task.spec.model_copy(update={"documents": "joined"}), task._files, task.layout)
    network = model_of(name, task, tmp_path)
    second = "Hello world, how are you today? The town is far away. " * 5
    first, other = "def add(a, b)", "Grüße au"
    lengths = [len(task.encode([{"text": text}])["input_ids"][0]) for text in (first, other)]
    start, length = lengths[0], 56
    alone = torch.tensor([task.prompt_ids(second)[: length - start]])

    def logits(of: TextGeneration, text: str, at: int) -> "torch.Tensor":
        batch = of.collate(packed(of, [text, second], at + alone.shape[1]))
        given = {key: batch[key] for key in ("input_ids", "position_ids") if key in batch}
        with torch.no_grad():
            return network(**given, use_cache=False).logits[0, at:]

    with torch.no_grad():
        expected = network(input_ids=alone, use_cache=False).logits[0]  # as in serving
    isolated = [logits(task, text, at) for text, at in zip((first, other), lengths, strict=True)]
    for found in isolated:
        assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    assert (logits(joined, first, start) - expected).abs().max() > 1e-2 * expected.abs().max()


def test_a_first_token_that_is_always_the_same_is_not_learnt(tmp_path: Path) -> None:
    import torch
    import torch.nn.functional as F

    task = task_of("llama_2", tmp_path, sequence_length=16)
    rows = [packed(task, ["Hello", "how are you", "x" * 16], 16), packed(task, ["y" * 32], 16)]
    row = {name: np.concatenate([one[name] for one in rows]) for name in rows[0]}
    batch = task.collate(row)
    ids = row["input_ids"].astype(np.int64)
    counted = ids[:, 1:] != BOS["llama_2"]
    assert counted.sum(1).tolist() != [15, 15]
    assert task.weights(row).tolist() == counted.sum(1).tolist()
    network = Llama(hidden_size=16, layers=1, heads=2).build(task).eval()
    with torch.no_grad():
        logits = network(batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits[:, :-1]
        each = F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(ids[:, 1:].flatten()), reduction="none")
        expected = each.view(2, -1).double().numpy()
        outcomes, loss = task.outcomes(network, batch), task.loss(network, batch)
    assert outcomes["loss"] == pytest.approx((expected * counted).sum(1), rel=1e-5)
    assert outcomes["tokens"].tolist() == counted.sum(1).tolist() == outcomes["position_tokens"].sum(1).tolist()
    assert outcomes["position_loss"].sum(1) == pytest.approx(outcomes["loss"])
    # Training, validation and evaluation report one number.
    assert float(loss) == pytest.approx((expected * counted).sum() / counted.sum(), rel=1e-5)
    assert task.metrics(outcomes)["loss"] == pytest.approx(float(loss), rel=1e-5)


def test_datasets_that_do_not_record_their_layout_keep_it(tmp_path: Path) -> None:
    task = task_of("llama_2", tmp_path / "tokenizer")
    (tmp_path / "dataset").mkdir()
    task.save(tmp_path / "dataset")
    path = tmp_path / "dataset" / "task.json"
    document = json.loads(path.read_text())
    assert document["features"] == {"prefix": [1], "begins": False, "bytes": True}
    document["features"] = {}
    del document["task"]["documents"]
    path.write_text(json.dumps(document))
    old = load_task(tmp_path / "dataset")
    assert isinstance(old, TextGeneration)
    assert old.prompt_ids("x") == task.prompt_ids("x")[1:]
    assert list(old.stored) == ["input_ids"]
    assert list(old.collate({"input_ids": np.zeros((2, 16), np.uint16)})) == ["input_ids"]
    assert old.spec.documents == "joined"
    (tmp_path / "bundle").mkdir()
    old.save(tmp_path / "bundle")
    assert json.loads((tmp_path / "bundle" / "task.json").read_text()) == document  # an evaluation compares them
    assert old._byte_lengths[old.prompt_ids("Grüße")].sum() == len(" Grüße".encode())


@pytest.mark.parametrize("architecture", ["bloom", "mamba"])
def test_a_model_that_cannot_isolate_documents_is_refused(architecture: str, tmp_path: Path) -> None:
    from transformers import AutoConfig

    task = task_of("gpt_2", tmp_path)
    config = AutoConfig.for_model(architecture, vocab_size=1000)
    with raises(DataError, "documents_not_isolated", architecture, "documents: joined"):
        task.check_pretrained(config, tmp_path)
    joined = task.spec.model_copy(update={"documents": "joined"})
    TextGeneration(joined, task._files, task.layout).check_pretrained(config, tmp_path)


# --- special tokens


@pytest.mark.parametrize("config", [None, {}, {"model_max_length": 1024}])
def test_gpt_2_s_own_files_have_an_end_token(config: dict | None, tmp_path: Path) -> None:
    """As in its repository: `config.json` names the architecture, no file names the token."""
    save("gpt_2", tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    task = TextGenerationSpec(tokenizer=str(tmp_path), sequence_length=8).fit([])
    assert task.end_of_text == "<|endoftext|>"
    (tmp_path / "saved").mkdir()
    task.save(tmp_path / "saved")  # without config.json
    again = load_task(tmp_path / "saved")
    assert isinstance(again, TextGeneration)
    assert again.end_of_text == "<|endoftext|>"


def test_gpt_2_s_older_files_are_a_tokenizer(tmp_path: Path) -> None:
    tokenizer = FAMILIES["gpt_2"]()
    model = json.loads(tokenizer.to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, model["merges"])))
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    task = TextGenerationSpec(tokenizer=str(tmp_path), sequence_length=8).fit([])
    for document in DOCUMENTS:
        expected = tokenizer.encode(document).ids
        assert task.encode([{"text": document}])["input_ids"][0].tolist() == [*expected, task.end_of_text_id]
    (tmp_path / "vocab.json").unlink()
    with raises(DataError, "file_missing", tmp_path, "tokenizer.json"):
        TextGenerationSpec(tokenizer=str(tmp_path)).identity()


@pytest.mark.parametrize("token", ["</s>", {"content": "</s>", "lstrip": False, "__type": "AddedToken"}])
def test_special_tokens_may_be_in_either_file(token: str | dict, tmp_path: Path) -> None:
    save("llama_2", tmp_path, eos_token="<unk>")
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": token}))
    spec = TextGenerationSpec(tokenizer=str(tmp_path), sequence_length=8)
    assert spec.fit([]).end_of_text == "</s>"  # as Transformers reads older files
    save("llama_2", tmp_path, eos_token="<unk>", added_tokens_decoder={})
    assert spec.fit([]).end_of_text == "<unk>"  # newer ones do not need the second file


@pytest.mark.parametrize("where", ["tokenizer_config.json", "added_tokens.json", "vocabulary"])
def test_added_tokens_may_be_in_another_file(where: str, tmp_path: Path) -> None:
    """As in fine-tuned models whose `tokenizer.json` is that of the base; the ids are those of Transformers."""
    from transformers import AutoTokenizer

    template = "{% for m in messages %}<turn>{{ m.content }}{{ eos_token }}{% endfor %}"
    save("gpt_2", tmp_path, chat_template=template, tokenizer_class="PreTrainedTokenizerFast")
    size = FAMILIES["gpt_2"]().get_vocab_size()
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    if where == "vocabulary":  # `eos_token` is a plain entry of it
        tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
        tokenizer["added_tokens"] = []
        (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
        config["chat_template"] = template.replace("<turn>", "")
    elif where == "added_tokens.json":
        (tmp_path / where).write_text(json.dumps({"<turn>": size}))
    else:
        config["added_tokens_decoder"] = {str(size): {"content": "<turn>", "special": True}}
    path.write_text(json.dumps(config))
    task = TextGenerationSpec(tokenizer=str(tmp_path), sequence_length=8).fit([])
    chat = [{"role": "user", "content": "Hello"}]
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert task.chat_ids(chat, []) == theirs.apply_chat_template(chat, return_dict=False)
    assert task.end_of_text_id in task.chat_ids(chat, [])
    (tmp_path / "saved").mkdir()
    task.save(tmp_path / "saved")
    again = load_task(tmp_path / "saved")
    assert isinstance(again, TextGeneration)
    assert again.chat_ids(chat, []) == task.chat_ids(chat, [])


def test_added_tokens_with_the_ids_of_others_are_refused(tmp_path: Path) -> None:
    save("gpt_2", tmp_path, added_tokens_decoder={"900": {"content": "<turn>", "special": True}})
    with raises(DataError, "token_ids_differ", "'<turn>'", 900, FAMILIES["gpt_2"]().get_vocab_size()):
        TextGenerationSpec(tokenizer=str(tmp_path), sequence_length=8).fit([])


def test_roberta_s_own_files_have_a_padding_token(tmp_path: Path) -> None:
    """Its `<pad>` is token 1, by which its networks count positions."""
    from tokenizers import Tokenizer, models

    from maas_ray.tasks.text.classification import TextClassificationSpec

    vocabulary = {name: index for index, name in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", "a"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.add_special_tokens(list(vocabulary)[:-1])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 512}')
    (tmp_path / "config.json").write_text('{"model_type": "roberta"}')
    task = TextClassificationSpec(tokenizer=str(tmp_path)).fit([{"text": "a", "label": c} for c in "xy"])
    assert task.config_fields()["pad_token_id"] == 1
    assert TextEncoder({**read_files(tmp_path), "special_tokens_map.json": b'{"pad_token": "a"}'}, 8).pad_id == 5
