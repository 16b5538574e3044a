#!/usr/bin/env bash
# tokenizers 0.23: `encode` holds Python's lock from its beginning to its end; `encode_batch_fast` releases it.
# Expected: `await asyncio.to_thread(tokenizer.encode, text)` lets the other requests of a server go on.
# Effect: one long prompt stops every stream of a replica, though it is encoded in a thread. A prompt that cannot fit is
#   therefore refused by its length, unread (`TextCodec.max_characters` in `maas_ray/serve/text/codec.py`).
# Needs: tokenizers==0.23.3
# Seen: encode 8.07 s, another thread waited 8.06 s; encode_batch_fast 3.01 s, it waited 0.03 s
set -euo pipefail
source "$(dirname "$0")/environment.sh"
TOKENIZERS_PARALLELISM=false python - <<'PYTHON'
import sys
import threading
import time

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

text = " ".join(f"word{number % 5000}" for number in range(300_000))
tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
tokenizer.train_from_iterator([text[:100_000]], trainers.BpeTrainer(vocab_size=1000, show_progress=False))


def longest_wait(encode):
    """The seconds that an encoding takes, and the longest time in which this thread did not run meanwhile."""
    worker = threading.Thread(target=encode)
    began = last = time.perf_counter()
    longest = 0.0
    worker.start()
    while worker.is_alive():
        time.sleep(0.001)
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    return time.perf_counter() - began, longest


seconds, waited = longest_wait(lambda: tokenizer.encode(text))
batch_seconds, batch_waited = longest_wait(lambda: tokenizer.encode_batch_fast([text]))
print(f"encode {seconds:.2f} s, another thread waited {waited:.2f} s")
print(f"encode_batch_fast {batch_seconds:.2f} s, it waited {batch_waited:.2f} s")
sys.exit(not (waited > 0.8 * seconds and batch_waited < 0.5 * batch_seconds))
PYTHON
