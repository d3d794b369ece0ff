"""What the field measures language models by: minimal pairs, questions, perplexity per word (docs/benchmarks.md)."""
