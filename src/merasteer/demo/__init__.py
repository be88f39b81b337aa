"""The built-in demo: a tiny model with a planted failure and its tasks. `merasteer.demo.build` makes them from nothing."""

from merasteer.demo.paths import data_dir, model_dir, store_dir, tasks_dir

__all__ = ["data_dir", "model_dir", "store_dir", "tasks_dir"]
