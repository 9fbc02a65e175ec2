"""Look for what distorts results in a division: rows without labels, overlap, duplicates, conflicting labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int64, UInt8

from deephash_cli.data.fingerprints import HASH_BITS, Fingerprints
from deephash_cli.data.identity import composed
from deephash_cli.errors import short

ROLES = ("query", "train", "database")
NEAR = 2  # largest Hamming distance of two difference hashes of 64 bits that count as near
_SHOWN = 5  # examples of a finding
_SENTENCES = 100  # sentences of readers that are listed
_WORDS = {
    "query": ("query", "queries"),
    "train": ("training image", "training images"),
    "database": ("image of the database", "images of the database"),
    "image": ("image", "images"),
    "content": ("content", "contents"),
    "class": ("class", "classes"),
}
_LABELLED = ("query", "train")  # parts in which an image without a label is a fault

Grade = Literal["fault", "fact"]
Rows = Int64[np.ndarray, "_"]


@dataclass(frozen=True, eq=False)
class Division:
    """What is known of a division: of a data set, of a folder of codes, or of a file of ids alone.

    Attributes:
        title: What it is, for people.
        ids: One id for each image.
        parts: Row numbers of each part; a part may lack.
        labels: Multi-hot labels (n, classes); None if they are not known. No columns mean a data set without labels.
        class_names: One name for each column of ``labels``; empty if they are not known.
        split: Name, version, seed and digest of the division, those that are known.
        codes: Packed codes (n, bytes); None if there are none.
        faults: Sentences about what a reader could not use.
    """

    title: str
    ids: Sequence[str]
    parts: dict[str, Rows]
    labels: UInt8[np.ndarray, "n classes"] | None = None
    class_names: Sequence[str] = ()
    split: Mapping[str, Any] = field(default_factory=dict)
    codes: UInt8[np.ndarray, "n bytes"] | None = None
    faults: Sequence[str] = ()

    @property
    def used(self) -> Rows:
        """Rows that are in a part, ascending."""
        return np.flatnonzero(np.any([self.members(role) for role in ROLES], axis=0))

    def members(self, role: str) -> Bool[np.ndarray, " n"]:
        """Return for each row whether it is in a part."""
        is_member = np.zeros(len(self.ids), bool)
        is_member[self.parts.get(role, np.zeros(0, np.int64))] = True
        return is_member


class _Findings:
    """Findings in the order in which they are made."""

    def __init__(self, ids: Sequence[str]) -> None:
        self._ids = ids
        self.all: list[dict[str, Any]] = []

    def add(
        self,
        grade: Grade,
        name: str,
        count: int,
        text: str,
        rows: Sequence[int] | Rows = (),
        examples: Sequence[str] = (),
    ) -> None:
        """Add a finding, unless its count is 0.

        Args:
            grade: ``fault`` distorts results, ``fact`` is to be known.
            name: Name for programs.
            count: Number of images, or of what ``text`` says.
            text: What is found, as a clause that starts with the count.
            rows: Rows that are concerned, of which some are named.
            examples: Other texts to show instead.
        """
        if count:
            shown = [*examples] or [self._ids[int(row)] for row in rows[:_SHOWN]]
            self.all.append({"grade": grade, "name": name, "count": count, "text": text, "examples": shown})


def examine(found: Division, prints: Fingerprints | None) -> dict[str, Any]:
    """Describe a division and grade what is found, as a dictionary that can be written as JSON.

    Args:
        found: The division.
        prints: Digests of the rows that it uses; None if the contents are not available.

    Returns:
        The facts about the division; its entry ``findings`` has a grade, name, count, text and examples for each
        finding. The grade is ``fault`` for what distorts results, and ``fact`` for what a reader should know.
    """
    findings = _Findings(found.ids)
    for sentence in found.faults[:_SENTENCES]:
        findings.add("fault", "reading", 1, sentence)
    unlisted = len(found.faults) - _SENTENCES
    findings.add("fault", "reading", max(0, unlisted), f"{unlisted} more sentences of this kind")
    described = {
        "audit": found.title,
        "split": dict(found.split),
        "images": len(found.ids),
        "unused": len(found.ids) - len(found.used),
        "classes": None if found.labels is None else found.labels.shape[1],
        "parts": {role: _part(found, role) for role in found.parts},
        "overlap": _overlap(found, findings),
        "per_class": _per_class(found),
    }
    _look_at_labels(found, described["parts"], findings)
    unused = described["unused"]
    findings.add("fact", "unused", unused, f"{_some(unused, 'image', 'is', 'are')} in no part")
    if prints is not None:
        for position, reason in prints.unreadable[:_SHOWN]:
            findings.add("fault", "unreadable", 1, f"image {found.ids[int(prints.rows[position])]} {reason}")
        more = len(prints.unreadable) - _SHOWN
        findings.add("fault", "unreadable", max(0, more), f"{more} more of the images cannot be read")
        described["duplicates"] = _duplicates(found, prints, findings)
        if prints.hashes is not None:
            described["near_duplicates"] = _near_duplicates(found, prints, findings)
    if found.codes is not None:
        described["codes"] = _codes(found, findings)
    return {**described, "findings": findings.all}


def _part(found: Division, role: str) -> dict[str, Any]:
    rows = found.parts[role]
    described: dict[str, Any] = {"images": len(rows)}
    if found.labels is None or not found.labels.shape[1]:
        return described
    labels = found.labels[rows]
    each = labels.sum(axis=1, dtype=np.int64)
    sizes = labels.sum(axis=0, dtype=np.int64)
    described["without_label"] = int((each == 0).sum())
    if len(rows):
        counts = np.bincount(each)
        described["labels_per_image"] = {
            "min": int(each.min()),
            "mean": float(each.mean()),
            "max": int(each.max()),
            "histogram": {str(number): int(counts[number]) for number in np.flatnonzero(counts)},
        }
        smallest, largest = int(sizes.argmin()), int(sizes.argmax())
        described["smallest_class"] = {"name": _class_name(found, smallest), "images": int(sizes[smallest])}
        described["largest_class"] = {"name": _class_name(found, largest), "images": int(sizes[largest])}
        described["class_ratio"] = float(sizes[largest] / sizes[smallest]) if sizes[smallest] else None
    return described


def _some(count: int, what: str, one: str, many: str) -> str:
    """Return the start of a sentence about some images of a part, up to its verb, such as "1 query has"."""
    return f"{count} {_WORDS[what][count != 1]} {one if count == 1 else many}"


def _class_name(found: Division, column: int) -> str:
    return found.class_names[column] if found.class_names else f"class {column}"


def _per_class(found: Division) -> dict[str, dict[str, int]]:
    if found.labels is None:
        return {}
    sums = {role: found.labels[rows].sum(axis=0, dtype=np.int64).tolist() for role, rows in found.parts.items()}
    columns = range(found.labels.shape[1])
    return {_class_name(found, column): {role: own[column] for role, own in sums.items()} for column in columns}


def _overlap(found: Division, findings: _Findings) -> dict[str, int]:
    """Count the images that are in two parts."""
    counts = {}
    for one, other in (("query", "train"), ("query", "database"), ("train", "database")):
        if one not in found.parts or other not in found.parts:
            continue
        both = np.flatnonzero(found.members(one) & found.members(other))
        name = f"{one}_in_{other}"
        counts[name] = len(both)
        grade: Grade = "fault" if name == "query_in_train" else "fact"
        text = f"{_some(len(both), one, 'is', 'are')} also among the {_WORDS[other][1]}"
        findings.add(grade, name, len(both), text, both if name != "train_in_database" else ())
    return counts


def _look_at_labels(found: Division, parts: Mapping[str, Any], findings: _Findings) -> None:
    if found.labels is None or not found.labels.shape[1]:
        return
    for role, rows in found.parts.items():
        grade: Grade = "fault" if role in _LABELLED else "fact"
        bare = rows[~found.labels[rows].any(axis=1)]
        count = parts[role]["without_label"]
        findings.add(grade, f"{role}_without_label", count, f"{_some(count, role, 'has', 'have')} no label", bare)
        sizes = found.labels[rows].sum(axis=0, dtype=np.int64)
        empty = [_class_name(found, int(column)) for column in np.flatnonzero(sizes == 0)]
        text = f"{_some(len(empty), 'class', 'has', 'have')} no {_WORDS[role][1]}"
        findings.add("fact", f"classes_without_{role}", len(empty), text, examples=empty[:_SHOWN])


def _duplicates(found: Division, prints: Fingerprints, findings: _Findings) -> dict[str, Any]:
    """Count the rows that have the content of another row, and say where these are."""
    groups, rows = prints.groups(), prints.rows
    sizes = np.bincount(groups)
    member = {role: found.members(role)[rows] for role in found.parts}
    described: dict[str, Any] = {
        "groups": int((sizes > 1).sum()),
        "repeated": int(len(rows) - len(sizes)),
        "within": {role: int(own.sum() - len(np.unique(groups[own]))) for role, own in member.items()},
    }
    text = f"{_some(described['repeated'], 'image', 'repeats', 'repeat')} the content of another one"
    order = np.argsort(groups, kind="stable")
    repeats = order[1:][groups[order][1:] == groups[order][:-1]]
    findings.add("fact", "duplicates", described["repeated"], text, examples=_pairs(found, prints, repeats, groups))
    for one, other in (("query", "train"), ("query", "database"), ("train", "database")):
        if one not in member or other not in member:
            continue
        there = np.bincount(groups, weights=member[other])[groups] - member[other]  # other rows of the same content
        both = np.flatnonzero(member[one] & (there > 0))
        described[f"{one}_{other}"] = len(both)
        grade: Grade = "fault" if one == "query" else "fact"
        text = f"{_some(len(both), one, 'has', 'have')} the content of another one among the {_WORDS[other][1]}"
        findings.add(grade, f"duplicates_{one}_{other}", len(both), text, rows[both])
    described["conflicts"] = 0
    if found.labels is not None and found.labels.shape[1]:
        conflicts = _conflicts(groups, found.labels[rows])
        described["conflicts"] = len(conflicts)
        text = f"{_some(len(conflicts), 'content', 'occurs', 'occur')} with different labels"
        first = order[np.searchsorted(groups[order], conflicts)]
        findings.add("fault", "conflicting_labels", len(conflicts), text, rows[first])
    return described


def _conflicts(groups: Rows, labels: UInt8[np.ndarray, "m classes"]) -> Rows:
    """Return the groups of equal content in which two rows with labels have different ones, ascending."""
    labelled = np.flatnonzero(labels.any(axis=1) & (np.bincount(groups) > 1)[groups])
    if not len(labelled):
        return labelled
    kinds = np.unique(labels[labelled], axis=0, return_inverse=True)[1].reshape(-1)
    different = np.unique(np.stack([groups[labelled], kinds], axis=1), axis=0)[:, 0]
    return np.unique(different[1:][different[1:] == different[:-1]])


def _pairs(found: Division, prints: Fingerprints, repeats: Rows, groups: Rows) -> list[str]:
    """Name some rows that repeat a content, each with the first row that has it."""
    ids = [found.ids[row] for row in prints.rows[repeats[:_SHOWN]].tolist()]
    firsts = [int((groups == groups[position]).argmax()) for position in repeats[:_SHOWN]]
    return [f"{found.ids[int(prints.rows[at])]} = {name}" for at, name in zip(firsts, ids, strict=True)]


def _near_duplicates(found: Division, prints: Fingerprints, findings: _Findings) -> dict[str, Any]:
    """Count the pairs of images whose difference hashes are near and whose contents differ."""
    groups = prints.groups()
    member = {role: found.members(role)[prints.rows] for role in found.parts}
    pairs, images, examples = 0, 0, []
    queries = {role: 0 for role in ("train", "database") if "query" in member and role in member}
    rows = prints.rows.tolist()
    for position, others in enumerate(prints.near(NEAR)):
        others = others[groups[others] != groups[position]]
        if not len(others):
            continue
        images += 1
        later = others[others > position]
        pairs += len(later)
        if len(later) and len(examples) < _SHOWN:
            examples.append(f"{found.ids[rows[position]]} ~ {found.ids[rows[int(later[0])]]}")
        for role in queries:
            queries[role] += bool(member["query"][position] and member[role][others].any())
    text = (
        f"{_some(images, 'image', 'looks', 'look')} like another one: the difference hashes of {pairs} pairs have a "
        f"Hamming distance of at most {NEAR} of {HASH_BITS} bits"
    )
    findings.add("fact", "near_duplicates", images, text, examples=examples)
    for role, count in queries.items():
        text = f"{_some(count, 'query', 'looks', 'look')} like one of the {_WORDS[role][1]}"
        findings.add("fact", f"near_query_{role}", count, text)
    return {
        "hash": f"difference hash of {HASH_BITS} bits, Hamming distance of at most {NEAR}",
        "pairs": pairs,
        "images": images,
        **{f"query_{role}": count for role, count in queries.items()},
    }


def _codes(found: Division, findings: _Findings) -> dict[str, int]:
    """Count the different codes of each part. Equal codes are what hashing is for, so they are no fault."""
    codes = found.codes
    assert codes is not None
    different = {role: len(np.unique(codes[rows], axis=0)) for role, rows in found.parts.items()}
    for role, count in different.items():
        repeated = len(found.parts[role]) - count
        text = f"{_some(repeated, role, 'repeats', 'repeat')} the code of another one; different codes: {count}"
        findings.add("fact", f"repeated_codes_{role}", repeated, text)
    return different


def differences(first: Division, second: Division) -> dict[str, Any]:
    """Say how two divisions differ, as a dictionary that can be written as JSON. Rows are told apart by their ids.

    Only the parts that both have are compared: codes, for instance, have no training set.

    Returns:
        ``same_digest``: whether their digests are equal, None if one is not known. ``only_in_first`` and
        ``only_in_second``: the number of ids that the other does not have in any of these parts. ``parts``: these two
        numbers and the common one for each part. ``moved``: the number of ids that both have, in other parts.
        ``different_labels``: the number of ids with other labels; None if labels cannot be compared. ``labels``: how
        they were compared, or why not. ``examples``: some ids of each kind.
    """
    roles = [role for role in ROLES if role in first.parts and role in second.parts]
    places = [_places(division, roles) for division in (first, second)]
    both = places[0].keys() & places[1].keys()
    only = [sorted(place.keys() - both) for place in places]
    moved = sorted(name for name in both if places[0][name][1] != places[1][name][1])
    parts = {}
    for role in roles:
        own = [{name for name, (_, member_of) in place.items() if role in member_of} for place in places]
        parts[role] = {
            "common": len(own[0] & own[1]),
            "only_in_first": len(own[0] - own[1]),
            "only_in_second": len(own[1] - own[0]),
        }
    rows = [[place[name][0] for name in sorted(both)] for place in places]
    different, reason = _different_labels(first, second, *rows)
    digests = [division.split.get("sha256") for division in (first, second)]
    names = sorted(both)
    return {
        "first": first.title,
        "second": second.title,
        "same_digest": None if None in digests else digests[0] == digests[1],
        "only_in_first": len(only[0]),
        "only_in_second": len(only[1]),
        "moved": len(moved),
        "parts": parts,
        "different_labels": None if different is None else len(different),
        "labels": reason,
        "examples": {
            "only_in_first": only[0][:_SHOWN],
            "only_in_second": only[1][:_SHOWN],
            "moved": moved[:_SHOWN],
            "different_labels": [names[at] for at in ([] if different is None else different[:_SHOWN])],
        },
    }


def _places(division: Division, roles: Sequence[str]) -> dict[str, tuple[int, tuple[str, ...]]]:
    """Return the row of each id that is in one of some parts, and those of them that it is in."""
    member = {role: division.members(role) for role in roles}
    rows = np.flatnonzero(np.any([*member.values()], axis=0))
    return {
        composed(division.ids[row]): (row, tuple(role for role in roles if member[role][row])) for row in rows.tolist()
    }


def _different_labels(
    first: Division, second: Division, rows: Sequence[int], others: Sequence[int]
) -> tuple[Rows | None, str]:
    """Return the positions at which labels differ, or None and the reason why they cannot be compared."""
    if first.labels is None or second.labels is None:
        return None, "one of the two has no labels to compare"
    widths = [first.labels.shape[1], second.labels.shape[1]]
    columns = np.arange(widths[1])
    by = "compared by the order of the columns"
    if first.class_names and second.class_names:
        if sorted(first.class_names) == sorted(second.class_names):
            place = {name: column for column, name in enumerate(second.class_names)}
            columns, by = np.array([place[name] for name in first.class_names], int), "compared by the names of classes"
        elif widths[0] == widths[1]:
            by = f"{by}, because the names of classes differ"
    if widths[0] != widths[1]:
        return None, f"{widths[0]} and {widths[1]} label columns cannot be compared"
    one, other = first.labels[np.array(rows, int)], second.labels[np.array(others, int)][:, columns]
    return np.flatnonzero((one != other).any(axis=1)), by


def faults(described: Mapping[str, Any]) -> list[str]:
    """Return the texts of the findings that distort results."""
    return [finding["text"] for finding in described["findings"] if finding["grade"] == "fault"]


def named(finding: Mapping[str, Any]) -> str:
    """Return the text of a finding, with its examples."""
    examples = ", ".join(map(short, finding["examples"]))
    more = ", ..." if examples and finding["count"] > len(finding["examples"]) else ""
    return finding["text"] + (f": {examples}{more}" if examples else "")
