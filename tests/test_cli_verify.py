"""
``memable verify`` and ``memable repair``: what they print, and their exit status.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from damaging import copy_store, logs_of, make_store
from showing import files_of, say


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of many segments, some compacted, which no test changes."""
    return make_store(tmp_path_factory.mktemp("cli") / "store")


@pytest.fixture
def damaged(store: Path, tmp_path: Path) -> Path:
    """A copy of it in which a bit of the newest record of a step is flipped."""
    copy = copy_store(store, tmp_path / "store")
    path = [path for path in logs_of(copy) if b'"step_completed"' in path.read_bytes()][-1]
    content = bytearray(path.read_bytes())
    content[content.rindex(b'"step_completed"') + 3] ^= 1
    path.write_bytes(content)
    return copy


def test_verify_of_a_sound_store(store: Path, capsys: pytest.CaptureFixture[str]):
    """
    A sound store is summed up in two lines, with exit status 0.
    """
    before = files_of(store)
    said = say(capsys, "verify", store)
    assert (said.status, said.err) == (0, "")
    assert said.lines[-1] == "sound: no fault was found"
    assert said.lines[-2].startswith(f"{store}: ")
    assert "records in" in said.lines[-2]
    (tree,) = say(capsys, "verify", store, "--json").objects
    assert tree["is_sound"] is True
    assert tree["faults"] == []
    assert files_of(store) == before


def test_verify_of_a_damaged_store(damaged: Path, capsys: pytest.CaptureFixture[str]):
    """
    Each fault is a line with file and offset, and the exit status is 1.
    """
    said = say(capsys, "verify", damaged)
    assert said.status == 1
    (tree,) = say(capsys, "verify", damaged, "--json").objects
    for fault, line in zip(tree["faults"], said.lines, strict=False):
        assert line.startswith(f"fault: {fault['file']}: at byte offset {fault['offset']}")
    assert "one flipped bit" in said.out
    assert "`memable repair` saves what is intact" in said.lines[-1]


@pytest.mark.parametrize("command", ["verify", "repair"])
def test_verify_of_no_store(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """
    Where there is no store, the exit status is 2, and nothing is made.
    """
    said = say(capsys, command, tmp_path)
    assert (said.status, said.out) == (2, "")
    assert "there is no store" in said.err
    assert list(tmp_path.iterdir()) == []
    assert say(capsys, command, tmp_path / "missing").status == 2


def test_repair_of_a_sound_store(store: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """
    Nothing is written where nothing is damaged, unless it is asked for.
    """
    said = say(capsys, "repair", store)
    assert (said.status, said.lines) == (0, [f"{store}: nothing is damaged, so nothing was written"])
    said = say(capsys, "repair", store, "--to", tmp_path / "copy")
    assert said.status == 0
    assert said.lines[-1] == "nothing was lost"
    assert say(capsys, "verify", tmp_path / "copy").status == 0


def test_repair_of_a_damaged_store(damaged: Path, capsys: pytest.CaptureFixture[str]):
    """
    What is lost is told, with exit status 1, and the copy is sound.
    """
    before = files_of(damaged)
    said = say(capsys, "repair", damaged)
    assert said.status == 1
    assert any(line.startswith(("blocked: ", "ended: ")) and "step_completed" in line for line in said.lines)
    assert files_of(damaged) == before
    copy = damaged.with_name("store.repaired")
    assert say(capsys, "verify", copy).status == 0
    said = say(capsys, "repair", damaged)
    assert said.status == 2
    assert "there is something already" in said.err


def test_repair_in_place(damaged: Path, capsys: pytest.CaptureFixture[str]):
    """
    With ``--in-place`` the store is repaired where it is, and the damaged one is kept.
    """
    said = say(capsys, "repair", damaged, "--in-place", "--json")
    (tree,) = said.objects
    assert said.status == 1
    assert tree["repaired"] == str(damaged)
    assert Path(tree["damaged"]).is_dir()
    assert [casualty["lost"][0]["kind"] for casualty in tree["casualties"]] == ["step_completed"]
    assert tree["is_lossless"] is False
    assert say(capsys, "verify", damaged).status == 0
    assert say(capsys, "verify", tree["damaged"]).status == 1
