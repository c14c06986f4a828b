"""How far positives stand above negatives on the lines of a fine-tuning file."""
