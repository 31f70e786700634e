"""Files are written whole or not at all, and an error names the file."""

import errno
from pathlib import Path

import pytest

from slm.runtime.files import check_writable, write_atomically


def test_a_file_that_does_not_fit_leaves_the_one_before_it_and_names_itself(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    file = tmp_path / "results.csv"
    write_atomically(file, "before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # bytes
    try:
        with pytest.raises(OSError, match="File too large") as refused:
            write_atomically(file, "x" * 200)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (refused.value.errno, refused.value.filename) == (errno.EFBIG, str(file))
    assert file.read_text() == "before"
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_is_checked_without_being_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_writable(Path("new/run"))
    check_writable(tmp_path / "new" / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_inside_a_file_is_refused_by_the_name_of_the_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"^export=.*file.run: .*; choose another directory$"):
        check_writable(tmp_path / "file" / "run", "export")
