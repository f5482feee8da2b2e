"""A reader's own data: every damage has its message, no text is in two splits."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from zolab.errors import ZolabError
from zolab.tasks import TableError, overlap, read_table, write_csv
from zolab.tasks.tables import same_text


def table_of(tmp_path, content, **options):
    path = tmp_path / "t.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_table(path, **options)


GOOD = 'text,label\n"A fine, moving film.",good\nA bore.,bad\nSplendid!,good\n'


@pytest.mark.parametrize(
    "content",
    [
        GOOD,
        GOOD.replace("\n", "\r\n"),
        b"\xef\xbb\xbf" + GOOD.encode(),
        GOOD.rstrip("\n"),
        GOOD + "\n\n",
        'label;id;text\ngood;1;"A fine, moving film."\nbad;2;A bore.\ngood;3;Splendid!',
        "text\tlabel\nA fine, moving film.\tgood\nA bore.\tbad\nSplendid!\tgood\n",
        GOOD.replace("fine, moving", "fine,\nmoving"),
        GOOD.replace("text,label", " text , label "),
    ],
)
def test_what_spreadsheets_write_is_read(tmp_path, content):
    table = table_of(tmp_path, content)
    assert table.labels == ("bad", "good")
    texts = ["A fine, moving film.", "A bore.", "Splendid!"]
    assert [s.text for s in table.sentences] == texts
    assert [s.label for s in table.sentences] == [1, 0, 1]
    assert not table.left_out


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        ("", {}, "no column 'text'; there are none"),
        ("text,label\n", {}, "empty"),
        (GOOD, {"label": "stars"}, "no column 'stars'; there are text, label"),
        ("text,text,label\na,b,c\n", {}, "more than one column 'text'"),
        ("text,label\na,1\n  ,0\n", {}, "line 3: the text is empty"),
        ("text,label\na,1\nb,\n", {}, "line 3: the label is empty"),
        ("text,label\na,1\nb,1\n", {}, r"one label: 1 \(2 rows\)"),
        ("text,label\na,1\nb,2\nc,3\n", {}, "3 labels: .* two words to choose from"),
        ("text,label\na,1\nb,2\nc,3\n", {"labels": ("1", "4")}, "expected two of"),
        ("text,label\na,1\nb,2\n", {"labels": ("1",)}, "expected two of"),
        ("text,label\nso, so,1\n", {}, "line 2: 3 fields, the first line names 2"),
        ("text,label\nso\n", {}, "line 2: 1 fields"),
        (GOOD.replace("Splendid", "Gl\xfchend").encode("latin-1"), {}, "line 4: not"),
        (GOOD.encode("utf-16"), {}, "line 1: not UTF-8"),
        ('text,label\n"a"b,1\n', {}, "line 2: "),
        ('text,label\n"open,1\n', {}, "line 2: unexpected end"),
        (GOOD, {"empty": "ignore"}, "expected 'raise' or 'drop'"),
    ],
)
def test_damage_is_named(tmp_path, content, options, said):
    with pytest.raises(TableError, match=said):
        table_of(tmp_path, content, **options)


def test_a_missing_file_and_a_folder_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("films.csv", "./films", "~/no such films.tsv"):
        with pytest.raises(TableError, match="no file"):
            read_table(name)
    with pytest.raises(TableError, match="is a folder"):
        read_table(tmp_path)


def test_two_of_three_labels_in_the_order_asked(tmp_path):
    content = "text,label\na,1\nb,2\nc,3\nd,1\n"
    table = table_of(tmp_path, content, labels=("3", "1"))
    assert table.labels == ("3", "1")
    assert [(s.text, s.label) for s in table.sentences] == [
        ("a", 1),
        ("c", 0),
        ("d", 1),
    ]
    assert table.left_out == {"label 2": 1}


def test_copies_count_once_and_contradictions_not_at_all(tmp_path):
    content = (
        "text,label\nA bore.,bad\n a  BORE!,bad\nFine.,good\nSo so.,bad\n"
        "so-so,good\n,good\n👍,good\n👎,bad\nСкучно,bad\nСКУЧНО!,bad\nОтлично,good\n"
    )
    table = table_of(tmp_path, content, empty="drop")
    texts = [s.text for s in table.sentences]
    assert texts == ["A bore.", "Fine.", "👍", "👎", "Скучно", "Отлично"]
    assert table.left_out == {
        "duplicate": 2,
        "same text, two labels": 2,
        "empty text": 1,
    }


def test_no_text_is_in_two_splits_and_all_are_in_one():
    table = read_table("embedded")
    parts = table.splits(dev=0.1, test=0.2)
    assert not overlap(parts.train, parts.test)
    assert not overlap(parts.train, parts.dev)
    assert not overlap(parts.dev, parts.test)
    sizes = [len(p) for p in (parts.train, parts.dev, parts.test)]
    assert sum(sizes) == len(table.sentences) == 3000
    assert 500 < sizes[2] < 700
    assert 220 < sizes[1] < 380


def test_a_split_is_a_function_of_the_text_alone(tmp_path):
    """Other order, other rows, other case: a test sentence stays one."""
    table = read_table("embedded")
    before = table.splits().test
    path = write_csv(tmp_path / "all.csv", table)
    assert read_table(path).sentences == table.sentences
    head, *rows = path.read_text("utf-8").splitlines()
    more = [head, "An entirely new sentence.,praise", *reversed(rows[:2000])]
    path.write_text("\n".join(s.upper() for s in more).replace("TEXT,LABEL", head))
    after = read_table(path).splits()
    was = {same_text(s.text) for s in before}
    now = {same_text(s.text) for s in after.test}
    everywhere = {same_text(s.text) for s in table.sentences[:2000]}
    assert was & everywhere == now - {same_text("An entirely new sentence.")}


def test_too_few_rows_to_split_are_refused(tmp_path):
    with pytest.raises(TableError, match="has no sentence labelled"):
        table_of(tmp_path, GOOD).splits()
    with pytest.raises(TableError, match="shares"):
        table_of(tmp_path, GOOD).splits(dev=0.5, test=0.5)


def test_without_the_package_datasets_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ZolabError, match="no file is called 'rotten_tomatoes'.*pip in"):
        read_table("rotten_tomatoes")


class Rows(list):
    column_names = ("text", "label")
    features = {"label": SimpleNamespace(names=["neg", "pos"])}  # noqa: RUF012


def test_a_data_set_names_its_labels(monkeypatch):
    asked = []

    def load_dataset(name, config, *, split):
        asked.append((name, config, split))
        rows = [("a bore", 0), ("fine", 1), ("unknown", -1), (None, 0)]
        return Rows({"text": t, "label": y} for t, y in rows)

    fake = SimpleNamespace(__version__="4.1.0", load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    table = read_table("owner/films", config="small", split="test", empty="drop")
    assert asked == [("owner/films", "small", "test")]
    assert table.labels == ("neg", "pos")
    assert [(s.text, s.label) for s in table.sentences] == [("a bore", 0), ("fine", 1)]
    assert table.left_out == {"empty label": 1, "empty text": 1}
    with pytest.raises(TableError, match="row 2: the label is empty"):
        read_table("owner/films")
    with pytest.raises(TableError, match="no column 'stars'; there are text, label"):
        read_table("owner/films", label="stars")


def test_a_data_set_that_cannot_be_had_says_why(monkeypatch):
    def load_dataset(*args, **options):
        raise ConnectionError("no network")

    fake = SimpleNamespace(__version__="4.1.0", load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    with pytest.raises(TableError, match="ConnectionError: no network"):
        read_table("films")
    fake.__version__ = "3.6.0"
    with pytest.raises(TableError, match="own code"):
        read_table("films")


def test_a_split_is_the_same_in_another_process():
    code = (
        "from zolab.tasks import read_table\n"
        "print(hash(0), [s.text for s in read_table('embedded').splits().test][:5])"
    )
    seeds = ("1", "2")
    out = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in seeds
    }
    assert len(out) == 1
