"""Processors of Transformers' speech models, from a local directory, and calls of these models.

There are two kinds of models: with CTC (Wav2Vec2, HuBERT, WavLM), which take samples; and with a decoder (Whisper),
which take the spectrogram of a window of fixed length.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from maas_ray.errors import DataError, InvalidError
from maas_ray.tasks.network import Forward
from maas_ray.tasks.pretrained import as_weights, check_built_whole, model_directory, module_of
from maas_ray.tasks.speech.features import SpeechState, SpeechTotals

if TYPE_CHECKING:
    import torch

_PAD, _UNKNOWN, _SPACE = "<pad>", "<unk>", "|"
_TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "vocab.json")
_START_TOKENS = 4  # maximum prefix of Whisper's output: start, language, task, no timestamps
_EXTRACTOR_FILES = ("preprocessor_config.json", "processor_config.json")


def identity_of(directory: str) -> dict[str, str]:
    """Digests of the files that define a processor.

    Raises:
        DataError: the directory does not hold a model.
    """
    files = sorted(path for path in model_directory(directory).glob("*") if path.suffix in (".json", ".txt", ".model"))
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if not path.name.endswith(".index.json")
    }


class Processor:
    """A fitted processor.

    Args:
        directory: holds its files, as `save` writes them.
        state: sizes and vocabulary of the training split.
        language: language to tell a multilingual model.

    Raises:
        DataError: Transformers cannot load it.
    """

    def __init__(self, directory: Path, state: SpeechState, language: str | None) -> None:
        self._extractor, self._tokenizer = _extractor(directory), _tokenizer(directory, language)
        self._state, self._language = state, language
        self.rate = int(self._extractor.sampling_rate)
        self.fixed = state.start_id is not None
        self.auto_model = "AutoModelForSpeechSeq2Seq" if self.fixed else "AutoModelForCTC"
        if self._tokenizer.pad_token_id is None and not self.fixed:
            raise DataError(
                "processor: the tokenizer must define a pad_token, which CTC uses as the blank.",
                code="invalid_processor",
            )
        self.blank = int(self._tokenizer.pad_token_id or 0)
        self.window_s = self._extractor.n_samples / self.rate if self.fixed else float("inf")
        self.shape = (
            (int(self._extractor.feature_size), int(self._extractor.nb_max_frames)) if self.fixed else (state.samples,)
        )

    @classmethod
    def totals(cls, directory: Path, rate: int, language: str | None) -> SpeechTotals:
        """The totals of no rows, for the processor of a model's directory.

        Raises:
            DataError: it is not for speech, or for clips of another rate.
        """
        config, extractor = _config(directory), _extractor(directory)
        if extractor.sampling_rate != rate:
            raise DataError(
                f"processor: {directory} takes {extractor.sampling_rate} Hz, not {rate}; set `sample_rate` to that.",
                code="wrong_sample_rate",
            )
        state = _state_of(config, extractor, directory)
        tokenizer = _given_tokenizer(directory, language)
        if not tokenizer and state.start_id is not None:
            raise DataError(
                f"processor: {directory} does not hold a tokenizer; save the model's own there.", code="file_missing"
            )
        return SpeechTotals(partial(_label_count, tokenizer) if tokenizer else None)

    @classmethod
    def fit(
        cls, directory: Path, totals: SpeechTotals, max_samples: int, language: str | None
    ) -> tuple["Processor", SpeechState]:
        """Take over the processor of a model's directory, and fit a vocabulary if it lacks one."""
        config, extractor = _config(directory), _extractor(directory)
        state = _state_of(config, extractor, directory)
        tokenizer = _given_tokenizer(directory, language)
        limit = extractor.n_samples if state.start_id is not None else max_samples
        samples, labels = totals.stored(min(limit, max_samples))
        labels = min(labels, getattr(config, "max_target_positions", None) or labels)
        characters = [] if tokenizer else sorted(totals.characters)
        state = state.model_copy(update={"samples": samples, "labels": labels, "characters": characters})
        with tempfile.TemporaryDirectory() as name:
            scratch = Path(name)
            extractor.save_pretrained(scratch)
            (tokenizer or _fitted_tokenizer(characters, scratch)).save_pretrained(scratch)
            return cls(scratch, state, language), state

    # --- a Frontend

    def features(self, samples: np.ndarray) -> np.ndarray:
        output = self._extractor(samples, sampling_rate=self.rate, return_tensors="np")
        return cast(np.ndarray, output[self._extractor.model_input_names[0]][0].astype(np.float16))

    def steps(self, samples: int) -> int | None:
        if self.fixed:
            return None
        for kernel, stride in self._state.convolutions:
            samples = (samples - kernel) // stride + 1
        return samples

    def labels(self, text: str) -> list[int]:
        labels: list[int] = self._tokenizer(text).input_ids
        if self.fixed:
            # The model shifts labels and adds the start label itself.
            return labels[1:] if labels[:1] == [self._state.start_id] else labels
        if self._tokenizer.unk_token_id in labels:
            known = set(self._tokenizer.get_vocab())
            unknown = sorted({character for character in text.replace(" ", _SPACE) if character not in known}) or [text]
            raise InvalidError(
                "unknown_character",
                f"the transcript contains {unknown[0]!r}, which is not in the processor's vocabulary; check `case`",
            )
        return labels

    def text(self, labels: Sequence[int]) -> str:
        options = {"skip_special_tokens": True} if self.fixed else {"group_tokens": False}
        return " ".join(self._tokenizer.decode(list(labels), **options).split())

    def decode(self, steps: Sequence[int]) -> str:
        return " ".join(self._tokenizer.decode(list(steps), skip_special_tokens=self.fixed).split())

    def save(self, directory: Path) -> None:
        self._extractor.save_pretrained(directory)
        self._tokenizer.save_pretrained(directory)

    # --- its models

    @property
    def masked(self) -> bool:
        """True if models are told where a clip ends. Others count the padding of shorter clips in a batch."""
        return bool(self.fixed or self._extractor.return_attention_mask)

    @property
    def config_fields(self) -> dict[str, Any]:
        """Fields to set in a model's configuration: its labels, if they were fitted here."""
        if self.fixed:
            return {}
        fitted = {"vocab_size": len(self._tokenizer)} if self._state.characters else {}
        return {"pad_token_id": self.blank, **fitted}

    def check(self, config: Any, directory: Path) -> None:
        """Return if a model fits the processor.

        Raises:
            DataError: it does not.
        """
        check_built_whole(config)
        if _form(config) != (self._state.start_id, self._state.convolutions):
            raise DataError(
                f"network.path: the model in {directory} is not of the kind that the dataset was prepared for. "
                f"Prepare it with `processor: {directory}`.",
                code="wrong_model_kind",
            )
        labels = set(self._tokenizer.get_vocab().values()) - set(self._tokenizer.added_tokens_decoder)
        if not self._state.characters and max(labels, default=0) >= config.vocab_size:
            raise DataError(
                f"network.path: the model in {directory} has {config.vocab_size} labels, but the dataset's processor "
                f"has {max(labels) + 1}. Prepare it with `processor: {directory}`.",
                code="vocabulary_too_large",
            )

    def scores(self, model: Forward, batch: Mapping[str, "torch.Tensor"]) -> tuple["torch.Tensor", "torch.Tensor"]:
        import torch

        module, lengths = module_of(model), batch["lengths"]
        samples = as_weights(model, batch["features"])
        steps = module._get_feat_extract_output_lengths(lengths)

        def logits(samples: "torch.Tensor", lengths: "torch.Tensor") -> "torch.Tensor":
            positions = torch.arange(samples.shape[1], device=lengths.device)
            mask = {"attention_mask": (positions < lengths[:, None]).long()} if self.masked else {}
            scores: torch.Tensor = model(input_values=samples, **mask).logits.float()
            return scores

        sees_padding = not self.masked or getattr(module.config, "feat_extract_norm", "") == "group"
        if module.training or not sees_padding:
            return logits(samples, lengths), steps
        # Group norm over time counts padding, so a clip is measured as it is served: beside clips of its own length.
        parts = [
            (rows := lengths == length, logits(samples[rows, :length], lengths[rows]))
            for length in sorted(set(lengths.tolist()))
        ]
        whole = parts[0][1].new_zeros(len(lengths), int(steps.max()), parts[0][1].shape[2])
        for rows, part in parts:
            whole[rows, : part.shape[1]] = part
        return whole, steps

    def decoder_scores(self, model: Forward, batch: Mapping[str, "torch.Tensor"]) -> "torch.Tensor":
        """Scores of each label given those before it, fp32 [B, labels, vocabulary]."""
        features = as_weights(model, batch["features"])
        logits: torch.Tensor = model(input_features=features, labels=batch["labels"], use_cache=False).logits
        return logits.float()

    def generate(self, model: Forward, features: "torch.Tensor", max_labels: int) -> list[list[int]]:
        """The labels that a model with a decoder writes, by greedy decoding."""
        module = module_of(model)
        weights = next(module.parameters())
        options = {}
        if self._language and getattr(module.generation_config, "lang_to_id", None):
            options = {"language": self._language, "task": "transcribe"}
        # Transcripts count their start tokens, generation does not.
        positions = getattr(module.config, "max_target_positions", None)
        room = min(max_labels, positions - _START_TOKENS) if positions else max_labels
        generated = module.generate(
            features.to(weights.device, weights.dtype), max_new_tokens=room, do_sample=False, num_beams=1, **options
        )
        rows: list[list[int]] = generated.tolist()
        return rows


def _form(config: Any) -> tuple[int | None, list[tuple[int, int]]] | None:
    """The decoder's start label, and the (kernel, stride) of convolutions before CTC. None: neither kind of model."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CTC_MAPPING_NAMES,
        MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
    )

    if config.model_type in MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES:
        return config.decoder_start_token_id, []
    convolutions = list(zip(getattr(config, "conv_kernel", ()), getattr(config, "conv_stride", ()), strict=False))
    adapted = getattr(config, "add_adapter", False)  # an adapter would shorten the sequence further
    ctc = config.model_type in MODEL_FOR_CTC_MAPPING_NAMES and convolutions and not adapted
    return (None, convolutions) if ctc else None


def _state_of(config: Any, extractor: Any, directory: Path) -> SpeechState:
    """The state that the kind of model decides; sizes are not known yet."""
    form, takes = _form(config), extractor.model_input_names[0]
    fits = form and (takes == "input_values" if form[0] is None else hasattr(extractor, "n_samples"))
    if not form or not fits:
        raise DataError(
            f"processor: {directory}: a model of type {config.model_type!r} that takes {takes} is not supported; use a "
            "model like Wav2Vec2, HuBERT or WavLM (CTC over samples, without adapter), or like Whisper.",
            code="unsupported_model",
        )
    return SpeechState(samples=0, labels=0, start_id=form[0], convolutions=form[1])


def _config(directory: Path) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(directory, local_files_only=True)


def _extractor(directory: Path) -> Any:
    from transformers import AutoFeatureExtractor

    if not any((directory / name).is_file() for name in _EXTRACTOR_FILES):
        raise DataError(
            f"processor: {directory} does not hold {' or '.join(_EXTRACTOR_FILES)}; save the model's own there.",
            code="file_missing",
        )
    try:
        return AutoFeatureExtractor.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"processor: {directory} does not hold a feature extractor for audio: {error}", code="invalid_processor"
        ) from error


def _tokenizer(directory: Path, language: str | None) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"processor: the tokenizer in {directory} cannot be loaded: {error}", code="invalid_processor"
        ) from error
    if language and hasattr(tokenizer, "set_prefix_tokens") and f"<|{language}|>" in tokenizer.get_vocab():
        tokenizer.set_prefix_tokens(language=language, task="transcribe")
    return tokenizer


def _given_tokenizer(directory: Path, language: str | None) -> Any:
    """The tokenizer in a directory, or None if there is none."""
    given = any((directory / file).is_file() for file in _TOKENIZER_FILES)
    return _tokenizer(directory, language) if given else None


def _label_count(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text).input_ids)


def _fitted_tokenizer(characters: Iterable[str], directory: Path) -> Any:
    """Transformers' tokenizer for CTC over these characters."""
    from transformers import Wav2Vec2CTCTokenizer

    names = [_PAD, _UNKNOWN, _SPACE, *sorted(set(characters) - {" ", _SPACE})]
    vocabulary = directory / "vocab.json"
    vocabulary.write_text(json.dumps({name: index for index, name in enumerate(names)}), encoding="utf-8")
    return Wav2Vec2CTCTokenizer(
        str(vocabulary),
        bos_token=None,
        eos_token=None,
        pad_token=_PAD,
        unk_token=_UNKNOWN,
        word_delimiter_token=_SPACE,
    )
