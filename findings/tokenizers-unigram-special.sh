#!/usr/bin/env bash
# tokenizers 0.23: a Unigram model (T5) turns text that spells a special token into it, despite `encode_special_tokens`.
# Expected: the text's own pieces, as with BPE; the option is documented to encode special tokens as text.
# Effect: a document may hold the end-of-text token in its middle. `maas_ray/tasks/text/documents.py` therefore stores
#   the beginnings of documents for such tokenizers.
# Needs: tokenizers==0.23.3
# Seen: {'BPE': [1, 2, 3, 4], 'Unigram': [0]}
set -euo pipefail
source "$(dirname "$0")/environment.sh"
python - <<'PYTHON'
import sys

from tokenizers import Tokenizer, models

pieces = ["</s>", "<", "/", "s", ">"]
bpe = Tokenizer(models.BPE(vocab={piece: index for index, piece in enumerate(pieces)}, merges=[]))
unigram = Tokenizer(models.Unigram([(piece, 0.0 if index == 0 else -2.0) for index, piece in enumerate(pieces)]))
found = {}
for name, tokenizer in (("BPE", bpe), ("Unigram", unigram)):
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.encode_special_tokens = True
    found[name] = tokenizer.encode("</s>").ids
print(found)
sys.exit(found != {"BPE": [1, 2, 3, 4], "Unigram": [0]})
PYTHON
