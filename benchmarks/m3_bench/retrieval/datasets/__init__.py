"""Labelled datasets as they lie on disks: SQuAD, BEIR, MIRACL, MLDR, FlagEmbedding's fine-tuning JSONL."""
