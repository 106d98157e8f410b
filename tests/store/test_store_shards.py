import os
import shutil
import time
from itertools import pairwise

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pntk.errors import ConfigError, StoreError
from pntk.store import FeatureStore, RowWriter, Shard, join
from pntk.store.shards import cut_rows, find_shards, shard_path

CUTS = [0, 4, 5, 10]


@pytest.fixture
def make_shards(make_header, values):
    """Shards of the ten rows of a full store, cut at some rows, as files of ``folder``."""

    def make(folder, cuts=CUTS, *, name="rows.h5", count=None, seed=0, **changes):
        rows, columns = values(make_header(**changes), seed)
        files = []
        for number, (start, stop) in enumerate(pairwise(cuts)):
            count = count or len(cuts) - 1
            files.append(shard_path(folder / name, number, count))
            shard = Shard(number, count, start, 10)
            cells = {name: column[start:stop] for name, column in columns.items()}
            header = make_header(rows=stop - start, shard=shard, **changes)
            with RowWriter.open(files[-1], header) as writer:
                writer.write(np.arange(stop - start), rows[start:stop], cells)
        return files

    return make


# --- where rows are cut, and names


@given(rows=st.integers(1, 5000), batch_size=st.integers(1, 300), data=st.data())
def test_cut_rows(rows, batch_size, data):
    batches = -(-rows // batch_size)
    count = data.draw(st.integers(1, batches))
    cuts = cut_rows(rows, count, batch_size)
    assert len(cuts) == count and cuts[0][0] == 0 and cuts[-1][1] == rows
    assert all(stop == start for (_, stop), (start, _) in pairwise(cuts))
    assert all(start % batch_size == 0 for start, _ in cuts)
    sizes = [-(-(stop - start) // batch_size) for start, stop in cuts]  # in batches
    assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("count", [0, -1, 5])
def test_too_many_shards(count):
    message = f"{count} shards of 100 rows in batches of 30; expected 1 to 4 shards, a batch each"
    with pytest.raises(ConfigError, match=message):
        cut_rows(100, count, 30)


def test_shards_are_found_by_their_names(tmp_path):
    expected = [shard_path(tmp_path / "a+b.h5", i, 12) for i in (0, 3, 11)]
    others = ["a+b.h5", "a+b.shard-00000-of-00012.h5.writer", "x.shard-00000-of-00012.h5"]
    others += ["aab.shard-00000-of-00012.h5", "a+b.shard-0-of-2.h5", "a+b.shard-00000-of-00012"]
    for name in [*expected, *others]:
        (tmp_path / name).touch()
    assert find_shards(tmp_path / "a+b.h5") == expected
    assert find_shards(tmp_path / "other.h5") == []
    assert find_shards(tmp_path / "nowhere" / "a.h5") == []


def test_names_of_very_many_shards_are_found(tmp_path):
    path = shard_path(tmp_path / "a.h5", 123456, 1234567)
    path.touch()
    assert path.name == "a.shard-123456-of-1234567.h5"
    assert find_shards(tmp_path / "a.h5") == [path]


# --- joining


def same_as_one(store, rows, columns, header):
    np.testing.assert_array_equal(store.numpy(), rows)
    for name, values in columns.items():
        np.testing.assert_array_equal(store.column(name), values)
    assert store.header == header
    assert store.complete and store.verify().ok
    with h5py.File(store.path) as file:
        found = file["features"][:].astype(rows.dtype)
        if header.dtype == "float16":
            found *= file["scales"][:][:, None]
        np.testing.assert_array_equal(found, rows)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_shards_become_one_store(tmp_path, make_shards, make_header, values, held, dtype):
    files = make_shards(tmp_path, dtype=dtype)
    header = make_header(dtype=dtype)
    found = join(tmp_path / "rows.h5")
    assert found == tmp_path / "rows.h5"
    store = FeatureStore(found)
    assert store.files == files
    same_as_one(store, held(header), values(header)[1], header)


def test_in_any_order(tmp_path, make_shards, make_header, values):
    first, second, third = make_shards(tmp_path)
    store = FeatureStore(join(tmp_path / "all.h5", [third, first, second]))
    assert store.files == [first, second, third]
    same_as_one(store, *values(make_header()), make_header())


def test_relative_paths(tmp_path, make_shards, monkeypatch):
    make_shards(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert join("rows.h5") == tmp_path / "rows.h5"
    assert len(FeatureStore("rows.h5")) == 10


def test_shards_in_folders_below(tmp_path, make_shards, make_header, values):
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder in folders:
        folder.mkdir()
    files = [make_shards(folder)[i] for i, folder in enumerate(folders)]
    store = FeatureStore(join(tmp_path / "rows.h5", files))
    assert store.files == files
    same_as_one(store, *values(make_header()), make_header())


def test_whole_stores_follow_one_another(tmp_path, make_store, make_header, values):
    """That is how rows are appended."""
    paths = [make_store("b.h5", seed=2), make_store("a.h5", seed=1, rows=3)]
    store = FeatureStore(join(tmp_path / "all.h5", paths))
    (rows, columns), (more, cells) = (
        values(make_header(), 2),
        values(make_header(rows=3), 1),
    )
    both = {name: np.concatenate([columns[name], cells[name]]) for name in columns}
    same_as_one(store, np.concatenate([rows, more]), both, make_header(rows=13))


def test_joined_stores_are_joined_again(tmp_path, make_store, make_shards, make_header, values):
    """Shards, then a store, then another store, at the same path."""
    path = tmp_path / "rows.h5"
    files = make_shards(tmp_path)
    join(path)
    join(path, [path, make_store("more.h5", seed=1)])
    join(path, [make_store("first.h5", seed=2), path])
    store = FeatureStore(path)
    assert [file.name for file in store.files] == [
        "first.h5",
        *(file.name for file in files),
        "more.h5",
    ]
    rows = np.concatenate([values(make_header(), seed)[0] for seed in (2, 0, 1)])
    columns = {
        name: np.concatenate([values(make_header(), seed)[1][name] for seed in (2, 0, 1)])
        for name in store.header.columns
    }
    same_as_one(store, rows, columns, make_header(rows=30))


def test_joined_again_into_itself(tmp_path, make_shards):
    make_shards(tmp_path)
    path = join(tmp_path / "rows.h5")
    before = path.read_bytes()
    time.sleep(1.1)  # HDF5 would keep the seconds
    join(path)
    assert path.read_bytes() == before
    assert FeatureStore(join(path, [path])).files == find_shards(path)


def test_a_store_alone(tmp_path, full_store):
    store = FeatureStore(join(tmp_path / "rows.h5", [full_store]))
    assert store.files == [full_store] and len(store) == 10
    assert store.skipped.tolist() == [7]


def test_info_is_that_of_the_first(tmp_path, make_store):
    paths = [make_store("a.h5", info={"a": 1}), make_store("b.h5", info={"b": 2})]
    assert FeatureStore(join(tmp_path / "all.h5", paths)).header.info == {"a": 1}


def test_names_that_hdf5_reads_in_its_own_way(tmp_path, make_store):
    """A percent sign begins a placeholder in the name of a virtual dataset's source."""
    for name in ("100%", "a%b", "%%", "ä ß", "new\nline"):
        path = make_store(f"{name}.h5")
        store = FeatureStore(join(tmp_path / "joined.h5", [path]))
        with h5py.File(store.path) as file:
            np.testing.assert_array_equal(file["features"][:], store.numpy())
            np.testing.assert_array_equal(file["done"][:], store.done)


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="needs symbolic links")
def test_folder_of_another_name(tmp_path, make_store):
    path = make_store("a.h5")
    (tmp_path / "real").mkdir()
    os.replace(path, tmp_path / "real" / "a.h5")
    os.symlink(tmp_path / "real", tmp_path / "alias")
    store = FeatureStore(join(tmp_path / "alias" / "j.h5", [tmp_path / "real" / "a.h5"]))
    assert store.complete
    assert FeatureStore(tmp_path / "real" / "j.h5").complete


# --- what is refused


def refused(match, path, shards=None):
    before = {p: p.read_bytes() for p in path.parent.iterdir() if p.is_file()}
    with pytest.raises(StoreError, match=match):
        join(path, shards)
    assert {p: p.read_bytes() for p in path.parent.iterdir() if p.is_file()} == before


def test_no_shards(tmp_path):
    message = (
        r"no shards to join: there is no rows.shard-00000-of-00001.h5 or the like in .*--shard"
    )
    refused(message, tmp_path / "rows.h5")
    refused("no shards to join", tmp_path / "rows.h5", [])


def test_shard_that_does_not_exist(tmp_path):
    refused("nothing.h5: no such file", tmp_path / "rows.h5", ["nothing.h5"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 7}, "width is 7 there and 6 in the others"),
        ({"dtype": "float64"}, "dtype is 'float64' there and 'float32' in the others"),
        ({"weights": "cd"}, "weights is 'cd' there and 'ab12' in the others"),
        ({"precision": "bf16"}, "precision is 'bf16' there"),
        ({"output": {"name": "trace"}}, "output.name is 'trace' there and 'pntk' in"),
        (
            {"projection": {"family": "hadamard", "proj_dim": 6, "seed": 1}},
            "projection.seed is 1 there and 0 in the others",
        ),
        ({"params": ()}, "params is '0 parameters' there"),
        ({"columns": {}}, "columns.labels is 'absent' there and 'int64' in the others"),
    ],
)
def test_rows_of_another_kind(tmp_path, make_store, changes, message):
    paths = [make_store("a.h5"), make_store("b.h5", **changes)]
    message = f"b.h5: b.h5 holds other rows: {message}.*; join only rows of one model, output"
    refused(message, tmp_path / "all.h5", paths)


def test_shards_of_another_kind(tmp_path, make_shards):
    files = make_shards(tmp_path)
    files[1].unlink()
    make_shards(tmp_path, weights="cd", name="other.h5")
    os.replace(shard_path(tmp_path / "other.h5", 1, 3), files[1])
    refused("of-00003.h5 holds other rows: weights is 'cd' there", tmp_path / "rows.h5")


def test_shards_of_data_sets_of_different_lengths(tmp_path, make_shards, make_store):
    files = make_shards(tmp_path)
    odd = make_store("odd.h5", rows=5, shard=Shard(2, 3, 5, 11))
    message = "odd.h5 is a shard of 11 rows and rows.shard-00000-of-00003.h5 of 10; join shards of"
    refused(message, tmp_path / "rows.h5", [*files[:2], odd])


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ([1, 2], r"rows 0 to 3 are in no shard; .* absent \(--shard 0/3\), or copy their files to"),
        ([0, 2], r"rows 4 to 4 are in no shard; .* absent \(--shard 1/3\)"),
        ([0, 1], r"rows 5 to 9 are in no shard; .* absent \(--shard 2/3\)"),
        ([1], r"rows 0 to 3 are in no shard; .* absent \(--shard 0/3, --shard 2/3\)"),
    ],
)
def test_missing_shards_are_named(tmp_path, make_shards, keep, message):
    files = make_shards(tmp_path)
    refused(message, tmp_path / "rows.h5", [files[i] for i in keep])


def test_many_missing_shards(tmp_path, make_shards):
    make_shards(tmp_path, [0, 4], count=10**15)
    some = ", ".join(f"--shard {i}/{10**15}" for i in range(1, 9))
    refused(rf"rows 4 to 9 are in no shard; .* \({some} and others\)", tmp_path / "rows.h5")


def test_shards_that_leave_a_gap(tmp_path, make_store):
    """Each number is there, but they were cut for different batch sizes."""
    first = make_store("a.h5", rows=4, shard=Shard(0, 2, 0, 10))
    second = make_store("b.h5", rows=4, shard=Shard(1, 2, 6, 10))
    message = r"rows 4 to 5 are in no shard; .* absent \(all of 2, cut anew\)"
    refused(message, tmp_path / "rows.h5", [first, second])


def test_shards_that_overlap(tmp_path, make_shards):
    make_shards(tmp_path)
    make_shards(tmp_path, [0, 3, 10])
    message = r"of-0000[23].h5 and .*of-0000[23].h5 both hold row 0; the shards were cut different"
    refused(message, tmp_path / "rows.h5")


def test_shards_that_overlap_in_part(tmp_path, make_store):
    first = make_store("a.h5", rows=6, shard=Shard(0, 2, 0, 10))
    second = make_store("b.h5", rows=5, shard=Shard(1, 2, 5, 10))
    refused("b.h5 and a.h5 both hold row 5", tmp_path / "rows.h5", [first, second])


def test_incomplete_shard(tmp_path, make_shards):
    files = make_shards(tmp_path)
    with RowWriter.reopen(files[2]) as writer:
        writer.forget([1, 3])
    message = r"shard-00002-of-00003.h5: 2 of 5 rows are missing; run featurize again with the same"
    refused(message, tmp_path / "rows.h5")


def test_row_in_an_unknown_state_is_missing(tmp_path, make_shards, flip):
    flip(make_shards(tmp_path)[1], "done", 0)
    refused("shard-00001-of-00003.h5: 1 of 1 rows are missing", tmp_path / "rows.h5")


@pytest.mark.parametrize("how", ["same", "link", "joined"])
def test_joined_twice(tmp_path, full_store, make_store, how):
    again = {"same": full_store, "link": tmp_path / "l.h5", "joined": tmp_path / "j.h5"}[how]
    if how == "link":
        os.symlink("full.h5", again)
    elif how == "joined":
        join(again, [full_store])
    message = f"{'l' if how == 'link' else 'full'}.h5 would be joined twice; name each store once"
    refused(message, tmp_path / "rows.h5", [full_store, make_store("other.h5"), again])


def test_mixture(tmp_path, make_shards, full_store):
    path = tmp_path / "rows.h5"
    files = make_shards(tmp_path)
    message = "full.h5 is a whole store and others are shards of one; join the shards first, then"
    refused(message, path, [*files, full_store])
    join(path)
    assert len(FeatureStore(join(path, [path, full_store]))) == 20  # as the message says


@pytest.mark.parametrize("kind", ["store", "foreign", "foreign with shards"])
def test_target_that_holds_something_else(tmp_path, full_store, make_store, kind):
    if kind != "store":
        with h5py.File(full_store, "w") as file:
            file["precious"] = 1
            if "shards" in kind:
                file.attrs["shards"] = 3
    message = r"full.h5: exists and is not a file that joins shards, so it is not replaced; choose"
    refused(message, full_store, [make_store("a.h5")])


def test_target_that_is_not_hdf5(tmp_path, full_store):
    (tmp_path / "notes.txt").write_text("hello")
    refused(r"notes.txt: is not an HDF5 file", tmp_path / "notes.txt", [full_store])


def test_shards_elsewhere(tmp_path, full_store):
    (tmp_path / "below").mkdir()
    message = r"full.h5: is not in .*below, where rows.h5 will look for its shards; move it there"
    refused(message, tmp_path / "below" / "rows.h5", [full_store])


def test_link_to_elsewhere(tmp_path, full_store):
    (tmp_path / "below").mkdir()
    os.symlink(full_store, tmp_path / "below" / "link.h5")
    with pytest.raises(StoreError, match=r"below/link.h5: is not in .*below"):
        join(tmp_path / "below" / "rows.h5", [tmp_path / "below" / "link.h5"])


def test_being_joined_elsewhere(tmp_path, full_store):
    fcntl = pytest.importorskip("fcntl")
    with open(tmp_path / "rows.h5.creating", "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match="another process is creating this file"):
            join(tmp_path / "rows.h5", [full_store])


def test_many_shards(tmp_path, make_store):
    """Files are opened one after the other, and none stays open."""
    resource = pytest.importorskip("resource")
    first = make_store("first.h5", rows=1)
    files = [tmp_path / f"{i:03d}.h5" for i in range(200)]
    for file in files:
        shutil.copy(first, file)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, limit[1]))
    try:
        store = FeatureStore(join(tmp_path / "rows.h5", files))
        assert (store.torch() == FeatureStore(first).torch()).all() and len(store) == 200
        assert store.verify().ok and store[::-1].shape == (200, 6)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
