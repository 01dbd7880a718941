"""
The pictures of the documentation: what is on each, and where.
"""

from __future__ import annotations

from collections.abc import Sequence

from crash_story import Call, CrashStory
from svg import Box, Kind, Line, Picture, Shape, Text

_WIDTH = 760.0
#: Where the columns begin, one a step, and how wide each is.
_COLUMNS = (128.0, 288.0, 448.0, 608.0)
_COLUMN_WIDTH = 146.0
_BOX_HEIGHT = 46.0


def _row_name(y: float, *lines: str) -> list[Shape]:
    return [
        Text(4, y + (number - (len(lines) - 1) / 2) * 17, line, is_small=number > 0, is_bold=number == 0)
        for number, line in enumerate(lines)
    ]


def _middle(column: int) -> float:
    return _COLUMNS[column] + _COLUMN_WIDTH / 2


# A crash and a recovery --------------------------------------------------------------------------------------------


def timeline(story: CrashStory) -> Picture:
    """
    Draw what happened in two processes, one below the other, and what was recorded between them.
    """
    first_y, log_y, second_y = 24.0, 122.0, 220.0
    shapes = [
        *_row_name(first_y + 23, "first process", f"from {0:g} s"),
        *_row_name(log_y + 23, "log", "on disk"),
        *_row_name(second_y + 23, "second process", f"from {story.restarted_s:g} s"),
    ]
    for column, key in enumerate(story.keys):
        shapes.append(_memo(column, log_y, story.memos[key]))
        cut = [call for call in story.first_run if call.key == key and call.ended_s is None]
        shapes += [_cut(column, first_y, call, story.crashed_s) for call in cut]
        shapes += _ran(column, first_y, log_y, story.first_run, key)
        shapes += _ran(column, second_y, log_y, story.second_run, key)
        if key in story.served:
            shapes.append(_box(column, second_y, (key, f"memo, at {story.restarted_s:g} s"), "kept", is_dashed=True))
            shapes.append(Line([(_middle(column), log_y + _BOX_HEIGHT), (_middle(column), second_y)], "kept"))
    crash_x = _COLUMNS[len(story.first_run) - 1] + _COLUMN_WIDTH + 7
    shapes.append(Line([(crash_x, 8), (crash_x, first_y + _BOX_HEIGHT + 16)], "bad", has_arrow=False))
    shapes.append(Text(crash_x + 8, first_y + 23, f"killed at {story.crashed_s:g} s", is_bold=True))
    served = " and ".join(story.served)
    ran = " and ".join(call.key for call in story.second_run)
    return Picture(
        "A crash and a recovery",
        f"The first process is killed {story.crashed_s:g} seconds after the start. The second one is given the memos "
        f"of {served} and runs {ran}.",
        _WIDTH,
        290,
        shapes,
    )


def _box(column: int, y: float, lines: Sequence[str], kind: Kind = "plain", *, is_dashed: bool = False) -> Box:
    return Box(_COLUMNS[column], y, _COLUMN_WIDTH, _BOX_HEIGHT, lines, kind, is_dashed)


def _memo(column: int, y: float, at_s: float) -> Box:
    return Box(
        _COLUMNS[column] + 18, y, _COLUMN_WIDTH - 36, _BOX_HEIGHT, ("memo", f"at {at_s:g} s"), "kept", is_mono=False
    )


def _cut(column: int, y: float, call: Call, crashed_s: float) -> Box:
    return _box(column, y, (call.key, f"cut short, {call.began_s:g} to {crashed_s:g} s"), "bad", is_dashed=True)


def _ran(column: int, y: float, log_y: float, calls: Sequence[Call], key: str) -> list[Shape]:
    shapes: list[Shape] = []
    for call in calls:
        if call.key == key and call.ended_s is not None:
            shapes.append(_box(column, y, (key, f"runs, {call.began_s:g} to {call.ended_s:g} s"), "good"))
            ends = (y + _BOX_HEIGHT, log_y) if y < log_y else (y, log_y + _BOX_HEIGHT)
            shapes.append(Line([(_middle(column), end) for end in ends], "good"))
    return shapes


# Positions and keys --------------------------------------------------------------------------------------------------

_RECORDED = ("fetch:v1", "parse:v1")
#: What the code asks for after a deploy that put a step in between.
_ASKED = ("fetch:v1", "check:v1", "parse:v1", "save:v1")


def replay_or_keys() -> Picture:
    """
    Draw what becomes of the same records and the same new code when replayed by position and when looked up by key.
    """
    return Picture(
        "Replay by position, and recovery by key",
        f"The records are {' and '.join(_RECORDED)}; the new code asks for {', '.join(_ASKED)}. By position the second "
        "request meets the record of another step, and the replay fails. By key the recorded steps are given their "
        "memos, and the new ones run.",
        _WIDTH,
        372,
        [*_by_position(0), *_by_key(192)],
    )


def _by_position(y: float) -> list[Shape]:
    record_y, code_y = y + 30, y + 116
    shapes: list[Shape] = [Text(4, y + 12, "Replay by position", is_bold=True)]
    shapes += _row_name(record_y + 23, "history", "before the deploy")
    shapes += _row_name(code_y + 23, "new code", "asks for")
    for column, key in enumerate(_RECORDED):
        shapes.append(_box(column, record_y, (key, f"number {column + 1}"), "kept"))
        is_same = key == _ASKED[column]
        ends = [(_middle(column), record_y + _BOX_HEIGHT), (_middle(column), code_y)]
        shapes.append(Line(ends, "kept" if is_same else "bad", is_dashed=not is_same))
    results = ("replayed", "number 2 differs", "not reached", "not reached")
    kinds: tuple[Kind, ...] = ("kept", "bad", "plain", "plain")
    for column, (key, result, kind) in enumerate(zip(_ASKED, results, kinds, strict=True)):
        shapes.append(_box(column, code_y, (key, result), kind, is_dashed=kind != "kept"))
    return shapes


def _by_key(y: float) -> list[Shape]:
    record_y, code_y = y + 30, y + 116
    shapes: list[Shape] = [Text(4, y + 12, "Recovery by key", is_bold=True)]
    shapes += _row_name(record_y + 23, "memos", "before the deploy")
    shapes += _row_name(code_y + 23, "new code", "asks for")
    for column, key in enumerate(_ASKED):
        if key in _RECORDED:
            shapes.append(_box(column, record_y, (key, "memo"), "kept"))
            shapes.append(Line([(_middle(column), record_y + _BOX_HEIGHT), (_middle(column), code_y)], "kept"))
            shapes.append(_box(column, code_y, (key, "given its memo"), "kept", is_dashed=True))
        else:
            shapes.append(_box(column, code_y, (key, "runs"), "good"))
    return shapes


# The states of an instance -------------------------------------------------------------------------------------------


def states() -> Picture:
    """
    Draw the states of an instance and what leads from one to another.
    """
    shapes: list[Shape] = [
        Box(4, 30, 110, 56, ("Suspended",), "wait", is_mono=False),
        Box(4, 212, 110, 56, ("Blocked",), "bad", is_mono=False),
        Box(316, 116, 140, 66, ("Running", "Started, InProgress"), "good", is_mono=False),
        Line([(386, 64), (386, 116)], "good"),
        Text(386, 52, "engine.invoke", "middle", is_small=True),
        *_there_and_back((126, 140), (44, 68), ("every branch waits", "signal, deadline, child"), "wait"),
        *_there_and_back((172, 158), (254, 230), ("it needs a person", "mended, settled, resumed"), "bad"),
        *_ended("Completed", "the body returns", 128, 53),
        *_ended("Failed", "an exception leaves it", 149, 149),
        *_ended("Cancelled", "engine.cancel", 170, 245),
        Line([(750, 300), (386, 300), (386, 182)], "good", is_dashed=True),
        Text(560, 314, "engine.resume, a Completed one with forget=", "middle", is_small=True),
    ]
    return Picture(
        "The states of an instance",
        "An instance runs from its start. When every branch of it waits it is Suspended, until a signal, a deadline or "
        "a child lets it run on. When its code and its journal disagree, or an outcome is unknown, it is Blocked, "
        "until the code is mended or the step is settled. It ends as Completed when its body returns, as Failed when "
        "an exception leaves it, as Cancelled by engine.cancel, also while it is Suspended or Blocked; engine.resume "
        "lets an ended one run again.",
        _WIDTH,
        330,
        shapes,
    )


def _there_and_back(
    running_ys: tuple[float, float], state_ys: tuple[float, float], labels: tuple[str, str], kind: Kind
) -> list[Shape]:
    """Return the lines between Running and a state to its left: there, and, nearer to the middle, back."""
    outwards = 12 if state_ys[0] > state_ys[1] else -12
    return [
        Line([(316, running_ys[0]), (302, running_ys[0]), (302, state_ys[0]), (114, state_ys[0])], kind),
        Text(201, state_ys[0] + outwards, labels[0], "middle", is_small=True),
        Line([(114, state_ys[1]), (288, state_ys[1]), (288, running_ys[1]), (316, running_ys[1])], "good"),
        Text(201, state_ys[1] - outwards, labels[1], "middle", is_small=True),
    ]


def _ended(name: str, label: str, running_y: float, y: float) -> list[Shape]:
    """Return a state that an instance ends in, with the lines to it and, to be resumed, from it."""
    return [
        Box(640, y - 23, 100, 46, (name,), "kept", is_mono=False),
        Line([(456, running_y), (470, running_y), (470, y), (640, y)], "kept"),
        Text(555, y - 12, label, "middle", is_small=True),
        Line([(740, y), (750, y), (750, 300)], "good", is_dashed=True, has_arrow=False),
    ]


# The log -----------------------------------------------------------------------------------------------------------

_BATCHES: tuple[tuple[str, Kind, tuple[str, ...]], ...] = (
    ("batch 16: acknowledged", "kept", ("1c9aa336 3.16.0+ {... fetch:v1 ...}", "6aa3d5cc 3.16.1; {... parse:v1 ...}")),
    ("batch 17: acknowledged", "kept", ("8fcb1c8c 3.17.0; {... save:v1 ...}",)),
    ("batch 18: torn by a crash", "bad", ("198ca896 3.18.0+ {... fetch:v1 ...}", "4091879c 3.18.1; {... par")),
)


def log() -> Picture:
    """
    Draw the files of a store, and the end of its log more closely.
    """
    shapes: list[Shape] = [
        Box(
            128,
            8,
            386,
            34,
            ("checkpoint: what is alive in the sealed segments",),
            "plain",
            is_dashed=True,
            is_mono=False,
        ),
        *_row_name(84, "segments", "of the log"),
    ]
    for x, name, note in (
        (128, "00000001.log", "sealed"),
        (328, "00000002.log", "sealed"),
        (528, "00000003.log", "is appended to"),
    ):
        shapes.append(Box(x, 62, 186, 46, (name, note), "good" if note != "sealed" else "plain"))
    shapes += [Line([(221, 62), (221, 42)], is_dashed=True), Line([(421, 62), (421, 42)], is_dashed=True)]
    shapes += [Line([(x, 108), (end, 134)], is_dashed=True, has_arrow=False) for x, end in ((528, 128), (714, 754))]
    y = 134.0
    for name, kind, lines in _BATCHES:
        height = 17 * len(lines) + 14
        shapes.append(Box(128, y, 626, height, (), kind, is_dashed=kind == "bad"))
        label, _, state = name.partition(": ")
        shapes += _row_name(y + height / 2, label, state)
        shapes += [Text(140, y + 7 + 17 * (number + 0.5), line, is_mono=True) for number, line in enumerate(lines)]
        note = "cut off when the store is opened" if kind == "bad" else "one write, one sync"
        shapes.append(Text(742, y + height / 2, note, "end", is_small=True))
        y += height + 8
    shapes.append(
        Text(
            140,
            y + 10,
            "checksum; session.batch.line; + if more of the batch follow, ; on its last line; record",
            is_small=True,
        )
    )
    return Picture(
        "The log of a store",
        "The log is files, its segments: the last is appended to, the others are sealed, and the checkpoint is a cache "
        "of what is alive in those. A segment is made of batches; a batch is written and synced at once, and is made "
        "of lines, one a record. A batch that a crash has torn is cut off when the store is opened.",
        _WIDTH,
        y + 28,
        shapes,
    )
