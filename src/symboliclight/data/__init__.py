"""Text to training batches: files -> corpus -> token shards -> batches. Imports without torch."""

from symboliclight.data.batches import Batches, eval_windows
from symboliclight.data.corpus import Corpus, build_corpus, demo_sources
from symboliclight.data.shards import Shards, build_shards

__all__ = ["Batches", "Corpus", "Shards", "build_corpus", "build_shards", "demo_sources", "eval_windows"]
