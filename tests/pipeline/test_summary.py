"""What a run says at its end, word for word, and what it says of other ends."""

from __future__ import annotations

import pytest

from merasteer.pipeline import summary

from .told import made, uncertified

CERTIFIED = """\
small-1b, sms: 1,500 training, 250 calibration, 200 test rows

Certified: a covariance step at mlp_input, α = 0.031 makes small-1b answer sms at least 2.0 points
better than it does by itself, with probability 95 %; on the test rows accuracy goes from .800 to
.900.

                 accuracy  balanced  recall ham  recall spam
unsteered            .800      .733        .867         .600
steered              .900      .867        .933         .800
always 'ham'         .750      .500       1.000         .000
logit bias           .820      .760        .880         .640
label probe          .970      .950        .980         .920
text classifier      .880      .800        .960         .640

Tested: a covariance step at mlp_input, α = 0.031; of 4 candidates the best on training rows held
out for that, +6.4 points there.
On the 250 calibration rows it put 22 right and broke 5: +6.8 points. Better than unsteered? exact
McNemar test, p = 0.0014; 0.05 or less was asked for: passed.

- The model knows more than it says: the label is read off its activations in .970 of the rows.
- What tells its wrong answers from its right ones (AUROC): the error probe .94, its own token
  probability .61.

Published as abababababab.
Serve it:  mera serve --model m --store s"""


def test_a_certified_run_word_for_word() -> None:
    assert summary(made(serve="mera serve --model m --store s")) == CERTIFIED


def flat(report: dict) -> str:
    return " ".join(summary(report).split())


def test_what_was_not_certified_says_why_and_how_many_rows_would_settle_it() -> None:
    said = flat(uncertified())
    assert (
        "Abstained: small-1b answers sms unsteered, at accuracy .800, because nothing that was tried was shown to"
        in said
    )
    assert "it put 8 right and broke 5: +1.2 points" in said
    assert "p = 0.19; 0.05 or less was asked for: failed." in said
    assert "About 340 calibration rows would settle it" in said
    test = uncertified()["certificate"] | {"rows_to_settle": None, "gained": 0, "lost": 0, "gain": 0.0}
    said = flat(uncertified(certificate=test))
    assert "it put no answer right and broke none: 0.0 points" in said
    assert "It gained nothing over all the rows that it was tried on" in said
    assert "would settle it," not in said
    assert "; the only candidate, ranked on training rows" in flat(uncertified(certificate=test | {"candidates": 1}))


def test_without_a_probe_nothing_was_tested() -> None:
    said = flat(uncertified(reason="no_probe", certificate=None, candidates=[]))
    assert "because no layer of it tells right from wrong here" in said
    assert "No candidate was tested." in said


def test_points_are_promised_only_where_the_bound_exceeds_epsilon() -> None:
    test = made()["certificate"] | {"lower_bound": 0.0}
    assert "answer sms better than it does by itself, with probability 95 %" in flat(made(certificate=test))
    above = flat(made(certificate=test | {"epsilon": 0.02, "test": "betting", "chances": 2}))
    assert "Better than unsteered by more than 2 points? betting test" in above
    assert "0.025 or less was asked for" in above


@pytest.mark.parametrize(
    ("accuracy", "said"),
    [
        ({"steered": 0.75}, "No better than always saying 'ham'."),
        ({"logit_bias": 0.9}, "A constant per label does as well: logit bias .900."),
        ({"label_probe": 0.75}, "The model does not seem to know: the label is read off its activations in .750"),
        ({"text_classifier": 0.9}, "No model is needed for this: word and character counts answer .900 right."),
    ],
)
def test_notes_are_made_where_there_is_reason(accuracy: dict, said: str) -> None:
    assert said not in flat(made())
    assert said in flat(made(accuracy=made()["accuracy"] | accuracy))


def test_a_label_that_pays_and_free_answers_are_told() -> None:
    assert "Recall of 'spam' fell from .80 to .60." in flat(made(recall={"ham": [0.8, 0.95], "spam": [0.8, 0.6]}))
    coverage = {"unsteered": 0.125, "first_tokens": [["\n", 0.5], ["The", 0.25]]}
    assert r"Of its free answers .125 are a label; they begin with '\n' .50, 'The' .25." in flat(
        made(coverage=coverage)
    )


def test_many_labels_share_a_column_and_no_text_moves_the_cursor() -> None:
    recall = {f"label {i}": [0.5 + i / 20, 0.9] for i in range(6)} | {"\x1b[2Jred": [0.1, None]}
    square = [[1] * 7] * 7
    said = summary(made(recall=recall, baselines={}, confusion={"unsteered": square, "steered": square}))
    assert "lowest recall" in said
    assert ".100 \\x1b[2Jred" in said
    assert "\x1b" not in said


def test_a_report_of_before_is_said_as_far_as_it_goes() -> None:
    new = ("balanced_accuracy", "confusion", "baselines", "candidates", "auroc", "coverage")
    old = {name: value for name, value in made().items() if name not in new}
    counts = ("candidate", "n", "gained", "lost", "rows_to_settle")
    old["certificate"] = {name: value for name, value in old["certificate"].items() if name not in counts}
    old["accuracy"] = {name: old["accuracy"][name] for name in ("unsteered", "steered", "majority", "logit_bias")}
    said = flat(old)
    assert "majority .750" in said
    assert "Tested: one candidate; of 4 candidates the best" in said
