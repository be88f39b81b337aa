"""One engine for HTTP and for the offline pipeline: transformers' continuous batching with one policy per request."""

from merasteer.engine.config import EngineConfig
from merasteer.engine.engine import Engine, EngineStats
from merasteer.engine.glance import Glance, glance
from merasteer.engine.loading import LoadedModel, load_model, wrap_model
from merasteer.engine.meaning import identity_facts

__all__ = [
    "Engine",
    "EngineConfig",
    "EngineStats",
    "Glance",
    "LoadedModel",
    "glance",
    "identity_facts",
    "load_model",
    "wrap_model",
]
