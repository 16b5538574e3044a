"""Small models of text made in a second: a BERT with a WordPiece tokenizer, and bundles of any network."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from maas_ray.tasks import NetworkSpec, Task


def wordpiece_bert(directory: Path, texts: Iterable[str], *, hidden_size: int = 32, positions: int = 64) -> Any:
    """A BERT with random weights and its tokenizer, as `save_pretrained` leaves them; the model."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import BertConfig, BertModel, BertTokenizerFast

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=2000, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    directory.mkdir(parents=True, exist_ok=True)
    BertTokenizerFast(tokenizer_object=tokenizer).save_pretrained(directory)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=hidden_size,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * hidden_size,
        max_position_embeddings=positions,
    )
    model = BertModel(config).eval()
    model.save_pretrained(directory)
    return model


def save_bundle(task: Task, network: NetworkSpec, directory: Path, *, seed: int = 0) -> Path:
    """A bundle's files, untrained; weights are spread wide, so that different texts have different answers."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    module = network.build(task).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    directory.mkdir(parents=True, exist_ok=True)
    task.save(directory)
    network.write_config(module, task, directory)
    state = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    return directory
