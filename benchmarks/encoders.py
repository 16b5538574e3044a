"""Text that a task encodes per second of CPU, beside Hugging Face's tokenizers with the same tokenizer, in one thread.

The text is Python's standard library. `Task.encode` gives what is stored: ids with the ends of documents, and, for a
tokenizer with a normaliser, the bytes that each token stands for; the other side only calls `encode_batch_fast`. Ids
are compared for every document. The rounds repeat the text, which fastokens's caches know after the first pass;
that pass is printed too. Neither Ray nor files are involved; `tokenize_pack.py` measures the whole.

    python benchmarks/encoders.py [--megabytes 24] [--rounds 5]
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

os.environ["TOKENIZERS_PARALLELISM"] = "false"
BATCHES = (20, 250, 1000)


def task_of(pattern: str, normalised: bool, texts: list[str], directory: Path) -> Any:
    """A task whose tokenizer has a model's pattern, and 8,192 tokens."""
    from tokenizers import normalizers, pre_tokenizers, trainers

    from maas_ray.tasks.text.generation import TextGenerationSpec
    from tests.support.tokenizer_families import of_pattern

    tokenizer = of_pattern(pattern)
    if normalised:
        tokenizer.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=8192,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts[:200], trainer)
    directory.mkdir()
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    return TextGenerationSpec(tokenizer=str(directory)).fit({"text": text} for text in texts)


def speed(size: float, encode: Callable[[list[Any]], Any], rows: list[Any], batch: int) -> float:
    """MB per second of CPU."""
    started = time.process_time()
    for start in range(0, len(rows), batch):
        encode(rows[start : start + batch])
    return size / (time.process_time() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    from benchmarks.tokenize_pack import documents

    texts, size = [], 0.0
    for text in documents():
        if size < arguments.megabytes:
            texts.append(text)
            size += len(text.encode()) / 1e6
    rows = [{"text": text} for text in texts]
    print(f"{size:.1f} MB, {len(texts):,} documents; load before: {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as scratch:
        for pattern, normalised in (("gpt_2", False), ("llama_3", False), ("qwen", True)):
            started = time.process_time()
            task = task_of(pattern, normalised, texts, Path(scratch) / pattern)
            fitted = time.process_time() - started
            first = speed(size, task.encode, rows, BATCHES[1])
            different = sum(
                task.tokenizer.encode(text, add_special_tokens=False).ids != ids[:-1].tolist()
                for text, ids in zip(texts, task.encode(rows)["input_ids"], strict=True)
            )

            def theirs(some: list[dict[str, str]], tokenizer: Any = task.tokenizer) -> None:
                tokenizer.encode_batch_fast([row["text"] for row in some], add_special_tokens=False)

            found: dict[tuple[str, int], list[float]] = {}
            for _ in range(arguments.rounds):
                for batch in BATCHES:
                    found.setdefault(("tokenizers", batch), []).append(speed(size, theirs, rows, batch))
                    found.setdefault(("Task.encode", batch), []).append(speed(size, task.encode, rows, batch))
            print(
                f"{pattern}: fastokens {task.proof.version or 'refused: ' + task.proof.refused}; fitted and proved in"
            )
            print(f"  {fitted:.1f} s of CPU; documents with other ids: {different}; first pass {first:.1f} MB/s")
            for batch in BATCHES:
                ours, others = found["Task.encode", batch], found["tokenizers", batch]
                ratios = [one / other for one, other in zip(ours, others, strict=True)]
                print(
                    f"  batches of {batch:>5,}: {statistics.median(ours):6.1f} MB/s, tokenizers "
                    f"{statistics.median(others):4.1f}; ratio {statistics.median(ratios):.1f} "
                    f"({min(ratios):.1f}–{max(ratios):.1f})"
                )


if __name__ == "__main__":
    main()
