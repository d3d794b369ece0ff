"""Text from a model: what loads it, the distribution of the next token, the loop that samples."""
