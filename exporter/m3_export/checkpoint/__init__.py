"""The checkpoint: where it comes from, its weights, heads, pooling and tokenizer."""
