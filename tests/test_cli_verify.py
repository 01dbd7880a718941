"""
``memable verify`` and ``memable repair``: what they print, and their exit status.
"""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

import memable
from damaging import copy_store, logs_of, make_store
from memable._disk import RealDisk, RealLock
from memable._store._repair import repair_store
from memable._store._verify import verify_store
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


def command(*words: object, redirection: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command in a shell, with *redirection* behind it, and return what came of it."""
    line = f'"$@" {redirection}'
    argv = ["bash", "-o", "pipefail", "-c", line, "-", sys.executable, "-m", "memable.cli", *map(str, words)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("name", ["verify", "repair"])
def test_verify_has_its_status_though_nobody_reads(name: str, damaged: Path):
    """
    A reader that leaves early changes nothing of the exit status: scripts go by that.
    """
    left = command(name, damaged, redirection="| (exec 0<&-; sleep 0.1)")
    assert (left.returncode, left.stderr) == (1, "")


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("verify", "STORE"), 1),
        (("repair", "STORE", "--json"), 1),
        (("ls", "STORE", "--utc"), 1),
        (("ls", "STORE", "--limit", "x"), 2),
        (("--version",), 0),
    ],
)
@pytest.mark.parametrize("redirection", [">&-", ">&- 2>&-"])
def test_command_without_streams(words: tuple[str, ...], status: int, redirection: str, damaged: Path):
    """
    With its standard output closed, a command does what it does, with the same exit status and no traceback.
    """
    (damaged / "checkpoint").unlink()
    said = command(*(damaged if word == "STORE" else word for word in words), redirection=redirection)
    assert said.returncode == status
    assert "Traceback" not in said.stderr


def test_repair_in_place_through_a_link(damaged: Path, capsys: pytest.CaptureFixture[str]):
    """
    It is the directory that is replaced and kept, not a link to it.
    """
    link = damaged.with_name("link")
    link.symlink_to(damaged)
    said = say(capsys, "repair", link, "--in-place")
    assert said.status == 1
    assert link.is_symlink()
    assert link.resolve() == damaged
    assert say(capsys, "verify", link).status == 0
    (aside,) = damaged.parent.glob("store.damaged-*")
    assert not aside.is_symlink()


def test_verify_names_what_is_no_store_as_ls_does(damaged: Path, capsys: pytest.CaptureFixture[str]):
    """
    What is no directory, or not there, is told in the same words by all commands.
    """
    for path in (damaged / "checkpoint", damaged / "missing"):
        problems = {say(capsys, name, path).err.partition(": ")[2] for name in ("ls", "verify", "repair")}
        assert len(problems) == 1


class ReadOnlyVolume(RealDisk):
    """A volume of which one directory can only be read."""

    directory = Path()

    def lock(self, path: Path) -> RealLock:
        if path.parent == self.directory:
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return super().lock(path)

    def make_directory(self, path: Path) -> bool:
        if path.parent == self.directory.parent:
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return super().make_directory(path)


def test_repair_of_a_read_only_volume(damaged: Path, tmp_path: Path):
    """
    Where nothing can be written no lock can be taken: the copy is made elsewhere, with a note.
    """
    disk = ReadOnlyVolume()
    disk.directory = damaged
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    repair = repair_store(disk, damaged, 2e9, elsewhere / "copy")
    assert "read-only" in repair.notes[-1].text
    assert verify_store(disk, elsewhere / "copy").is_sound
    with pytest.raises(memable.StorageError, match=r"with the copy to be .*store\.repaired, failed"):
        repair_store(disk, damaged, 2e9)


def test_header_that_is_not_intact_names_the_way_out(damaged: Path, capsys: pytest.CaptureFixture[str]):
    """
    Where the first line of a file is damaged, the error names what finds and saves the rest.
    """
    path = logs_of(damaged)[-1]
    path.write_bytes(b"x" + path.read_bytes()[9:])
    said = say(capsys, "ls", damaged)
    assert "`memable repair` makes a copy" in said.err


@pytest.mark.parametrize("number", ["x", "0", "-1", "1.5", "9" * 30])
def test_limit_has_to_be_a_number(number: str, damaged: Path, capsys: pytest.CaptureFixture[str]):
    """
    A wrong number is told as such, and names nothing of this code.
    """
    with pytest.raises(SystemExit, match="2"):
        say(capsys, "ls", damaged, f"--limit={number}")
    assert f"{number!r} is not a whole number of at least 1" in capsys.readouterr().err


def test_file_store_names_the_durabilities():
    """
    A durability that there is not is refused in words.
    """
    with pytest.raises(ValueError, match='durability must be "fsync" or "os", not \'none\''):
        memable.FileStore("somewhere", "none")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


def test_command_that_is_interrupted_before_it_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    """
    After control-C there is one line, also where the command has only been chosen.
    """

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("argparse.ArgumentParser.parse_args", interrupt)
    said = say(capsys, "verify", tmp_path)
    assert (said.status, said.err) == (130, "memable: interrupted\n")
