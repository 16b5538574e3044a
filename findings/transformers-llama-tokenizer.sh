#!/usr/bin/env bash
# transformers 5.23: for the class LlamaTokenizer, AutoTokenizer ignores the normaliser in tokenizer.json for its own.
# Expected: the tokens that the `tokenizers` library finds by the same tokenizer.json.
# Effect: text after a special token, as in every chat of a Llama 2, gets other tokens in Transformers (no `▁` before it)
#   than in engines that read the file. `maas_ray/tasks/text/tokenization.py` reads the file in training and serving.
# Needs: transformers==5.23.0 tokenizers==0.23.3
# Seen: ['<s>', '▁', 'a'] by the file, ['<s>', 'a'] by Transformers
set -euo pipefail
source "$(dirname "$0")/environment.sh"
python - <<'PYTHON'
import json
import sys

from tokenizers import Tokenizer, models, normalizers
from transformers import AutoTokenizer

vocabulary = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>", "▁", "a"])}
tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
tokenizer.save("tokenizer.json")
with open("tokenizer_config.json", "w") as file:
    json.dump({"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}, file)
theirs = AutoTokenizer.from_pretrained(".")
by_file = tokenizer.encode("<s>a", add_special_tokens=False).tokens
by_transformers = theirs.convert_ids_to_tokens(theirs("<s>a", add_special_tokens=False).input_ids)
print(by_file, "by the file,", by_transformers, "by Transformers")
sys.exit((by_file, by_transformers) != (["<s>", "▁", "a"], ["<s>", "a"]))
PYTHON
