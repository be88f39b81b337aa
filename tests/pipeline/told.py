"""A report as a run writes it, for tests of what is said of it."""

from __future__ import annotations

from typing import Any

__all__ = ["made", "uncertified"]


def made(**changes: Any) -> dict[str, Any]:
    """A certified report; `changes` replace whole fields."""
    row = {"key": "mlp_input/covariance/0.031", "method": "mera", "hook_point": "mlp_input", "direction": "covariance", "alpha": 0.031,
           "gain": 0.064, "gained": 20, "lost": 4}  # fmt: skip
    bias = {"key": "logit_bias", "method": "logit_bias", "hook_point": None, "direction": None, "alpha": None, "gain": 0.02,
            "gained": 7, "lost": 2}  # fmt: skip
    both = {**row, "key": f"{row['key']}+bias", "method": "mera+bias", "gain": 0.05}
    other = {
        **row,
        "key": "residual/euclidean/0.4",
        "hook_point": "residual",
        "direction": "euclidean",
        "alpha": 0.4,
        "gain": -0.01,
    }
    report: dict[str, Any] = {
        "task": "sms", "model": "small-1b", "decision": "certified", "reason": None, "artifact": "ab" * 32, "method": "mera",
        "alpha": 0.031, "hook_point": "mlp_input", "direction": "covariance", "n": {"train": 1500, "calibration": 250, "test": 200},
        "accuracy": {"unsteered": 0.8, "steered": 0.9, "majority": 0.75, "logit_bias": 0.82, "label_probe": 0.97, "text_classifier": 0.88},
        "balanced_accuracy": [0.733, 0.867], "spi": 0.5, "spi_interval": [0.3, 0.66], "level": 0.95,
        "recall": {"ham": [0.867, 0.933], "spam": [0.6, 0.8]},
        "confusion": {"unsteered": [[130, 20], [20, 30]], "steered": [[140, 10], [10, 40]]},
        "baselines": {
            "logit_bias": {"balanced_accuracy": 0.76, "recall": {"ham": 0.88, "spam": 0.64}},
            "label_probe": {"balanced_accuracy": 0.95, "recall": {"ham": 0.98, "spam": 0.92}, "hook_point": "residual", "layer": 9},
            "text_classifier": {"balanced_accuracy": 0.8, "recall": {"ham": 0.96, "spam": 0.64}},
        },
        "certificate": {"test": "mcnemar", "delta": 0.05, "epsilon": 0.0, "p_value": 0.0014, "gain": 0.068, "lower_bound": 0.02,
                        "candidates": 4, "chances": 1, "candidate": row["key"], "n": 250, "gained": 22, "lost": 5, "rows_to_settle": None},
        "candidates": [bias, row, other, both],
        "auroc": {"probe": 0.94, "token_probability": 0.61}, "coverage": None,
        "seconds": {"collect": 61.2, "fit": 5.0, "calibrate": 90.0, "evaluate": 12.0},
    }  # fmt: skip
    return report | changes


def uncertified(**changes: Any) -> dict[str, Any]:
    """A report whose best candidate was tested and not certified."""
    sure = made()
    accuracy = sure["accuracy"] | {"steered": 0.8}
    test = sure["certificate"] | {
        "p_value": 0.19,
        "gain": 0.012,
        "lower_bound": -0.03,
        "gained": 8,
        "lost": 5,
        "rows_to_settle": 340,
    }
    recall = {label: [pair[0]] * 2 for label, pair in sure["recall"].items()}
    given = {"decision": "abstained", "reason": "uncertified", "method": None, "alpha": None, "hook_point": None, "direction": None,
             "accuracy": accuracy, "certificate": test, "recall": recall, "balanced_accuracy": [0.733] * 2, "spi": 0.0,
             "spi_interval": [0.0, 0.0]}  # fmt: skip
    return made(**given | changes)
