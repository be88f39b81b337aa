"""The built-in demo: a tiny model with a planted failure and its tasks. `merasteer.demo.build` makes them from nothing."""

from merasteer.demo.paths import WORD, data_dir, model_dir, named, store_dir, tasks_dir

__all__ = ["WORD", "data_dir", "model_dir", "named", "store_dir", "tasks_dir"]
