"""Readouts and steps from activations: targets, fitting, directions, selection. Sees no engine, and of files only `load_sae`'s."""

from merasteer.probes.directions import (
    Covariance,
    additive_vectors,
    contrastive_probes,
    contrastive_vectors,
    directions,
    fit_contrast,
    steering_vectors,
)
from merasteer.probes.fitting import FAMILIES, Family, Probes, fit_layer, fit_probes
from merasteer.probes.label_probe import LabelProbe, fit_label_probe, fit_label_probe_at
from merasteer.probes.sae import encodings, load_sae, sae_scores
from merasteer.probes.selection import LayerScore, Selection, probe_rows, score_layer, select
from merasteer.probes.targets import CLIP, class_probabilities, class_scores, error_target, errors

__all__ = [
    "CLIP",
    "FAMILIES",
    "Covariance",
    "Family",
    "LabelProbe",
    "LayerScore",
    "Probes",
    "Selection",
    "additive_vectors",
    "class_probabilities",
    "class_scores",
    "contrastive_probes",
    "contrastive_vectors",
    "directions",
    "encodings",
    "error_target",
    "errors",
    "fit_contrast",
    "fit_label_probe",
    "fit_label_probe_at",
    "fit_layer",
    "fit_probes",
    "load_sae",
    "probe_rows",
    "sae_scores",
    "score_layer",
    "select",
    "steering_vectors",
]
