"""The dictionary of metrics: its keys, its values compared with loops, and changes that must not affect it."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deephash_cli.cli import limits
from deephash_cli.errors import ArtifactError, ConfigError, DataError
from deephash_cli.retrieval import asymmetric, ranking, scoring, similarity
from deephash_cli.retrieval.codes import CodeSet, pack
from deephash_cli.retrieval.codes_folder import load_codes, save_codes
from deephash_cli.retrieval.kernels import vectorized
from deephash_cli.retrieval.scoring import evaluate, self_matches

OPTIONS = {"ks": [1, 5, 20], "map_at": [5, 20], "radius": 2}


def sides(seed=0, q=6, n=40, bits=12, classes=4, multi=False, noise=0.25):
    rng = np.random.default_rng(seed)
    centers = rng.random((classes, bits)) < 0.5
    made = []
    for name, rows in (("q", q), ("d", n)):
        classes_of = rng.integers(0, classes, rows)
        labels = np.eye(classes, dtype=np.uint8)[classes_of]
        if multi:
            labels |= (rng.random((rows, classes)) < 0.2).astype(np.uint8)
        codes = centers[classes_of] ^ (rng.random((rows, bits)) < noise)
        made.append(CodeSet(pack(codes), bits, labels, [f"{name}{i}" for i in range(rows)]))
    return made


def with_u(side, seed=0):
    """The same side with continuous codes of random magnitudes."""
    codes = np.unpackbits(side.packed, axis=1, count=side.bits, bitorder="little").astype(np.bool_)
    u = np.where(codes, 1, -1) * np.random.default_rng(seed).uniform(0.1, 2, codes.shape)
    return CodeSet(side.packed, side.bits, side.labels, side.ids, u.astype(np.float16))


def reordered(side, order):
    u = None if side.u is None else side.u[order]
    return CodeSet(side.packed[order], side.bits, side.labels[order], [side.ids[i] for i in order], u)


def recoded(side, change):
    codes = np.unpackbits(side.packed, axis=1, count=side.bits, bitorder="little").astype(np.bool_)
    return CodeSet(pack(change(codes)), side.bits, side.labels, side.ids)


def numbered(side):
    """The same side with class numbers in place of multi-hot labels."""
    numbers = np.where(side.labels.any(axis=1), side.labels.argmax(axis=1), -1)
    return CodeSet(side.packed, side.bits, numbers, side.ids)


def test_keys_and_types():
    query, database = sides()
    result = evaluate(query, database, ks=[100, 5, 5], map_at=[20, 5], radius=2)
    assert list(result) == [
        "map",
        "map_stable",
        "map_best",
        "map_worst",
        *(f"map_at_{r}{kind}" for r in (5, 20) for kind in ("", "_stable", "_min", "_relevant")),
        "wap",
        "wap_at_5",
        "wap_at_20",
        "map_within_2",
        "precision_within_2",
        "recall_within_2",
        "empty_ball_rate",
        "confidence",
        "precision_at_k",
        "recall_at_k",
        "ndcg_at_k",
        "acg_at_k",
        "pr_by_radius",
        "pr_by_rank",
        "distances",
        "per_class",
        "hardest_queries",
        "bit_balance",
        "bit_correlation",
        "unique_code_ratio",
        "queries",
        "database",
        "bits",
        "queries_without_relevant",
        "k_beyond_database",
        "policies",
    ]
    for name in ("precision_at_k", "recall_at_k", "ndcg_at_k", "acg_at_k"):
        assert list(result[name]) == ["5", "100"]
    assert result["pr_by_radius"]["radius"] == list(range(13))
    assert result["pr_by_rank"]["rank"][0] == 1
    assert result["pr_by_rank"]["rank"][-1] == 40
    assert list(result["bit_balance"]) == ["mean_deviation", "max_deviation", "ones"]
    assert len(result["bit_balance"]["ones"]) == 12
    assert result["k_beyond_database"] == [100]
    assert (result["queries"], result["database"], result["bits"]) == (6, 40, 12)
    assert all(isinstance(sentence, str) for sentence in result["policies"].values())
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_continuous_codes_of_the_queries_add_asymmetric_numbers():
    bare, database = sides()
    query = with_u(bare)
    before, after = evaluate(bare, database, **OPTIONS), evaluate(query, database, **OPTIONS)
    added = {"map_asymmetric", "map_at_5_asymmetric", "map_at_20_asymmetric", "precision_at_k_asymmetric"}
    assert after.keys() - before.keys() == added
    assert next(iter(after)) == "map"  # it stays the headline
    assert after["policies"].pop("asymmetric") == asymmetric.POLICY
    low, high = after["confidence"].pop("map_asymmetric")
    assert low < after["map_asymmetric"] < high
    assert {name: value for name, value in after.items() if name not in added} == before
    numbers = scoring.numbers(after)
    assert numbers["map_asymmetric"] == after["map_asymmetric"]
    assert numbers["precision_at_5_asymmetric"] == after["precision_at_k_asymmetric"]["5"]


def test_asymmetric_numbers_treat_queries_like_the_others():
    """Queries that are in the database, and queries without a relevant item."""
    query, database = sides(q=4)
    query = with_u(CodeSet(query.packed, query.bits, query.labels, [database.ids[7], "x", "y", "z"]))
    query.labels[2:] = 0
    alone = [
        evaluate(reordered(query, [row]), reordered(database, [i for i in range(40) if row or i != 7]), **OPTIONS)
        for row in (0, 1)
    ]
    zero, skip = (evaluate(query, database, **OPTIONS, zero_hits=rule)["map_asymmetric"] for rule in ("zero", "skip"))
    assert skip == pytest.approx(sum(part["map_asymmetric"] for part in alone) / 2, rel=1e-12)
    assert zero == pytest.approx(skip / 2, rel=1e-12)


def test_curves_and_tables_fit_the_single_numbers():
    query, database = sides(q=30)
    result = evaluate(query, database, ks=[1, 7, 40], map_at=[], radius=3)
    by_rank = dict(zip(result["pr_by_rank"]["rank"], result["pr_by_rank"]["precision"], strict=True))
    assert by_rank[1] == result["precision_at_k"]["1"]
    assert by_rank[40] == result["precision_at_k"]["40"]
    assert result["pr_by_rank"]["recall"][-1] == pytest.approx(1, rel=1e-12)
    assert result["pr_by_radius"]["precision"][3] == result["precision_within_3"]
    assert result["pr_by_radius"]["recall"][3] == result["recall_within_3"]
    counted = [np.cumsum(result["distances"][side]) for side in ("relevant", "other")]
    assert sum(counts[-1] for counts in counted) == 30 * 40
    assert counted[0][-1] == sum(int((database.labels @ label > 0).sum()) for label in query.labels)
    per_class = result["per_class"]
    assert sum(per_class["queries"]) == 30
    weighted = sum(m * n for m, n in zip(per_class["map"], per_class["queries"], strict=True))
    assert weighted / 30 == pytest.approx(result["map"], rel=1e-12)
    for row in range(4):
        (queries,) = np.nonzero(query.labels[:, row])
        alone = evaluate(reordered(query, queries), database, ks=[], map_at=[], radius=3)
        assert per_class["map"][row] == pytest.approx(alone["map"], rel=1e-12)
    hardest = result["hardest_queries"]
    assert [entry["average_precision"] for entry in hardest] == sorted(e["average_precision"] for e in hardest)
    assert len(hardest) == scoring.HARDEST
    worst = evaluate(reordered(query, [query.ids.index(hardest[0]["query"])]), database, ks=[], map_at=[], radius=3)
    assert worst["map"] == hardest[0]["average_precision"]
    low, high = result["confidence"]["map"]
    assert low < result["map"] < high
    assert low > hardest[0]["average_precision"]


def test_a_class_without_queries_has_no_map():
    query, database = sides()
    labels = np.pad(query.labels, ((0, 0), (0, 1))), np.pad(database.labels, ((0, 0), (0, 1)))
    query, database = (
        CodeSet(side.packed, side.bits, wider, side.ids) for side, wider in zip((query, database), labels, strict=True)
    )
    result = evaluate(query, database, **OPTIONS)
    assert result["per_class"]["map"][4] is None
    assert result["per_class"]["queries"][4] == 0


def test_thousands_of_classes_have_no_table(monkeypatch):
    monkeypatch.setattr(scoring, "CLASSES", 3)
    assert evaluate(*sides(), **OPTIONS)["per_class"] is None


def test_class_numbers_are_as_good_as_multi_hot_labels():
    query, database = sides(q=20)
    query.labels[3] = 0
    assert evaluate(numbered(query), numbered(database), **OPTIONS) == evaluate(query, database, **OPTIONS)


def test_without_labels_only_the_codes_are_described():
    """A map of 0 would be wrong: without labels there is nothing that it measures."""
    query, database = sides()
    labelled = evaluate(query, database, ks=[5], map_at=[], radius=2)
    bare = [CodeSet(side.packed, side.bits, side.labels[:, :0], side.ids) for side in (query, database)]
    result = evaluate(*bare, ks=[5], map_at=[], radius=2)
    assert list(result) == [
        "bit_balance",
        "bit_correlation",
        "unique_code_ratio",
        "queries",
        "database",
        "bits",
        "policies",
    ]
    assert all(result[name] == labelled[name] for name in result if name != "policies")
    assert result["policies"] == {"labels": scoring.WITHOUT_LABELS}


def test_images_without_names():
    query, database = sides()
    nameless = [CodeSet(side.packed, side.bits, side.labels, None) for side in (query, database)]
    result, expected = evaluate(*nameless, **OPTIONS), evaluate(query, database, **OPTIONS)
    for entry in expected["hardest_queries"]:
        entry["query"] = query.ids.index(entry["query"])
    assert result == expected


@pytest.mark.parametrize("multi", [False, True])
def test_values_against_loops(multi):
    query, database = sides(multi=multi, bits=5)
    result = evaluate(query, database, **OPTIONS)
    stable, precision, within, empty = [], [], [], []
    for packed, labels in zip(query.packed, query.labels, strict=True):
        distance = [int(packed[0] ^ other[0]).bit_count() for other in database.packed]
        relevant = [bool((labels & other).any()) for other in database.labels]
        order = sorted(range(40), key=lambda i: (distance[i], i))
        hits, total = 0, 0.0
        for rank, item in enumerate(order, start=1):
            if relevant[item]:
                hits += 1
                total += hits / rank
        stable.append(total / hits if hits else 0)
        # Items tied with the fifth one share the remaining places equally.
        cut = distance[order[4]]
        tied = [i for i in range(40) if distance[i] == cut]
        nearer = [i for i in range(40) if distance[i] < cut]
        share = (5 - len(nearer)) / len(tied)
        precision.append((sum(relevant[i] for i in nearer) + share * sum(relevant[i] for i in tied)) / 5)
        ball = [i for i in range(40) if distance[i] <= 2]
        within.append(sum(relevant[i] for i in ball) / len(ball) if ball else 0)
        empty.append(not ball)
    assert result["map_stable"] == pytest.approx(np.mean(stable), rel=1e-12)
    assert result["precision_at_k"]["5"] == pytest.approx(np.mean(precision), rel=1e-12)
    assert result["precision_within_2"] == pytest.approx(np.mean(within), rel=1e-12)
    assert result["empty_ball_rate"] == np.mean(empty)
    assert result["map_worst"] <= result["map"] <= result["map_best"]
    assert result["map_worst"] <= result["map_stable"] <= result["map_best"]


def test_what_is_similar_decides_everything_but_the_graded_numbers():
    """With one class for each set of labels, an item shares it exactly if its labels are the same."""
    query, database = sides(q=12, multi=True, classes=3)
    query.labels[3] = database.labels[5] = 0  # no label is not a set of labels that could be the same
    query, database = with_u(query), with_u(database, 1)
    sets = []
    for side in (query, database):
        numbers = side.labels @ np.array([1, 2, 4])
        sets.append(CodeSet(side.packed, side.bits, np.where(numbers, numbers, -1), side.ids, side.u))
    one, every, expected = (
        evaluate(query, database, **OPTIONS),
        evaluate(query, database, **OPTIONS, similar="all"),
        evaluate(*sets, **OPTIONS),
    )
    graded = ("wap", "wap_at_5", "wap_at_20", "ndcg_at_k", "acg_at_k")
    assert [every[name] for name in graded] == [one[name] for name in graded] != [expected[name] for name in graded]
    assert every["policies"] == {**expected["policies"], "similar": similarity.SIMILAR["all"]}
    per_class = every["per_class"]
    assert per_class["queries"] == query.labels.sum(axis=0).tolist()
    for column in range(3):
        (rows,) = np.nonzero(query.labels[:, column])
        alone = [evaluate(reordered(sets[0], [row]), sets[1], **OPTIONS)["map"] for row in rows]
        assert per_class["map"][column] == pytest.approx(np.mean(alone), rel=1e-12)
    own = (*graded, "policies", "per_class")
    assert {name: value for name, value in every.items() if name not in own} == {
        name: value for name, value in expected.items() if name not in own
    }
    assert every["map"] < one["map"]


def test_with_one_label_each_there_is_one_kind_of_similar():
    query, database = sides()
    one, every = (evaluate(query, database, **OPTIONS, similar=similar) for similar in similarity.SIMILAR)
    assert {**one, "policies": {}} == {**every, "policies": {}}
    assert (one["wap"], one["wap_at_5"]) == (one["map"], one["map_at_5"])


def test_map_is_the_mean_of_map_stable_over_shuffles():
    query, database = sides(bits=3)
    rng = np.random.default_rng(0)
    shuffled = [evaluate(query, reordered(database, rng.permutation(40)), **OPTIONS)["map_stable"] for _ in range(300)]
    expected = evaluate(query, database, **OPTIONS)["map"]
    assert np.mean(shuffled) == pytest.approx(expected, abs=5 * np.std(shuffled) / 300**0.5)
    assert np.std(shuffled) > 1e-3


@given(st.integers(0, 10**6), st.integers(1, 40), st.booleans())
@settings(max_examples=25, deadline=None)
def test_orders_and_flips_move_nothing(seed, bits, multi):
    query, database = sides(seed, bits=bits, multi=multi)
    rng = np.random.default_rng(seed)
    rows, columns, flips = rng.permutation(40), rng.permutation(bits), rng.random(bits) < 0.5
    before = evaluate(query, database, **OPTIONS)

    after = evaluate(query, reordered(database, rows), **OPTIONS)
    stable = {name: value for name, value in before.items() if "stable" in name}
    assert {**after, **stable} == before
    for change in (lambda codes: codes[:, columns], lambda codes: codes ^ flips):
        after = evaluate(recoded(query, change), recoded(database, change), **OPTIONS)
        before_ones, after_ones = before["bit_balance"]["ones"], after["bit_balance"]["ones"]
        for name in ("bit_balance", "bit_correlation"):
            kept, changed = ({k: v for k, v in side.pop(name).items() if k != "ones"} for side in (dict(before), after))
            assert changed == pytest.approx(kept, rel=1e-12, abs=1e-12)
        assert sorted(min(x, 1 - x) for x in after_ones) == pytest.approx(sorted(min(x, 1 - x) for x in before_ones))
        assert after == {key: value for key, value in before.items() if key not in ("bit_balance", "bit_correlation")}


@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_threads_and_grouping_of_queries_move_nothing(seed, together, threads):
    query, database = sides(seed, q=11, multi=seed % 2 == 0)
    whole = evaluate(query, database, **OPTIONS, threads=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "_TOGETHER", together)
        assert evaluate(query, database, **OPTIONS, threads=threads) == whole


def test_without_numba_the_numbers_are_the_same(monkeypatch):
    query, database = sides(q=50, n=500, multi=True)
    compiled = evaluate(query, database, **OPTIONS)
    monkeypatch.setattr(ranking, "_kernels", lambda: vectorized)
    assert evaluate(query, database, **OPTIONS) == compiled


def test_codes_from_disk_give_the_same_numbers(tmp_path):
    query, database = sides(bits=36)
    save_codes(tmp_path, query, database, {})
    loaded_query, loaded_database, _ = load_codes(tmp_path)
    assert evaluate(loaded_query, loaded_database, **OPTIONS) == evaluate(query, database, **OPTIONS)


def test_perfect_codes():
    query, database = sides(noise=0, classes=3, seed=4)
    result = evaluate(query, database, **OPTIONS)
    assert len(np.unique(database.packed, axis=0)) == 3
    for key in ("map", "map_stable", "map_best", "map_worst", "map_at_5", "map_at_20"):
        assert result[key] == 1, key
    assert result["pr_by_radius"]["precision"][0] == result["pr_by_radius"]["recall"][0] == 1
    assert result["unique_code_ratio"] == 3 / 40


def test_collapsed_codes():
    query, database = (recoded(side, np.zeros_like) for side in sides())
    result = evaluate(query, database, **OPTIONS)
    assert result["unique_code_ratio"] == 1 / 40
    assert result["bit_balance"] == {"mean_deviation": 0.5, "max_deviation": 0.5, "ones": [0.0] * result["bits"]}
    assert result["bit_correlation"] == {"mean_absolute": 0, "max_absolute": 0}
    assert result["map_worst"] < result["map"] < result["map_best"] == 1
    assert result["precision_at_k"]["1"] == pytest.approx(result["precision_at_k"]["20"], rel=1e-12)


def test_queries_without_relevant_items_count_as_zero():
    query, database = sides(q=4)
    labels = query.labels.copy()
    labels[1:] = 0
    result = evaluate(CodeSet(query.packed, query.bits, labels, query.ids), database, **OPTIONS)
    alone = evaluate(reordered(query, [0]), database, **OPTIONS)
    assert result["queries_without_relevant"] == 3
    assert result["map"] == alone["map"] / 4
    assert [entry["query"] for entry in result["hardest_queries"]] == ["q0"]
    assert "scores 0" in result["policies"]["zero_hits"]


def test_queries_without_relevant_items_can_be_left_out():
    query, database = sides(q=4)
    query.labels[1:3] = 0
    result = evaluate(query, database, **OPTIONS, zero_hits="skip")
    expected = evaluate(reordered(query, [0, 3]), database, **OPTIONS, zero_hits="skip")
    assert result["queries_without_relevant"] == 2
    assert "left out" in result["policies"]["zero_hits"]
    assert {**result, "queries": 2, "queries_without_relevant": 0} == expected
    query.labels[:] = 0
    with pytest.raises(DataError, match="no query has a relevant item"):
        evaluate(query, database, **OPTIONS, zero_hits="skip")


def test_a_query_does_not_find_itself(monkeypatch):
    _, database = sides()
    query = reordered(database, [7, 3])
    stranger = CodeSet(query.packed, query.bits, query.labels, ["x", "y"])
    assert self_matches(query, database).tolist() == [7, 3]
    assert self_matches(stranger, database).tolist() == [-1, -1]
    monkeypatch.setattr(scoring, "_NAMES", 3)  # the two are in different blocks of names
    assert self_matches(query, database).tolist() == [7, 3]
    options = {"ks": [1], "map_at": [1], "radius": 0}
    parts = []
    for row in (7, 3):
        others = reordered(database, [i for i in range(40) if i != row])
        parts.append(evaluate(reordered(database, [row]), others, **options))
    result = evaluate(query, database, **options)
    for key in ("map", "map_stable", "map_best", "map_worst", "map_at_1", "precision_within_0", "empty_ball_rate"):
        assert result[key] == pytest.approx((parts[0][key] + parts[1][key]) / 2, rel=1e-12), key
    assert evaluate(stranger, database, **options)["map"] > result["map"]


def test_a_database_that_is_the_query_alone():
    _, database = sides(n=1)
    result = evaluate(database, database, **OPTIONS)
    assert result["map"] == result["map_stable"] == 0
    assert result["empty_ball_rate"] == 1


def test_ranks_beyond_the_database():
    query, database = sides()
    result = evaluate(query, database, ks=[40, 10**12], map_at=[10**12], radius=10**6)
    assert result["k_beyond_database"] == [10**12]
    assert result["map_at_1000000000000"] == pytest.approx(result["map"], rel=1e-12)
    assert result["recall_at_k"]["1000000000000"] == 1
    assert result["precision_within_1000000"] == pytest.approx(result["precision_at_k"]["40"], rel=1e-12)


def test_nothing_asked_beyond_the_basics():
    result = evaluate(*sides(), ks=[], map_at=[], radius=0)
    assert result["precision_at_k"] == result["recall_at_k"] == {}


def test_the_command_line_knows_the_same_words():
    assert limits.WORDS["zero_hits"] == limits.WORDS["metrics.zero_hits"] == tuple(scoring.ZERO_HITS)
    assert limits.WORDS["similar"] == limits.WORDS["metrics.similar"] == tuple(similarity.SIMILAR)


def test_refusals():
    query, database = sides()
    for options, message in (
        ({"ks": [0]}, "k must be between 1 and the database size 40, got 0"),
        ({"map_at": [-1]}, "the R of map_at must be between 1 and the database size 40, got -1"),
        ({"radius": -1}, "radius must be between 0 and the code length 12, got -1"),
        ({"zero_hits": "drop"}, "zero_hits must be zero or skip, got drop"),
        ({"similar": "some"}, "similar must be one or all, got some"),
    ):
        with pytest.raises(ConfigError, match=message):
            evaluate(query, database, **{**OPTIONS, **options})
    with pytest.raises(DataError, match="the query set is empty"):
        evaluate(reordered(query, []), database, **OPTIONS)
    with pytest.raises(DataError, match="the database set is empty"):
        evaluate(query, reordered(database, []), **OPTIONS)
    with pytest.raises(ArtifactError, match="query codes have 12 bits but the database has 24"):
        evaluate(query, sides(bits=24)[1], **OPTIONS)
    with pytest.raises(ArtifactError, match="query labels have 4 classes but the database has 5"):
        evaluate(query, sides(classes=5)[1], **OPTIONS)


@given(
    st.integers(0, 10**6), st.integers(1, 24), st.sampled_from([1, 30, 300]), st.sampled_from([0.0, 0.02, 0.3]),
    st.booleans(), st.booleans(), st.sampled_from(["one", "all"]), st.sampled_from(["zero", "skip"]),
    st.lists(st.integers(1, 400), max_size=3), st.integers(1, 3),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_the_fast_way_moves_no_digit(
    seed, q, n, noise, multi, as_numbers, similar, zero_hits, map_at, threads
):  # fmt: skip
    """Equal queries ranked once, several threads and compiled loops, against NumPy alone and every query by itself."""
    query, database = sides(seed, q=q, n=n, bits=9, classes=3, multi=multi, noise=noise)
    own = query.ids[: min(3, n)]
    database = CodeSet(database.packed, 9, database.labels, [*own, *database.ids[len(own) :]])
    if as_numbers and not multi:
        query, database = numbered(query), numbered(database)
    chosen = {**OPTIONS, "map_at": map_at, "similar": similar, "zero_hits": zero_hits}

    def result(threads):
        try:
            return json.dumps(evaluate(query, database, **chosen, threads=threads))
        except DataError as error:
            return str(error)

    found = result(threads)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "_different", lambda packed, *_: (np.arange(len(packed)),) * 2)
        patch.setattr(ranking, "_kernels", lambda: vectorized)
        assert result(1) == found


def test_equal_queries_are_those_of_one_code_one_set_of_labels_and_one_place():
    packed = pack(np.array([[1, 0], [1, 0], [0, 1], [1, 0], [1, 0]], np.bool_))
    labels = np.array([[1, 0], [1, 0], [1, 0], [1, 1], [1, 0]], np.uint8)
    rows, places = scoring._different(packed, labels, np.array([-1, -1, -1, -1, 4]))
    assert rows.tolist() == [0, 2, 3, 4]
    assert places.tolist() == [0, 0, 1, 2, 3]
    rows, places = scoring._different(packed, np.array([5, 5, 5, -1, 5]), np.full(5, -1))
    assert rows.tolist() == [0, 2, 3]
    assert places.tolist() == [0, 0, 1, 2, 0]
