import json

import h5py


def damage(path, *rows):
    with h5py.File(path, "r+") as file:
        for row in rows:
            file["features"][row, 5] += 1


def test_sound_store(invoke, stores):
    shown = invoke("verify", "train.h5", "--no-progress")
    assert shown.stdout == "ok: 20 rows checked, 0 bad, 0 missing, 0 skipped\n"
    assert shown.stderr == ""


def test_bad_rows_are_named(invoke, stores):
    damage("train.h5", 4, 11)
    shown = invoke("verify", "train.h5", code=1).stdout
    assert "DAMAGED: 20 rows checked, 2 bad" in shown
    assert "row 4: checksum" in shown
    assert "row 11: checksum" in shown
    found = json.loads(invoke("verify", "train.h5", "--json", code=1).stdout)
    assert found["bad_rows"] == [4, 11]
    assert found["ok"] is False


def test_file_that_is_no_store(refused, invoke, toy):
    (toy / "bad.h5").write_text("no store")
    assert "bad.h5" in refused("verify", "bad.h5", code=1)
    assert "does not exist" in invoke("verify", "absent.h5", code=2).stderr
