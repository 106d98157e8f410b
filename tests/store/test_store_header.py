import json

import pytest

from pntk.errors import StoreError
from pntk.store import Shard, StoreHeader
from pntk.store.header import explain_difference


def test_header_survives_json(make_header):
    header = make_header(projection={"shape": (1, 2), "seed": 2**63}, info={"a": None})
    assert header.projection["shape"] == [1, 2]
    assert StoreHeader.from_json(header.to_json()) == header


@pytest.mark.parametrize("shard", [None, Shard(2, 3, 20, 30)])
def test_shard_survives_json(make_header, shard):
    header = make_header(shard=shard)
    assert StoreHeader.from_json(header.to_json()) == header
    assert header.shard == shard


@pytest.mark.parametrize(
    "shard",
    [(2, 2, 0, 9), (-1, 2, 0, 9), (0, 0, 0, 9), (0, 1, 9, 9), (0, 1, -1, 9), (0, 1, 0, 0)],
)
def test_shard_out_of_range(shard):
    with pytest.raises(StoreError, match=r"shard is .* expected integers with 0 <= index < count"):
        Shard(*shard)


@pytest.mark.parametrize("odd", [True, 1.0, "1", None])
@pytest.mark.parametrize("place", range(4))
def test_shard_of_other_types(make_header, odd, place):
    shard = dict(zip(("index", "count", "start", "total"), (1, 2, 10, 20), strict=True))
    text = make_header(shard=Shard(**shard)).to_json()
    shard[list(shard)[place]] = odd
    values = {**json.loads(text), "shard": shard}
    with pytest.raises(StoreError, match=r"shard is .* expected integers"):
        StoreHeader.from_json(json.dumps(values))


def test_whole(make_header):
    header = make_header(shard=Shard(2, 3, 20, 30))
    assert header.whole() == make_header(rows=30)
    assert make_header().whole() == make_header()


def test_columns_are_kept_in_alphabetical_order(make_header):
    header = make_header(columns={"zeta": "uint8", "alpha": "int64"})
    assert list(header.columns) == ["alpha", "zeta"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 0}, "rows is 0, expected an integer of at least 1"),
        ({"rows": True}, "rows is True"),
        ({"width": 2.0}, "width is 2.0"),
        ({"dtype": "bfloat16"}, "dtype is 'bfloat16', expected one of"),
        ({"weights": None}, "weights is None, expected a string"),
        ({"precision": 1}, "precision is 1, expected a string"),
        ({"projection": []}, "projection is .* expected a dictionary"),
        ({"output": {"f": print}}, "output cannot be written as JSON"),
        ({"info": {"x": float("nan")}}, "info cannot be written as JSON"),
        ({"params": (1, 2)}, "params must be pairs"),
        ({"params": (("w", ("a",)),)}, "params has .* expected a name and a shape"),
        ({"columns": ["labels"]}, "columns is .* expected a dictionary"),
        ({"columns": {"a/b": "int64"}}, "column 'a/b': use letters"),
        ({"columns": {"done": "uint8"}}, "'done': this name is taken"),
        ({"columns": {"scales": "float32"}}, "'scales': this name is taken"),
        ({"columns": {"labels": "complex64"}}, "'labels' is 'complex64', use one of"),
        ({"columns": {"labels": "float16"}}, "'labels' is 'float16', use one of"),
        ({"shard": (0, 1, 0, 10)}, r"shard is \(0, 1, 0, 10\), expected index, count, start and"),
        ({"shard": {"index": 0, "count": 1}}, "shard is .* expected index, count, start and total"),
        (
            {"shard": Shard(1, 2, 5, 14)},
            "10 rows do not fit into Shard.index=1, count=2, start=5",
        ),
    ],
)
def test_header_refuses(make_header, changes, message):
    with pytest.raises(StoreError, match=message):
        make_header(**changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "missing fields"),
        ('{"rows": 1}', "missing fields .*'width'"),
    ],
)
def test_header_refuses_bad_json(text, message):
    with pytest.raises(StoreError, match=message):
        StoreHeader.from_json(text)


def test_header_refuses_unknown_fields(make_header):
    text = make_header().to_json().replace("{", '{"tomorrow": 1, ', 1)
    with pytest.raises(StoreError, match=r"unknown fields \['tomorrow'\]"):
        StoreHeader.from_json(text)


def test_difference_names_the_fields(make_header):
    ours = make_header(projection={"seed": 0, "a": 1}, width=6)
    theirs = make_header(projection={"seed": 1}, width=7, columns={}, info={"pntk": "9"})
    assert ours.difference(theirs) == [
        ("width", 6, 7),
        ("projection.a", 1, "absent"),
        ("projection.seed", 0, 1),
        ("columns.labels", "int64", "absent"),
        ("columns.reweighting", "float32", "absent"),
    ]
    assert ours.difference(ours) == []


def test_difference_of_shards(make_header):
    first, second = "shard 0/2, rows 0 to 9 of 20", "shard 1/2, rows 10 to 19 of 20"
    ours, theirs = make_header(shard=Shard(0, 2, 0, 20)), make_header(shard=Shard(1, 2, 10, 20))
    assert ours.difference(theirs) == [("shard", first, second)]
    assert ours.difference(ours) == []
    assert make_header(rows=20).difference(theirs) == [
        ("shard", "all 20 rows", second),
        ("rows", 20, 10),
    ]


def test_difference_of_params_names_the_first_only(make_header):
    params = tuple((f"p{i}", (i,)) for i in range(100))
    changed = (*params[:40], ("other", (1, 2)), *params[41:])
    ours, theirs = make_header(params=params), make_header(params=changed)
    assert ours.difference(theirs) == [
        ("params", "p40 [40] (parameter 41 of 100)", "other [1, 2] (parameter 41 of 100)")
    ]
    [(_, fewer, _)] = make_header(params=params[:3]).difference(ours)
    assert fewer == "3 parameters"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 12}, "data set's length has changed: the file has 10 rows, now 12"),
        ({"weights": "cd"}, "model's weights differ .* 'ab12' in the file, 'cd' now"),
        ({"precision": "bf16"}, "precision is 'float32' in the file, 'bf16' was asked for"),
        ({"rows": 9, "weights": "cd"}, r"also different: weights\)"),
        (
            {"shard": Shard(1, 2, 64, 128)},
            r"file holds all 10 rows, asked was for shard 1/2, rows 64 to 73 of 128 \(.*batch size",
        ),
    ],
)
def test_explanation(make_header, changes, message):
    different = make_header(**changes).difference(make_header())
    with pytest.raises(StoreError, match=message + r".* Use the file's settings"):
        raise StoreError(explain_difference(different))
