"""A report in sentences and rows: what `pipeline.summary` prints and `pipeline.page` lays out. Reports of before lack some of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from merasteer.pipeline.report import Report
from merasteer.tasks.checking import shown_text

__all__ = ["Score", "correction", "labels_of", "majority_label", "notes", "number", "scores", "trial", "verdict"]

CORRECTIONS = {
    "logit_bias": "a constant per label (logit bias)",
    "mera+bias": " with a constant per label",
    "label_probe": "the label that a probe reads",
}
TESTS = {"mcnemar": "exact McNemar test", "betting": "betting test", "hoeffding": "Hoeffding bound"}
NAMES = {"logit_bias": "logit bias", "label_probe": "label probe", "text_classifier": "text classifier"}
MUCH = 0.05  # of accuracy or recall: what is worth a note


class Score(NamedTuple):
    """A row of the table: shares on the test split, None where not known. recall: label -> share."""

    name: str
    accuracy: float | None
    balanced: float | None
    recall: Mapping[str, float | None]


def number(value: float | None, digits: int = 2) -> str:
    """The number without a leading zero, as in ".64" and "−.04"; empty for None."""
    if value is None:
        return ""
    text = f"{abs(value):.{digits}f}"
    sign = "−" if value < 0 and float(text) else ""
    return sign + (text.removeprefix("0") if digits else text)


def labels_of(report: Report) -> list[str]:
    """The task's labels in order, fit for a terminal."""
    return [shown_text(label).replace("\n", "\\n") for label in report["recall"]]


def verdict(report: Report) -> str:
    """What was decided, in one sentence."""
    accuracy, certificate = report["accuracy"], report["certificate"]
    if report["decision"] == "certified":
        surely = f"with probability {100 * (1 - level_of(certificate)):.4g} %"
        least = certificate["lower_bound"]
        by = f"at least {100 * least:.1f} points " if least > certificate["epsilon"] else ""
        return (
            f"Certified: {correction(report)} makes {report['model']} answer {report['task']} {by}better than it does by itself, "
            f"{surely}; on the test rows accuracy goes from {number(accuracy['unsteered'], 3)} to {number(accuracy['steered'], 3)}."
        )
    why = "nothing that was tried was shown to make it better"
    if report["reason"] == "no_probe":
        why = "no layer of it tells right from wrong here, so there is nothing to steer by"
    if report["reason"] == "collapse":
        why = f"the gain that was tested is no repair: {certificate['collapse']} (--allow-collapse would certify it)"
    unsteered = number(accuracy["unsteered"], 3)
    return f"Abstained: {report['model']} answers {report['task']} unsteered, at accuracy {unsteered}, because {why}."


def level_of(certificate: Mapping[str, Any]) -> float:
    """At which its test was made: of reports of before δ, shared by the second chances."""
    return float(certificate.get("level", certificate["delta"])) / int(certificate.get("chances", 1))


def correction(report: Report, row: Mapping[str, Any] | None = None) -> str:
    """What a candidate does, in words; without `row` the chosen one."""
    row = report if row is None else row
    method = row.get("method") or "mera"
    if method == "logit_bias":
        return CORRECTIONS[method]
    gate = f"at {row['hook_point']}, α = {row['alpha']:.3g}"
    if method == "label_probe":
        return f"{CORRECTIONS[method]} {gate}"
    length = f" of {row['strength']:g} times the activations' size" if row.get("strength") else ""
    return f"a {row['direction']} step{length} {gate}{CORRECTIONS.get(method, '')}"


def scores(report: Report) -> list[Score]:
    """The rows of the table: unsteered, steered, majority, and what stands beside them."""
    balanced, accuracy = report.get("balanced_accuracy", [None, None]), report["accuracy"]
    pairs = [(label, pair) for label, pair in zip(labels_of(report), report["recall"].values(), strict=True)]
    rows = [
        Score(name, accuracy[name], balanced[i], {label: pair[i] for label, pair in pairs})
        for i, name in enumerate(("unsteered", "steered"))
    ]
    most = majority_label(report)
    present = [label for label, pair in pairs if pair[0] is not None]
    always = {label: None if label not in present else float(label == most) for label, _ in pairs}
    known = most is not None
    title = f"always {most!r}" if known else "majority"
    rows.append(Score(title, accuracy["majority"], 1 / len(present) if known else None, always if known else {}))
    for name, title in NAMES.items():
        found = report.get("baselines", {}).get(name, {})
        recalls = dict(zip(labels_of(report), found.get("recall", {}).values(), strict=False))
        rows.append(Score(title, accuracy.get(name), found.get("balanced_accuracy"), recalls))
    return [row for row in rows if row.accuracy is not None]


def majority_label(report: Report) -> str | None:
    """The label that most test rows have, None where the report does not say."""
    if "confusion" not in report:
        return None
    sizes = [sum(row) for row in report["confusion"]["unsteered"]]
    return labels_of(report)[sizes.index(max(sizes))]


def trial(report: Report) -> Iterator[str]:
    """What was tested, why it passed or failed, and about how many rows would settle it."""
    found = report["certificate"]
    if found is None:
        yield "No candidate was tested."
        return
    key = found.get("candidate")
    row = next((row for row in report.get("candidates", ()) if row["key"] == key), None)
    what = correction(report, row) if row is not None else "one candidate"
    gain = f", {_points(row['gain'])} there" if row is not None else ""
    several = (
        f"of {found['candidates']:,} candidates the best" if found["candidates"] > 1 else "the only candidate, ranked"
    )
    yield f"Tested: {what}; {several} on training rows held out for that{gain}."
    passed, level = found["p_value"] <= level_of(found), level_of(found)
    above = f" by more than {100 * found['epsilon']:g} points" if found["epsilon"] else ""
    yield (
        f"On the {report['n']['calibration']:,} calibration rows {_counts(found)}{_points(found['gain'])}. Better than unsteered{above}? "
        f"{TESTS.get(found['test'], found['test'])}, p = {found['p_value']:.2g}; {level:.3g} or less was asked for: "
        f"{'passed' if passed else 'failed'}."
    )
    if not passed and "rows_to_settle" in found:
        yield _settling(found)
    if (attempt := found.get("attempt") or 1) > 1:
        yield (
            f"It is attempt {attempt} on these rows, hence the level. Whoever tunes on their results needs fresh rows: "
            "the levels do not cover that."
        )
    if harm := found.get("broken"):
        yield (
            f"Of {harm['n']:,} that were right before it broke {number(harm['share'], 3)}; at most {number(harm['upper'], 3)} "
            "of such answers, at the same level and as a statement of its own."
        )


def _settling(found: Mapping[str, Any]) -> str:
    rows = found["rows_to_settle"]
    if rows is None:
        return "It gained nothing over all the rows that it was tried on: more rows are not expected to settle it in its favour."
    return f"About {rows:,} calibration rows would settle it, were its true gain the one seen on all the rows that it was tried on."


def notes(report: Report) -> Iterator[str]:
    """What a reader should not miss, one sentence each."""
    accuracy, most = report["accuracy"], majority_label(report)
    steered, knows, text = accuracy["steered"], accuracy.get("label_probe"), accuracy.get("text_classifier")
    if (report["certificate"] or {}).get("below_majority"):
        yield "On the calibration rows it stays below the majority (below_majority): a true gain of accuracy, and less than one label gets."
    if most is not None and steered <= accuracy["majority"]:
        yield f"No better than always saying {most!r}."
    for label, pair in zip(labels_of(report), report["recall"].values(), strict=True):
        if None not in pair and pair[0] - pair[1] > MUCH:
            yield f"Recall of {label!r} fell from {number(pair[0])} to {number(pair[1])}."
    if report.get("method") in ("mera", "mera+bias") and accuracy["logit_bias"] >= steered:
        yield f"A constant per label does as well: logit bias {number(accuracy['logit_bias'], 3)}."
    if knows is not None and knows > steered + MUCH:
        yield f"The model knows more than it says: the label is read off its activations in {number(knows, 3)} of the rows."
    elif knows is not None and knows <= accuracy["majority"]:
        yield f"The model does not seem to know: the label is read off its activations in {number(knows, 3)} of the rows."
    if text is not None and text >= steered:
        yield f"No model is needed for this: word and character counts answer {number(text, 3)} right."
    yield from _doubt(report.get("auroc") or {})
    if coverage := report.get("coverage"):
        first = ", ".join(f"{text!r} {number(share)}" for text, share in coverage["first_tokens"])
        yield f"Of its free answers {number(coverage['unsteered'], 3)} are a label; they begin with {first}."


def _doubt(auroc: Mapping[str, float | None]) -> Iterator[str]:
    known = [
        f"{name} {number(auroc[key])}"
        for key, name in (("probe", "the error probe"), ("token_probability", "its own token probability"))
        if auroc.get(key) is not None
    ]
    if known:
        yield f"What tells its wrong answers from its right ones (AUROC): {', '.join(known)}."


def _counts(found: Mapping[str, Any]) -> str:
    if "gained" not in found:
        return ""
    if not found["gained"] and not found["lost"]:
        return "it put no answer right and broke none: "
    return f"it put {found['gained']:,} right and broke {found['lost']:,}: "


def _points(gain: float) -> str:
    return f"{'+' if gain > 0 else '−' if gain < 0 else ''}{abs(100 * gain):.1f} points"
