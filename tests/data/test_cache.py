import os
import signal

import pytest
from filelock import FileLock

from slm.data import cache
from slm.data.cache import cached

SLOW = """
import sys, time
from pathlib import Path
from slm.data.cache import cached

def build(folder):
    (folder / "tokens.bin").write_bytes(b"half")
    print("building", flush=True)
    time.sleep(float(sys.argv[2]))
    (folder / "tokens.bin").write_bytes(b"whole")
    return {"count": 5}

print(cached(Path(sys.argv[1]), build, what="a thing")["count"])
"""


def build(content=b"whole"):
    def write(folder):
        (folder / "sub").mkdir(exist_ok=True)
        (folder / "sub" / "tokens.bin").write_bytes(content)
        return {"count": len(content)}

    return write


def refuse(folder):
    raise AssertionError("built again")


def test_a_thing_is_built_once(tmp_path):
    folder = tmp_path / "deep" / "thing"
    assert cached(folder, build(), what="x")["count"] == 5
    assert cached(folder, refuse, what="x")["count"] == 5


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_the_umask_decides_who_may_read_what_is_built(tmp_path, umask):
    before = os.umask(umask)
    try:
        cached(tmp_path / "thing", build(), what="a thing")
    finally:
        os.umask(before)
    modes = [(path.is_dir(), path.stat().st_mode & 0o777) for path in [tmp_path / "thing", *tmp_path.rglob("thing/*")]]
    assert set(modes) == {(True, 0o777 & ~umask), (False, 0o666 & ~umask)}


def test_a_build_from_unusable_data_leaves_nothing(tmp_path):
    def unusable(folder):
        (folder / "tokens.bin").write_bytes(b"half")
        raise ValueError("no text")

    with pytest.raises(ValueError, match="no text"):
        cached(tmp_path / "thing", unusable, what="x")
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == []


def test_a_killed_build_is_not_used_and_the_next_one_replaces_it(tmp_path, python):
    folder = tmp_path / "thing"
    with python(SLOW, folder, 60) as killed:
        assert killed.stdout.readline() == "building\n"
        killed.send_signal(signal.SIGKILL)
    assert not folder.exists()
    assert (tmp_path / "thing.partial" / "tokens.bin").read_bytes() == b"half"
    assert cached(folder, build(), what="x")["count"] == 5
    assert (folder / "sub" / "tokens.bin").read_bytes() == b"whole"
    assert not (tmp_path / "thing.partial").exists()


def test_when_processes_start_together_one_builds_and_all_use_it(tmp_path, python):
    running = [python(SLOW, tmp_path / "thing", 0.5) for _ in range(3)]
    answers = [process.communicate(timeout=60) for process in running]
    assert sorted(answer for answer, _ in answers) == ["5\n", "5\n", "building\n5\n"]
    assert sum("waiting for another process that builds a thing" in errors for _, errors in answers) <= 2


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest"])
def test_a_damaged_folder_is_noticed_and_built_again(tmp_path, damage):
    folder = tmp_path / "thing"
    cached(folder, build(), what="x")
    tokens = folder / "sub" / "tokens.bin"
    {
        "flip": lambda: tokens.write_bytes(b"whule"),
        "truncate": lambda: tokens.write_bytes(b"who"),
        "remove": tokens.unlink,
        "manifest": lambda: (folder / "manifest.json").write_text("{"),
    }[damage]()
    with pytest.warns(UserWarning, match="is damaged: .* built again"):
        assert cached(folder, build(), what="x")["count"] == 5
    assert tokens.read_bytes() == b"whole"
    assert cached(folder, refuse, what="x")["count"] == 5
    assert not (tmp_path / "thing.partial").exists()


def test_checksums_of_a_large_folder_are_checked_on_request(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "MAX_CHECKED_BYTES", 3)
    folder = tmp_path / "thing"
    cached(folder, build(), what="x")
    (folder / "sub" / "tokens.bin").write_bytes(b"whule")
    assert cached(folder, refuse, what="x")["count"] == 5
    monkeypatch.setenv("SLM_VERIFY", "1")
    with pytest.warns(UserWarning, match="tokens.bin does not have its checksum"):
        cached(folder, build(), what="x")


def test_opening_a_built_folder_takes_no_lock(tmp_path, python):
    cached(tmp_path / "thing", build(), what="x")
    with FileLock(tmp_path / "thing.lock"):
        answer, _ = python(SLOW, tmp_path / "thing", 0).communicate(timeout=30)
    assert answer == "5\n"  # and was not built
