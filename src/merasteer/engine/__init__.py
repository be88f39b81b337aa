"""One engine for HTTP and for the offline pipeline: transformers' continuous batching with one policy per request."""

from merasteer.engine.config import EngineConfig
from merasteer.engine.engine import Engine, EngineStats
from merasteer.engine.glance import Glance, glance
from merasteer.engine.gradients import answer_gradients
from merasteer.engine.loading import LoadedModel, load_model, model_name, wrap_model
from merasteer.engine.meaning import conditions_of, identity_facts

__all__ = [
    "Engine",
    "EngineConfig",
    "EngineStats",
    "Glance",
    "LoadedModel",
    "answer_gradients",
    "conditions_of",
    "glance",
    "identity_facts",
    "load_model",
    "model_name",
    "wrap_model",
]
