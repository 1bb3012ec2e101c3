from pathlib import Path

import pytest

from contourcast.imaging.files import whole_folder, write_atomically


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    file = tmp_path / "new folder" / "a.bin"
    write_atomically(file, b"one")
    write_atomically(file, b"two")
    assert file.read_bytes() == b"two"
    assert [p.name for p in file.parent.iterdir()] == ["a.bin"]


def test_a_failure_leaves_what_was_there_and_no_stray_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.bin"
    write_atomically(file, b"one")

    def full(descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_atomically(file, b"two")
    assert file.read_bytes() == b"one"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    for name in ("new/folder", "there"):
        folder = tmp_path / name
        if name == "there":
            folder.mkdir()
        with whole_folder(folder) as draft:
            (draft / "a.bin").write_bytes(b"one")
            assert not (folder / "a.bin").exists()
        assert [p.name for p in folder.parent.iterdir() if p.name.startswith(".")] == []
        assert (folder / "a.bin").read_bytes() == b"one"


def test_a_folder_that_fails_or_is_taken_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("years of work")
    with pytest.raises(OSError, match="not empty"), whole_folder(tmp_path / "taken") as draft:
        (draft / "a.bin").write_bytes(b"one")
    with pytest.raises(ValueError, match="broken"), whole_folder(tmp_path / "new"):
        raise ValueError("broken")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["taken", "thesis.txt"]
