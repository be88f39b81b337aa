"""Task files: what a good one becomes, and what each malformed one is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from merasteer import tasks
from merasteer.errors import BadTask, UnknownTask
from merasteer.tasks import builtin_names, load_task
from merasteer.types import DataSource, SplitSizes

BUILTIN = ("mmlu_high_school", "mmlu_professional", "sentiment_analysis", "sms_spam", "yes_no_question")
MINIMAL = 'name = "mine"\nlabels = ["ham", "spam"]\n[prompt]\ntemplate = "Is {text} spam?"\n'


@pytest.fixture
def write(tmp_path):
    def to(content: str | bytes, name: str = "mine.toml") -> Path:
        file = tmp_path / name
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return file

    return to


def test_a_minimal_file_takes_the_documented_defaults(write):
    task = load_task(write(MINIMAL))
    assert (task.name, task.labels, task.template) == ("mine", ("ham", "spam"), "Is {text} spam?")
    assert task.variants[0] == ("ham", " ham", "Ham", " Ham", "HAM", " HAM")
    assert (task.choose, task.position, task.max_new_tokens, task.data) == ("labels", "last", 1, None)
    assert (task.chat, task.system, task.examples, task.notes) == (False, None, 0, ())
    assert task.splits == SplitSizes(1500, 250, 250, True, 0, "error")


def test_a_full_file_is_read_key_by_key(write):
    file = write(
        MINIMAL.replace("[prompt]", '[variants]\nham = [" ham"]\n[prompt]')
        + '[answer]\nposition = "exact"\nmax_new_tokens = 3\n[data]\npath = "rows.csv"\nlabel = "class"\n'
        + '[splits]\ntrain = 4\ncalibration = 3\ntest = 2\nshuffle = false\nseed = 7\ntoo_long = "skip"\n'
    )
    task = load_task(str(file))
    assert task.variants[0] == (" ham",)
    assert task.variants[1][:2] == ("spam", " spam")
    assert (task.choose, task.position, task.max_new_tokens) == ("free", "exact", 3)
    assert task.data == DataSource("class", path=file.parent / "rows.csv")
    assert task.splits == SplitSizes(4, 3, 2, False, 7, "skip")


def test_a_source_is_read_key_by_key(write):
    file = write(
        DATA + 'hub = "a/b"\nsplit = "test"\nconfig = ["c", "d"]\nlabel = "answer"\nlabel_index = true\n'
        '[data.fields]\ntext = "sms"\n[data.where]\nkind = ["x", 3]\nkept = true\n'
    )
    assert load_task(file).data == DataSource(
        "answer",
        hub="a/b",
        split="test",
        config=("c", "d"),
        fields={"text": "sms"},
        where={"kind": ("x", 3), "kept": (True,)},
        label_index=True,
    )
    one = load_task(write(DATA + 'hub = "a/b"\nconfig = "c"\n'))
    assert one.data == DataSource("label", hub="a/b", config=("c",))
    assert hash(one.data) == hash(one.data)


def test_exact_generates_eight_tokens_and_capitals_give_no_repeats(write):
    task = load_task(write(MINIMAL.replace('"ham"', '"A"') + '[answer]\nposition = "exact"\n'))
    assert task.max_new_tokens == 8
    assert task.variants[0] == ("A", " A")


DATA, VARIANTS = MINIMAL + "[data]\n", MINIMAL.replace("[prompt]", "[variants]\n%s\n[prompt]")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("name = ", "not a TOML file"),
        (b'name = "\xff"', "not UTF-8 (invalid start byte at byte 8); save it as UTF-8"),
        (MINIMAL.encode("utf-16"), "UTF-16, not UTF-8; save it as UTF-8, as in: iconv -f UTF-16 -t UTF-8"),
        (MINIMAL.encode("utf-16-le"), "a NUL byte, so UTF-16 or no text at all"),
        (MINIMAL + f"[splits]\nseed = 0x{'f' * 5000}\n", "splits.seed: a whole number of more than 64 bits"),
        (MINIMAL.replace('"spam"]', f"0x{'f' * 5000}]"), "labels[1]: a whole number of more than 64 bits"),
        ("x = " + "[" * 5000 + "]" * 5000, "not a TOML file"),
        ("", "name: missing"),
        (MINIMAL.replace("labels", "lables"), "lables: unknown key; known are name, labels"),
        (MINIMAL + "[extra]\n", "extra: unknown key"),
        (MINIMAL + "[splits]\nvalidation = 3\n", "splits.validation: unknown key"),
        (MINIMAL.replace('"mine"', "3"), "name: 3 is not a string"),
        (MINIMAL.replace('"mine"', '"../up"'), "name: '../up' is no folder name"),
        (MINIMAL.replace('"mine"', '".hidden"'), "no leading dot"),
        (MINIMAL.replace('"mine"', '"a\\n"'), "name: 'a\\n' is no folder name"),
        (MINIMAL.replace('labels = ["ham", "spam"]\n', ""), "labels: has 0 entries, at least 2 needed"),
        (MINIMAL.replace(', "spam"', ""), "labels: has 1 entries, at least 2"),
        (MINIMAL.replace('"spam"]', '"ham"]'), "labels: 'ham' occurs twice"),
        (MINIMAL.replace('"spam"]', "1.5]"), "labels: 1.5 is not a string"),
        (MINIMAL.replace('"spam"]', '" "]'), "labels: ' ' is not a string with text"),
        (MINIMAL.replace('"spam"]', '"HAM"]'), "variants.HAM: 'HAM' is also a variant of 'ham'"),
        (VARIANTS % 'hum = ["ham"]', "variants.hum: unknown key; known are ham, spam"),
        (VARIANTS % "ham = []", "variants.ham: has 0 entries"),
        (VARIANTS % 'ham = "ham"', "variants.ham: 'ham' is not an array"),
        (VARIANTS % 'ham = ["a"]\nspam = ["a"]', "variants.spam: 'a' is also a variant of 'ham'"),
        (MINIMAL.split("[prompt]")[0], "prompt.template: missing"),
        (MINIMAL.replace("{text}", "this"), "prompt.template: has no field"),
        (MINIMAL.replace("{text}", "{{text}}"), "prompt.template: has no field"),
        (MINIMAL.replace("{text}", "{text"), "prompt.template: unbalanced braces"),
        (MINIMAL.replace("{text}", "{}"), "prompt.template: field '': not a simple name"),
        (MINIMAL.replace("{text}", "{text.upper}"), "field 'text.upper': not a simple name"),
        (MINIMAL.replace("{text}", "{text!r}"), "field 'text': not a simple name"),
        (MINIMAL.replace("{text}", "{text:>9}"), "field 'text': not a simple name"),
        (MINIMAL + '[answer]\nposition = "first"\n', "answer.position: 'first' is unknown; use last or exact"),
        (MINIMAL + "[answer]\nmax_new_tokens = 0\n", "answer.max_new_tokens: 0 is below 1"),
        (MINIMAL + "[answer]\nmax_new_tokens = true\n", "answer.max_new_tokens: True is not a whole number"),
        (MINIMAL.replace('"mine"', '"mine"\ndata = "rows.csv"'), "data: 'rows.csv' is not a table"),
        (DATA, "data.path: neither path nor hub given"),
        (DATA + 'path = "a.csv"\nhub = "a/b"\n', "data.path: both path and hub given"),
        (DATA + 'path = "a.csv"\nsplit = "train"\n', "data.split: 'train' is given with path"),
        (DATA + 'path = "a\\u0000.csv"\n', "data.path: 'a\\x00.csv' holds a control character"),
        (DATA + 'path = "a.txt"\n', "data.path: 'a.txt' ends in none of .jsonl"),
        (DATA + 'hub = "just-a-name"\n', "data.hub: 'just-a-name' is not owner/name"),
        (DATA + 'path = "a.csv"\nlabel = " "\n', "data.label: missing or blank"),
        (DATA + 'path = "a.csv"\nlabel = "text"\n', "data.label: 'text' is also a field of the template"),
        (DATA + 'path = "a.csv"\nconfig = "b"\n', "data.config: 'b' is given with path"),
        (DATA + 'hub = "a/b"\nconfig = []\n', "data.config: has 0 entries, at least 1"),
        (DATA + 'hub = "a/b"\nconfig = ""\n', "data.config: missing or blank"),
        (DATA + 'hub = "a/b"\nconfig = 3\n', "data.config: 3 is not an array"),
        (DATA + 'hub = "a/b"\nconfig = ["c", "c"]\n', "data.config: 'c' occurs twice"),
        (DATA + 'path = "a.csv"\nfields = "sms"\n', "data.fields: 'sms' is not a table"),
        (DATA + 'path = "a.csv"\n[data.fields]\nbody = "sms"\n', "data.fields.body: unknown key; known are text"),
        (DATA + 'path = "a.csv"\n[data.fields]\ntext = 1\n', "data.fields.text: 1 is not a string"),
        (DATA + 'path = "a.csv"\n[data.fields]\ntext = "label"\n', "data.label: 'label' is also a field"),
        (DATA + 'path = "a.csv"\n[data.where]\nkind = []\n', "data.where.kind: [] is no value to compare with"),
        (DATA + 'path = "a.csv"\n[data.where]\nkind = 0.5\n', "data.where.kind: 0.5 is no value"),
        (DATA + 'path = "a.csv"\n[data.where]\nkind = [{}]\n', "data.where.kind: [{}] is no value"),
        (DATA + 'path = "a.csv"\nlabel_index = 1\n', "data.label_index: 1 is not true or false"),
        (MINIMAL + "[splits]\ntrain = -1\n", "splits.train: -1 is below 1"),
        (MINIMAL + "[splits]\ntest = 0\n", "splits.test: 0 is below 1"),
        (MINIMAL + "[splits]\ncalibration = 2.5\n", "splits.calibration: 2.5 is not a whole number"),
        (MINIMAL + "[splits]\nshuffle = 1\n", "splits.shuffle: 1 is not true or false"),
        (MINIMAL + '[splits]\ntoo_long = "cut"\n', "splits.too_long: 'cut' is unknown; use error or skip"),
        (MINIMAL + '[answer]\nchoose = "any"\n', "answer.choose: 'any' is unknown; use labels or free"),
        (
            MINIMAL + '[answer]\nchoose = "labels"\nposition = "last"\n',
            'answer.position: belongs to choose = "free"; remove it',
        ),
        (
            MINIMAL + '[answer]\nchoose = "labels"\nmax_new_tokens = 1\n',
            'answer.max_new_tokens: belongs to choose = "free"; '
            "remove it: generation ends with the label, and a request may ask for more",
        ),
        (MINIMAL + 'chat = "yes"\n', "prompt.chat: 'yes' is unknown; use true, false, or \"auto\""),
        (MINIMAL + "chat = 1\n", "prompt.chat: 1 is unknown"),
        (MINIMAL + 'system = "Be brief."\n', "prompt.system: belongs to a chat; add chat = true"),
        (MINIMAL + 'chat = false\nsystem = "Be brief."\n', "prompt.system: belongs to a chat"),
        (MINIMAL + 'chat = true\nsystem = " "\n', "prompt.system: missing or blank"),
        (MINIMAL + "chat = true\nsystem = 3\n", "prompt.system: 3 is not a string"),
        (MINIMAL + "examples = -1\n", "prompt.examples: -1 is below 0"),
        (MINIMAL + "examples = 2.5\n", "prompt.examples: 2.5 is not a whole number"),
        (MINIMAL + "shots = 2\n", "prompt.shots: unknown key; known are template, chat, system, examples"),
    ],
)
def test_a_malformed_file_is_refused_in_one_line(write, content, says):
    file = write(content)
    with pytest.raises(BadTask) as caught:
        load_task(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    assert says in message
    assert "\n" not in message


@pytest.mark.parametrize(("written", "chat"), [("true", True), ("false", False), ('"auto"', None)])
def test_a_chat_is_asked_for_forbidden_or_left_to_the_model(write, written, chat):
    assert load_task(write(MINIMAL + f"chat = {written}\n")).chat is chat
    if chat is not False:
        task = load_task(write(MINIMAL + f'chat = {written}\nsystem = "Be brief."\nexamples = 4\n'))
        assert (task.system, task.examples) == ("Be brief.", 4)


@pytest.mark.parametrize("given", ['position = "last"', "max_new_tokens = 1", 'max_new_tokens = 8\nposition = "exact"'])
def test_a_file_of_before_keeps_its_free_answer_and_is_told_so(write, given):
    task = load_task(write(MINIMAL + f"[answer]\n{given}\n"))
    assert task.choose == "free"
    (note,) = task.notes
    assert note.startswith("answer: free, because ")
    assert 'say choose = "free"' in note
    assert "\n" not in note
    assert load_task(write(MINIMAL + f'[answer]\nchoose = "free"\n{given}\n')).notes == ()
    said = load_task(write(MINIMAL + '[answer]\nchoose = "free"\n'))
    assert (said.choose, said.position, said.max_new_tokens, said.notes) == ("free", "last", 1, ())


def test_labels_may_be_whole_numbers(write):
    task = load_task(
        write(MINIMAL.replace('["ham", "spam"]', "[0, 1]").replace("[prompt]", '[variants]\n1 = ["one"]\n[prompt]'))
    )
    assert task.labels == ("0", "1")
    assert task.variants == (("0", " 0"), ("one",))


def test_a_byte_order_mark_is_no_content(write):
    assert load_task(write(b"\xef\xbb\xbf" + MINIMAL.encode())).name == "mine"


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(BadTask, match=r"absent\.toml: cannot be read"):
        load_task(str(tmp_path / "absent.toml"))
    with pytest.raises(BadTask, match="cannot be read"):
        load_task(tmp_path)


def test_builtin_tasks_load_and_carry_their_file_name():
    assert builtin_names() == BUILTIN
    for name in builtin_names():
        assert load_task(name).name == name
    spam = load_task("sms_spam")
    assert spam.labels == ("ham", "spam")
    assert spam.data == DataSource("label", hub="ucirvine/sms_spam", split="train", fields={"text": "sms"})
    assert spam.splits == SplitSizes(3000, 250, 250, shuffle=False)


@pytest.mark.parametrize("name", ["nope", "", ".", "..", "sms spam"])
def test_an_unknown_name_is_told_the_known_ones(name):
    with pytest.raises(UnknownTask, match=r"known are .*, sms_spam, yes_no_question, or give the path"):
        load_task(name)


def test_search_folders_come_before_the_builtin_tasks(write, tmp_path):
    write(MINIMAL)
    write(MINIMAL.replace('"mine"', '"sms_spam"'), "sms_spam.toml")
    assert load_task("mine", search=(tmp_path / "absent", tmp_path)).name == "mine"
    assert load_task("sms_spam", search=(tmp_path,)).template == "Is {text} spam?"
    assert builtin_names((tmp_path,)) == ("mine", *BUILTIN)


def test_a_task_found_by_name_must_carry_it(write, tmp_path):
    write(MINIMAL, "other.toml")
    with pytest.raises(BadTask, match="'mine' differs from the file's name"):
        load_task("other", search=(tmp_path,))
    assert load_task(tmp_path / "other.toml").name == "mine"


def test_a_data_file_replaces_the_source_and_keeps_the_label_column(write, tmp_path):
    rows = tmp_path / "rows.jsonl.gz"
    assert load_task("sms_spam", data=rows).data == DataSource("label", path=rows, fields={"text": "sms"})
    mmlu = load_task("mmlu_professional", data=rows).data
    assert mmlu == DataSource("answer", path=rows, label_index=True)
    assert load_task("yes_no_question", data=rows).data == DataSource(
        "answer", path=rows, fields={"text": "user_prompt"}
    )
    assert load_task(write(DATA + 'path = "a.csv"\nlabel = "class"\n'), data=rows).data == DataSource("class", rows)
    assert load_task(write(MINIMAL), data=rows).data == DataSource("label", rows)
    with pytest.raises(BadTask, match="ends in none of"):
        load_task("sms_spam", data=tmp_path / "rows.xlsx")


def test_what_the_package_exports_is_what_it_says():
    assert sorted(tasks.__all__) == list(tasks.__all__)
    assert all(hasattr(tasks, name) for name in tasks.__all__)
