"""Sound for tests: files made of samples, and small models of Transformers with random weights."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from maas_ray.tasks.speech.recognition import AutomaticSpeechRecognition, AutomaticSpeechRecognitionSpec

RATE = 16_000
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def tone(seconds: float, rate: int = RATE, hertz: float = 440.0) -> np.ndarray:
    """A sine of falling loudness, float32."""
    time = np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * hertz * time) * np.exp(-time)).astype(np.float32)


def file_of(samples: np.ndarray, rate: int = RATE, *, format: str = "WAV", subtype: str | None = None) -> bytes:
    """An audio file's bytes; samples are [n] or [n, channels]."""
    data = io.BytesIO()
    soundfile.write(data, samples, rate, format=format, subtype=subtype)
    return data.getvalue()


def spoken(words: str, rate: int = RATE) -> np.ndarray:
    """A tone of its own for each word: what a small network tells apart in seconds."""
    gap = np.zeros(round(0.05 * rate), np.float32)
    parts = [part for word in words.split() for part in (tone(0.3, rate, 200 + 150 * WORDS.index(word)), gap)]
    return np.concatenate([gap, *parts])


def speech_task(language: str | None = "en") -> AutomaticSpeechRecognition:
    """A task fitted on two clips."""
    spec = AutomaticSpeechRecognitionSpec(language=language, max_seconds=5)
    return spec.fit([{"audio": spoken(words), "transcript": words} for words in ("one two", "three")])


def wav2vec2(directory: Path, *, tokenizer: bool = True, masked: bool = True) -> Path:
    """A Wav2Vec2 for CTC, with its processor; without a tokenizer, it is one that was only pretrained.

    Without a mask, it normalises over time, padding included, as facebook/wav2vec2-base-960h does.
    """
    from transformers import Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC
    from transformers import Wav2Vec2Model as Base

    directory.mkdir(parents=True)
    Wav2Vec2FeatureExtractor(return_attention_mask=masked).save_pretrained(directory)
    names = ["<pad>", "<unk>", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ'"]
    config = Wav2Vec2Config(
        vocab_size=len(names),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=(32,) * 7,
        feat_extract_norm="layer" if masked else "group",
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        pad_token_id=0,
        apply_spec_augment=False,
    )
    if tokenizer:
        (directory / "vocab.json").write_text(json.dumps({name: place for place, name in enumerate(names)}))
        Wav2Vec2CTCTokenizer(
            str(directory / "vocab.json"), bos_token=None, eos_token=None, pad_token="<pad>", unk_token="<unk>"
        ).save_pretrained(directory)
    (Wav2Vec2ForCTC if tokenizer else Base)(config).save_pretrained(directory)
    return directory


def whisper(directory: Path) -> Path:
    """A Whisper that hears 2 seconds, with its processor."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import (
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
        WhisperTokenizer,
    )

    fitted = Tokenizer(models.BPE())
    fitted.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet, show_progress=False)
    fitted.train_from_iterator([" ".join(WORDS)], trainer)
    model: dict[str, Any] = json.loads(fitted.to_str())["model"]
    names = ["startoftranscript", "en", "de", "translate", "transcribe", "startoflm", "startofprev", "nospeech"]
    tokenizer = WhisperTokenizer(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        additional_special_tokens=[f"<|{name}|>" for name in [*names, "notimestamps"]],
    )
    WhisperProcessor(WhisperFeatureExtractor(chunk_length=2), tokenizer).save_pretrained(directory)
    end = tokenizer.eos_token_id
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_source_positions=100,
        max_target_positions=64,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=tokenizer.convert_tokens_to_ids("<|startoftranscript|>"),
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    WhisperForConditionalGeneration(config).save_pretrained(directory)
    return directory
