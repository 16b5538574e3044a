"""Byte-level BPE encoded by `fastokens`, if it was proved to give the ids that `tokenizers` gives."""
