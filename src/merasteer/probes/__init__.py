"""Readouts and steps from activations: targets, fitting, directions, selection. Sees no engine and no files."""

from merasteer.probes.directions import contrastive_probes, directions, fit_contrast, steering_vectors
from merasteer.probes.fitting import FAMILIES, Family, Probes, fit_layer, fit_probes
from merasteer.probes.selection import LayerScore, Selection, select
from merasteer.probes.targets import CLIP, class_probabilities, class_scores, error_target, errors

__all__ = [
    "CLIP",
    "FAMILIES",
    "Family",
    "LayerScore",
    "Probes",
    "Selection",
    "class_probabilities",
    "class_scores",
    "contrastive_probes",
    "directions",
    "error_target",
    "errors",
    "fit_contrast",
    "fit_layer",
    "fit_probes",
    "select",
    "steering_vectors",
]
