"""Damaged and oddly written lists, tables and ids give the data set that was meant, or one sentence."""

import unicodedata
from collections.abc import Callable
from pathlib import Path

import mutations
import numpy as np
import pytest
from PIL import Image

from deephash_cli.data.csv_table import csv_table
from deephash_cli.data.dataset import RetrievalDataset
from deephash_cli.data.image_list import image_list
from deephash_cli.data.vectors import vectors

NAMES = ("a.png", "b 2.png", "é.png", "d,4.png", "sub/e.png", "IMG (6).png", "g.png", "h.png")
CLASSES = {
    "a.png": ["red", "shoe"],
    "b 2.png": ["blue"],
    "é.png": ["café"],
    "d,4.png": ["red"],
    "sub/e.png": ["blue", "shoe"],
    "IMG (6).png": ["café"],
    "g.png": ["blue"],
    "h.png": ["red", "café"],
}
ORDER = ("blue", "café", "red", "shoe")
QUERIES = NAMES[6:]


def quoted(name: str) -> str:
    return f'"{name}"' if "," in name else name


TABLE = "path,labels,split\n" + "".join(
    f"{quoted(name)},{';'.join(CLASSES[name])},{'query' if name in QUERIES else 'train;database'}\n" for name in NAMES
)
LISTS = {
    role: "".join(f"{name}\t{' '.join(str(int(c in CLASSES[name])) for c in ORDER)}\n" for name in names)
    for role, names in (("train", NAMES[:6]), ("query", QUERIES))
}
IDS = "".join(f"{name}\n" for name in NAMES)


@pytest.fixture
def images() -> Path:
    """Eight images of 8 x 8 pixels in the current folder, named as in the tables."""
    Path("sub").mkdir()
    for number, name in enumerate(NAMES):
        Image.fromarray(np.full((8, 8, 3), 30 * number, np.uint8)).save(name)
    return Path.cwd()


def load_table(text: bytes) -> RetrievalDataset:
    Path("table.csv").write_bytes(text)
    return csv_table(None, "table.csv")


def load_list(text: bytes) -> RetrievalDataset:
    Path("train.txt").write_bytes(text)
    Path("query.txt").write_bytes(LISTS["query"].encode())
    return image_list(".", "train.txt", "query.txt", None)


def untouched(original: str, changed: bytes) -> list[str]:
    """Return the images of the lines that are in both texts."""
    text = changed.decode("utf-8", errors="surrogateescape").replace("\r\n", "\n").removeprefix("\ufeff")
    lines = text.split("\n")
    return [
        name
        for name in NAMES
        for line in original.splitlines()
        if line.startswith((f"{quoted(name)},", f"{name}\t")) and line in lines
    ]


def different(dataset: RetrievalDataset, names: list[str], root: Path, columns: bool) -> str | None:
    """Return how a data set differs from what was meant by the lines of these images; None if it does not.

    Args:
        dataset: The data set that was loaded.
        names: Images whose lines are as they were.
        root: Folder of the images.
        columns: Whether the columns are those that they were; else a table may have no labels and no parts.
    """
    rows: dict[Path, list[int]] = {}
    for row, identifier in enumerate(dataset.ids):
        rows.setdefault((root / identifier).resolve(), []).append(row)
    places = {name: rows.get((root / name).resolve(), []) for name in names}
    for name, found in places.items():
        if len(found) != 1:
            return f"{name} is in {len(found)} rows of {dataset.ids}"
    for name in names if columns or dataset.class_names else ():
        for other in names:
            similar = bool((dataset.labels[places[name][0]] & dataset.labels[places[other][0]]).any())
            if similar != bool({*CLASSES[name]} & {*CLASSES[other]}):
                return f"{name} and {other} count as {'' if similar else 'not '}similar, classes {dataset.class_names}"
    for role, wanted in (("query", QUERIES), ("train", NAMES[:6])) if columns else ():
        part = (dataset.official or {}).get(role, np.zeros(0, np.int64)).tolist()
        for name in names:
            if (places[name][0] in part) != (name in wanted):
                return f"{name} is {'not ' if name in wanted else ''}in the part {role}"
    return None


def check(
    load: Callable[[bytes], RetrievalDataset], changed: bytes, names: list[str], root: Path, columns: bool = True
) -> str | None:
    """Return what is wrong with what is loaded from a changed text; None if it is what was meant, or refused."""
    dataset, wrong = mutations.refusal(lambda: load(changed))
    if wrong is None and dataset is not None:
        wrong = different(dataset, names, root, columns)
    return wrong


KINDS = {"table": (load_table, TABLE), "list": (load_list, LISTS["train"])}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("numbers", mutations.chunks(40, 1040))
def test_damaged_lists_and_tables(images, kind, numbers):
    load, original = KINDS[kind]
    failures = []
    for number in numbers:
        rng = mutations.rng_of(number)
        if number % 2:
            changed = mutations.content(rng, original.encode())
        else:
            changed = mutations.text(rng, original).encode("utf-8", errors="surrogatepass")
        columns = changed.removeprefix(b"\xef\xbb\xbf").split(b"\n")[0].rstrip() == b"path,labels,split"
        wrong = check(load, changed, untouched(original, changed), images, kind == "list" or columns)
        if wrong:
            failures.append(f"{number}: {wrong}\n   {changed!r}")
    assert not failures, mutations.report(failures)


def each_line(change: Callable[[str], str], header: bool = False) -> Callable[[str], str]:
    """Return a function that changes each line of a text; the first line of a table only if ``header`` is true."""

    def all_lines(text: str) -> str:
        first = 0 if header or not text.startswith("path,") else 1
        lines = text.splitlines()
        return "".join(f"{line}\n" for line in [*lines[:first], *map(change, lines[first:])])

    return all_lines


def each_second_line(change: Callable[[str], str]) -> Callable[[str], str]:
    """Return a function that changes each second line of a text, but not the first line of a table."""
    numbers = iter(range(10**6))
    return each_line(lambda line: change(line) if next(numbers) % 2 else line)


def encoded(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("utf-8", errors="surrogatepass")


def words_instead_of(zero: str, one: str) -> Callable[[str], str]:
    """Return a function that writes other words for 0 and 1 into the label columns of a list."""

    def line(text: str) -> str:
        name, _, columns = text.partition("\t")
        return f"{name}\t{' '.join({'0': zero, '1': one}[column] for column in columns.split())}"

    return each_line(line)


def in_columns(*order: int) -> Callable[[str], str]:
    """Return a function that puts the columns of a table into another order; a column may occur twice."""

    def table(text: str) -> str:
        rows = [line.replace('"d,4.png"', "D4").split(",") for line in text.splitlines()]
        return "".join(",".join(row[i] for i in order).replace("D4", '"d,4.png"') + "\n" for row in rows)

    return table


def end(text: str) -> str:
    """Return what follows the path in a line of a table or a list: an image of the class blue."""
    return ",blue,train\n" if text.startswith("path,") else "\t1 0 0 0\n"


SPELLINGS: dict[str, Callable[[str], str | bytes]] = {
    "as it is": lambda text: text,
    "byte order mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "two byte order marks": lambda text: b"\xef\xbb\xbf" * 2 + text.encode(),
    "CRLF": lambda text: text.replace("\n", "\r\n"),
    "CR alone": lambda text: text.replace("\n", "\r"),
    "mixed line ends": lambda text: text.replace("\n", "\r\n", 3),
    "no last line end": lambda text: text.removesuffix("\n"),
    "empty lines at the end": lambda text: text + "\n\n\n",
    "an empty line in the middle": lambda text: text.replace("\nd", "\n\nd").replace('\n"d', '\n\n"d'),
    "a line of spaces": lambda text: text.replace("\ng", "\n   \ng") + "   \n",
    "spaces at the ends of lines": each_line(lambda line: f"{line}  "),
    "spaces at the starts of lines": each_line(lambda line: f"  {line}"),
    "Latin-1": lambda text: text.encode("latin-1"),
    "UTF-16": lambda text: text.encode("utf-16"),
    "UTF-16 without a mark": lambda text: text.encode("utf-16-le"),
    "UTF-32": lambda text: text.encode("utf-32"),
    "decomposed accents": lambda text: unicodedata.normalize("NFD", text),
    "accents of both forms": each_second_line(lambda line: unicodedata.normalize("NFD", line)),
    "a dot before each path": each_line(lambda line: f'"./{line[1:]}' if line[0] == '"' else f"./{line}"),
    "a dot before some paths": each_second_line(lambda line: f'"./{line[1:]}' if line[0] == '"' else f"./{line}"),
    "through the folder above": each_line(lambda line: f'"sub/../{line[1:]}' if line[0] == '"' else f"sub/../{line}"),
    "double slashes": lambda text: text.replace("sub/", "sub//"),
    "backslashes": lambda text: text.replace("sub/", "sub\\"),
    "each line twice": each_line(lambda line: f"{line}\n{line}"),
    "a comment": lambda text: f"# made by a program\n{text}",
    "a NUL": lambda text: text.replace("g.png", "g.png\0"),
    "an image twice in two spellings": lambda text: text + f"./{text[text.index('a.png') :].splitlines()[0]}\n",
    "an image twice with other labels": lambda text: f"{text}./a.png{end(text)}",
    "an overlong name": lambda text: f"{text}{'x' * 300}{end(text)}",
    "a folder instead of an image": lambda text: f"{text}sub{end(text)}",
}  # fmt: skip
TABLE_SPELLINGS: dict[str, Callable[[str], str | bytes]] = {
    "header in capitals": lambda text: text.replace("path,labels,split", "Path,Labels,Split"),
    "split in capitals": lambda text: text.replace("path,labels,split", "path,labels,Split"),
    "split in another form": lambda text: text.replace("path,labels,split", "path,labels,splits"),
    "split misspelt": lambda text: text.replace("path,labels,split", "path,labels,splt"),
    "labels in another form": lambda text: text.replace("path,labels,split", "path,label_s,split"),
    "labels misspelt": lambda text: text.replace("path,labels,split", "path,lables,split"),
    "parts in capitals": lambda text: text.replace("query", "Query").replace("train", "Train"),
    "spaces in the header": lambda text: text.replace("path,labels,split", " path , labels , split "),
    "quotes in the header": lambda text: text.replace("path,labels,split", '"path","labels","split"'),
    "no header": lambda text: text.partition("\n")[2],
    "header twice": lambda text: f"path,labels,split\n{text}",
    "header at the end": lambda text: text.partition("\n")[2] + "path,labels,split\n",
    "everything quoted": each_line(lambda line: ",".join(f'"{cell}"' for cell in line.split(","))
                                   if '"' not in line else line),
    "single quotes": each_line(lambda line: line.replace('"', "'"), header=True),
    "semicolons between columns": lambda text: text.replace(";", "|").replace(",", ";"),
    "tabs between columns": lambda text: text.replace(",", "\t"),
    "a space after each comma": lambda text: text.replace(",", ", "),
    "labels twice": in_columns(0, 1, 1, 2),
    "path twice": in_columns(0, 0, 1, 2),
    "split twice": in_columns(0, 1, 2, 2),
    "other order": in_columns(2, 1, 0),
    "index column of pandas": lambda text: f",{each_line(lambda line: f'7,{line}')(text)}",
    "another column": lambda text: each_line(lambda line: f"{line},x")(text).replace("split", "split,caption", 1),
    "a column without a name": each_line(lambda line: f"{line},", header=True),
    "a row with a further comma": lambda text: text.replace("g.png,blue,query", "g.png,blue,query,"),
    "a row with too few columns": lambda text: text.replace("g.png,blue,query", "g.png,blue"),
    "commas between labels": lambda text: text.replace("red;shoe", "red,shoe"),
    "lists as Python prints them": each_line(
        lambda line: line if '"' in line else
        f"{line.split(',')[0]},\"{line.split(',')[1].split(';')}\",{line.split(',')[2]}"
    ),
    "lists as JSON": each_line(
        lambda line: line if '"' in line else
        '{},"[""{}""]",{}'.format(*line.split(",")).replace(";", '"", ""', 1)
    ),
    "spaces in labels": lambda text: text.replace(",blue", ", blue").replace("red;", "red ; ").replace("café", "café "),
    "invisible characters in a label": lambda text: text.replace("g.png,blue", "g.png,blue\u200b"),
    "other spaces in a label": lambda text: text.replace("g.png,blue", "g.png,blue\u00a0"),
    "an open quote": lambda text: text.replace("g.png", '"g.png'),
    "a quote over several rows": lambda text: (
        text.replace("a.png,red", 'a.png,"red').replace("café,train", 'café",train', 1)
    ),
    "parts with commas": lambda text: text.replace("train;database", '"train,database"'),
    "other words for parts": lambda text: text.replace("query", "test"),
    "a label of several lines": lambda text: text.replace("g.png,blue", 'g.png,"blue\n"'),
}  # fmt: skip
LIST_SPELLINGS: dict[str, Callable[[str], str | bytes]] = {
    "-1 and 1": words_instead_of("-1", "1"),
    "decimals": words_instead_of("0.0", "1.0"),
    "truth values": words_instead_of("False", "True"),
    "commas between columns": lambda text: text.replace(" 0", ",0").replace(" 1", ",1"),
    "no spaces between columns": lambda text: text.replace("\t", "\n").replace(" ", "").replace("\n", "\t", 1),
    "two spaces between columns": lambda text: text.replace(" 0", "  0").replace(" 1", "  1"),
    "tabs between columns": lambda text: text.replace(" 0", "\t0").replace(" 1", "\t1"),
    "spaces instead of tabs": lambda text: text.replace("\t", " "),
    "a header": lambda text: f"path\tblue café red shoe\n{text}",
    "a header of numbers": lambda text: f"8 4\n{text}",
    "quotes around paths": each_line(lambda line: '"' + line.replace("\t", '"\t')),
    "one column fewer in a row": lambda text: text.replace("a.png\t0 0 1 1", "a.png\t0 0 1"),
    "other digits": lambda text: text.replace(" 1", " \u0661"),
    "other wide digits": lambda text: text.replace(" 1", " \uff11"),
}


@pytest.mark.parametrize("spelling", [*SPELLINGS, *TABLE_SPELLINGS])
def test_a_table_written_in_another_way(images, spelling):
    changed = encoded((SPELLINGS | TABLE_SPELLINGS)[spelling](TABLE))
    assert check(load_table, changed, list(NAMES), images) is None


@pytest.mark.parametrize("spelling", [*SPELLINGS, *LIST_SPELLINGS])
def test_a_list_written_in_another_way(images, spelling):
    changed = encoded((SPELLINGS | LIST_SPELLINGS)[spelling](LISTS["train"]))
    assert check(load_list, changed, list(NAMES), images) is None


@pytest.mark.parametrize("classes", [(0, 1), (0, 1, 2), (1, 2), (3, 17, 5), (-1, 0)])
def test_a_list_of_class_numbers_is_read_as_classes_or_refused(images, classes):
    """Images of the same class must not become images without a label."""
    numbers = {name: classes[i % len(classes)] for i, name in enumerate(NAMES)}
    for role, names in (("train", NAMES[:6]), ("query", QUERIES)):
        Path(f"{role}.txt").write_text("".join(f"{name}\t{numbers[name]}\n" for name in names))
    dataset, wrong = mutations.refusal(lambda: image_list(".", "train.txt", "query.txt", None))
    assert wrong is None
    if dataset is not None:
        similar = (dataset.labels.astype(int) @ dataset.labels.T > 0).tolist()
        wanted = [[numbers[a] == numbers[b] and numbers[a] >= 0 for b in dataset.ids] for a in dataset.ids]
        assert similar == wanted


@pytest.mark.parametrize("link", ["symbolic", "hard"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_second_name_of_an_image(images, kind, link):
    """A link may be an image of its own, the same image, or refused; no image is lost."""
    if link == "symbolic":
        Path("link.png").symlink_to("a.png")
    else:
        Path("link.png").hardlink_to("a.png")
    load, original = KINDS[kind]
    line = next(line for line in original.splitlines() if line.startswith("a.png"))
    changed = original + line.replace("a.png", "link.png") + "\n"
    dataset, wrong = mutations.refusal(lambda: load(changed.encode()))
    assert wrong is None
    assert dataset is None or {"a.png", "link.png"} & {*dataset.ids}


@pytest.mark.parametrize("numbers", mutations.chunks(30, 330))
def test_damaged_ids(numbers):
    np.save("x.npy", np.eye(8, 5, dtype=np.float32))
    failures = []
    for number in numbers:
        rng = mutations.rng_of(number)
        changed = mutations.content(rng, IDS.encode())
        Path("ids.txt").write_bytes(changed)
        dataset, wrong = mutations.refusal(lambda: vectors("x.npy", None, "ids.txt"))
        if dataset is not None:
            lines = changed.decode("utf-8-sig").replace("\r\n", "\n").removesuffix("\n").removesuffix("\r").split("\n")
            if dataset.ids != lines:
                wrong = f"the ids are {dataset.ids}"
        if wrong:
            failures.append(f"{number}: {wrong}\n   {changed!r}")
    assert not failures, mutations.report(failures)
