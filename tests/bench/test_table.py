"""The Markdown that people read: exact for a small bench, and what may be said of a certificate."""

from __future__ import annotations

from typing import Any

import pytest

from merasteer.bench.table import details, markdown, number
from merasteer.errors import InvalidInput

LEGEND = (
    "SPI on the test split: the share of what could be won that was won, or, below 0, of what could be lost that was "
    "lost. In brackets its 95 % interval. ✓ certified at the level of its column: the rows of one model and "
    "task that are tested share the level of one attempt, so all ✓ of a column hold together with probability 1 − δ. (✓) passes at δ "
    "alone, as if no other row had been tested on these items: one in twenty that do nothing would, at δ = 0.05. "
    "– abstained: the model answers as if unsteered, SPI 0. Without a mark: "
    "a baseline that is always on and has no certificate. failed: the details say why. Empty: not run. Bold: the best SPI of "
    "its column, where above 0. Logit bias: a constant per class, fitted to the calibration labels; the trivial fix that "
    "steering has to beat. Label probe: a linear classifier on the activations, what the model knows. Text classifier: TF-IDF and "
    "logistic regression on the rows, what needs no model."
)
EXPECTED = f"""\
## tiny-llama

| method | sms_spam | yes_no (last) | yes_no (exact) |
| --- | --- | --- | --- |
| *unsteered accuracy* | .600 | .600 | .600 |
| *majority accuracy* | .500 | .500 | .500 |
| *logit bias accuracy* | .700 | .700 | .700 |
| *label probe accuracy* | .950 | .950 | .950 |
| *text classifier accuracy* | .800 | .800 | .800 |
| none | .00 [−.06, .05] |  |  |
| prompt | −.04 [−.10, .01] |  | **.80 [.74, .85]** |
| mera | **.75 [.68, .81]** ✓ | failed | .75 [.68, .81] ✓ |
| sae | – | **.75 [.68, .81]** ✓ |  |
| alone |  |  | .75 [.68, .81] (✓) |

{LEGEND}

- Items (train / calibration / test): sms_spam, yes_no 2000 / 250 / 1000; yes_no 100 / 250 / 1000
- Certificates: δ = 0.05, ε = 0; attempt 1 on these items, level of a row 0.0025
- Seed: 0
- Versions: torch 2.11.0, transformers 5.23.0
- Run in: float32 on cpu
"""


def cells(record: Any) -> list[dict[str, Any]]:
    yes, exact = {"task": "yes_no"}, {"task": "yes_no", "position": "exact"}
    return [
        record("mera"),
        record.abstained("sae"),
        record.applied("none", 0.0),
        record.applied("prompt", -0.04),
        record.failed("mera", **yes),
        record("sae", **yes, n={"train": 100, "calibration": 250, "test": 1000}),
        record("mera", **exact),
        record.alone("alone", **exact),
        record.applied("prompt", 0.8, **exact),
    ]


def test_the_table_of_a_small_bench(record: Any) -> None:
    assert markdown(cells(record), ["none", "prompt", "mera", "sae", "alone"]) == EXPECTED


def test_each_model_has_its_table_and_only_its_tasks(record: Any) -> None:
    text = markdown([record("mera"), record("mera", model="other", task="another")], ["mera"])
    first, second = text.split("## other")
    assert "| sms_spam |" in first
    assert "another" not in first
    assert "sms_spam" not in second.split("SPI on the test split")[0]


def test_rows_are_as_given_and_no_cell_is_left_out(record: Any) -> None:
    lines = markdown([record("new"), record("mera")], ["sae", "mera"]).splitlines()
    assert [line.split(" | ")[0] for line in lines if line.startswith("| ")][7:] == ["| sae", "| mera", "| new"]


def test_two_cells_in_one_place_are_refused(record: Any) -> None:
    with pytest.raises(InvalidInput, match="two for tiny-llama × sms_spam × last × mera, keys 000000000000 and 1"):
        markdown([record("mera"), record("mera", key="1")], ["mera"])


def test_a_gain_of_nothing_is_never_the_best(record: Any) -> None:
    assert "**" not in markdown([record.applied("none", 0.0), record.applied("prompt", -0.2)], ["none", "prompt"])


def test_no_cells_and_only_failed_ones_still_make_a_page(record: Any) -> None:
    assert markdown([], ["mera"]).startswith("SPI on the test split")
    assert "| mera | failed |" in markdown([record.failed("mera")], ["mera"])


def row(record: Any, **certificate: Any) -> list[str]:
    cell = record("mera", certificate=record()["certificate"] | certificate)
    return details([cell]).splitlines()[-1].strip("| ").split(" | ")


def test_details_tell_what_was_chosen_and_what_it_did(record: Any) -> None:
    assert row(record) == [
        "mera", "certified", "mera", ".030", "residual", "covariance", ".600 → .900", ".600 → .900",
        "ham .600 → .900, spam – → –", "580 / 320 / 20 / 80", "6e-22",
        "30.0 points gained, at least 22.0 with probability 99.75 %",
    ]  # fmt: skip


def test_points_are_shown_only_where_the_bound_exceeds_epsilon(record: Any) -> None:
    said = "better than not steering, with probability 99.5 %"
    assert row(record, lower_bound=0.0, level=0.005)[-1] == said
    assert row(record, lower_bound=-0.01, level=0.01, chances=2)[-1] == said
    said = "better than not steering by more than 2 points, with probability 99.75 %"
    assert row(record, lower_bound=0.02, epsilon=0.02)[-1] == said
    assert row(record, lower_bound=0.021, epsilon=0.02)[-1].startswith("30.0 points gained, at least 2.1")


def test_what_a_gain_must_not_be_taken_for_stands_beside_the_decision(record: Any) -> None:
    assert row(record, below_majority=True)[1] == "certified (below_majority)"
    assert (
        row(record, collapse="ham gets 100% of the answers")[1] == "certified (collapse)"
    )  # as --allow-collapse has it
    refused = record.abstained("mera", reason="collapse", certificate=record()["certificate"] | {"collapse": "x"})
    assert details([refused]).splitlines()[-1].split(" | ")[1] == "abstained (collapse)"


def test_a_row_that_passes_alone_is_not_certified(record: Any) -> None:
    said = details([record.alone("mera")]).splitlines()[-1].strip("| ").split(" | ")
    assert (said[1], said[-1]) == ("alone", "passes at δ = 0.05 alone, not at the level of its column")


def test_details_of_what_was_not_certified(record: Any) -> None:
    no_probe = record.abstained("paper", reason="no_probe", certificate=None)
    text = details(
        [record.abstained("mera"), no_probe, record.applied("prompt", 0.1), record.failed("sae", error="a|b")]
    )
    lines = [line.strip("| ").split(" | ") for line in text.splitlines()[4:]]
    assert (lines[0][1], lines[0][-2:]) == ("abstained (uncertified)", ["0.31", "not shown to help"])
    assert lines[1][1] == "abstained (no_probe)"
    assert lines[2][1] == "applied"
    assert lines[3][:2] == ["sae", "failed: a¦b"]
    assert "points" not in text


@pytest.mark.parametrize(
    ("value", "text"), [(0.64, ".64"), (-0.041, "−.04"), (-0.001, ".00"), (1.0, "1.00"), (-1.0, "−1.00"), (None, "")]
)
def test_numbers_are_short(value: float | None, text: str) -> None:
    assert number(value) == text
