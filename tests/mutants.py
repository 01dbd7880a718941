"""
Ways to break the store, each of which a test must notice.

A mutant is one change of the source that takes away something that the store's promises rest on. The command
``nox -s mutants`` makes each of them, in a copy of the checkout, and runs the tests that are named for it: one of these
must fail. ``test_mutants.py`` checks at every run of the tests that the list still fits the source.

When the source changes, adapt ``old`` and ``new``: ``old`` stands exactly once in its file, and is as short as it can
be. A mutant is dropped only if what it breaks is not there any more.
"""

from __future__ import annotations

from pathlib import Path

import attrs

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "memable"


@attrs.frozen
class Mutant:
    """
    A way to break the store.
    """

    name: str
    file: str
    "Relative to the package."
    old: str
    new: str
    tests: tuple[str, ...]
    "Names of tests, each as file and function without the suffix of the file; at least one fails."

    @property
    def path(self) -> Path:
        """
        Where the file is in this checkout.
        """
        return SOURCE / self.file

    def apply(self, text: str) -> str:
        """
        Return the file's text with the change made.

        Raises:
            ValueError: What is to be changed does not stand in it exactly once.
        """
        count = text.count(self.old)
        if count != 1:
            raise ValueError(f"{self.name}: {self.file} has {count} times what is to be changed")
        return text.replace(self.old, self.new)


def _in(file: str, *mutants: tuple[str, str, str, str]) -> tuple[Mutant, ...]:
    """Return mutants of one file, each of its name, the old text, the new one, and its tests, parted by blanks."""
    return tuple(Mutant(name, file, old, new, tuple(tests.split())) for name, old, new, tests in mutants)


_FAULTS = "test_store_faults::"
_TOGETHER = "test_storage_failures_together::"
_LOCKS = "test_lock_faults::"
_CAUGHT = "test_store_mutants_caught::"
_POWER_CUTS = _FAULTS + "test_power_cut_at_every_call_loses_nothing_acknowledged"
_HUNDRED = _TOGETHER + "test_disk_that_fails_under_a_hundred_workflows_acknowledges_none_of_them"
_SEALING = "test_sealing::"
_BITS = _SEALING + "test_every_bit_flipped_in_a_sealed_segment_is_told"
_SEGMENT_CUTS = _CAUGHT + "test_power_cut_at_any_call_while_segments_come_and_go"
_COPY = _FAULTS + "test_failed_sync_is_followed_by_a_copy"

TAIL = _in(
    "_store/_tail.py",
    ("a batch is not synced", "        if sync:\n", "        if False:\n", _POWER_CUTS),
    (
        "the lock is not looked at before a batch",
        "        self.lock.check()\n",
        "",
        _LOCKS + "test_holder_whose_lock_file_is_gone_stops_and_nobody_else_begins",
    ),
    (
        "the log's length is not looked at before a batch",
        "if self.file.size() != self.end:",
        "if False:",
        "test_store::test_store_that_lost_its_files_stops",
    ),
    (
        "a failed sync is tried again",
        "        except BaseException:\n            self.mark()\n            raise",
        "        except BaseException:\n            self.file.sync()",
        _HUNDRED,
    ),
    (
        "a failed sync is taken for a success",
        "        except BaseException:\n            self.mark()\n            raise",
        "        except BaseException:\n            self.mark()",
        _HUNDRED,
    ),
    ("a failure is not marked", "self.lock.mark(", "str(", _COPY),
    (
        "a failed write leaves a part of a batch",
        "            self.file.truncate(self.end)\n",
        "",
        _FAULTS + "test_full_disk_in_a_batch_acknowledges_nothing",
    ),
    (
        "the cut after a failed write is not synced",
        "            self.file.truncate(self.end)\n            self.file.sync()\n",
        "            self.file.truncate(self.end)\n",
        _COPY,
    ),
    (
        "a write that failed leaves the disk above suspicion",
        "disk_is_sound=is_no_room(exc)",
        "disk_is_sound=True",
        _COPY,
    ),
    (
        "a cut that failed leaves the disk above suspicion",
        "            disk_is_sound = False\n",
        "            pass\n",
        _COPY,
    ),
    (
        "a batch's number is used again",
        "        self.next_batch += 1\n",
        "",
        "test_store::test_store_remembers_over_openings",
    ),
    (
        "a batch is written over the one before",
        "        self.end = end\n",
        "",
        "test_store::test_store_gives_back_what_was_appended",
    ),
    (
        "a segment is not synced before the next one begins",
        "        self.sync()\n        header = ",
        "        header = ",
        _SEGMENT_CUTS,
    ),
    (
        "the last segment's number is not noted",
        "        self.lock.note_tail(header.segment)\n",
        "",
        _CAUGHT + "test_last_segment_that_is_missing_is_damage",
    ),
)

SEALS = _in(
    "_store/_tail.py",
    (
        "the checksum of a segment goes on from the one before",
        "        self.checksum = crc32(text)\n",
        "        self.checksum = crc32(text, self.checksum or 0)\n",
        _SEALING + "test_every_sealed_segment_has_its_checksum",
    ),
    (
        "a batch that was cut back counts in the checksum of its segment",
        "            self._cut_back(disk_is_sound=is_no_room(exc))\n",
        """\
            self._cut_back(disk_is_sound=is_no_room(exc))
            self.checksum = crc32(text, self.checksum or 0)
""",
        _SEALING + "test_session_that_begins_with_the_first_append_after_a_full_disk",
    ),
)

PROVEN = _in(
    "_proven.py",
    (
        "a torn tail counts in the checksum of its segment",
        "            self.value = crc32(whole[:cut], self._beyond)\n",
        "            self.value = crc32(whole, self._beyond)\n",
        _SEALING + "test_torn_tail_does_not_count_in_the_checksum",
    ),
    (
        "what is not a line is passed over in a proven segment",
        "        if len(lines) < count or not KINDS",
        "        if not KINDS",
        "test_proven::test_proven_lines_are_given_as_those_that_prove_themselves",
    ),
    (
        "an unknown record is passed over in a proven segment",
        " or not KINDS.issuperset({line[1] for line in lines}):",
        ":",
        "test_proven::test_unknown_record_is_told_alike",
    ),
)

COMMITTER = _in(
    "_store/_committer.py",
    (
        "a batch is acknowledged before it is written",
        "        tasks, texts, records, size = self._take_batch()\n",
        """\
        tasks, texts, records, size = self._take_batch()
        self._wake(tasks, None)
        tasks = []
""",
        _CAUGHT + "test_append_returns_when_its_batch_is_durable",
    ),
    (
        "a failure is told to nobody",
        "told = self._beginner, trio.lowlevel.reschedule, outcome.Value(failure)\n",
        "told = self._beginner, trio.lowlevel.reschedule, outcome.Value(None)\n",
        _FAULTS + "test_what_waits_behind_a_failed_batch_is_not_written",
    ),
    (
        "two batches are in flight",
        "        if self._is_busy:\n            failure",
        "        if False:\n            failure",
        _CAUGHT + "test_one_batch_is_in_flight_at_a_time",
    ),
    (
        "a batch follows one that failed",
        """\
            tasks.extend(self._tasks)
            for queue in (self._tasks, self._counts, self._sizes, self._records, self._texts):
                queue.clear()
""",
        "",
        _FAULTS + "test_what_waits_behind_a_failed_batch_is_not_written",
    ),
    (
        "appends go on after a failure",
        "            self._failure = error\n",
        "            pass\n",
        _FAULTS + "test_error_of_a_full_disk_tells_the_way_out",
    ),
    (
        "closing does not sync what was not synced",
        "            self._tail.sync()\n",
        "            pass\n",
        _CAUGHT + "test_closing_in_order_makes_all_durable",
    ),
    (
        "closing does not wait for what is in flight",
        "        if self._is_busy:\n            self._closer",
        "        if False:\n            self._closer",
        _CAUGHT + "test_store_whose_last_batch_fails_is_not_closed_in_order",
    ),
    (
        "a store that failed is closed as if in order",
        "        if self._failure is not None or self._opened is not None or not self._tail.is_sound:\n",
        "        if self._opened is not None:\n",
        _FAULTS + "test_failed_sync_is_followed_by_a_copy",
    ),
    (
        "a forked child may append",
        "        if not self._tail.lock.is_held:\n            raise",
        "        if False:\n            raise",
        _LOCKS + "test_forked_child_is_disabled_and_its_parent_goes_on",
    ),
)

WAITING = (
    *_in(
        "_store/_worker.py",
        (
            "a job that was given up is not told",
            "            run_sync_soon(self.done, self.value, self.error)\n",
            "            pass\n",
            "test_patience::test_job_that_takes_long_is_not_waited_for",
        ),
        (
            "the event loop waits for a job for ever",
            "self.finished.acquire(timeout=patience_s)",
            "self.finished.acquire()",
            "test_patience::test_disk_that_hangs_does_not_stall_the_event_loop",
        ),
    ),
    *_in(
        "_store/_committer.py",
        (
            "the event loop syncs beside a compaction",
            "        is_quiet = self._worker.is_idle and not self.is_disk_busy\n",
            "        is_quiet = True\n",
            "test_patience::test_append_beside_upkeep_is_left_to_the_thread",
        ),
        (
            "the event loop begins a segment",
            " and not self._tail.is_full\n",
            "\n",
            "test_patience::test_first_append_of_a_segment_is_left_to_the_thread",
        ),
    ),
    *_in(
        "_store/_patience.py",
        (
            "a disk need not prove that it is quick",
            "        return Manner.STANDING if self._quick < self._proof else Manner.ON_THE_SPOT\n",
            "        return Manner.ON_THE_SPOT\n",
            "test_patience::test_slow_disk_is_hardly_ever_waited_for",
        ),
        (
            "a stall is forgiven at once",
            "            self._proof = min(4 * max(self._proof, MIN_PROOF), MAX_PROOF)\n",
            "            self._proof = MIN_PROOF\n",
            "test_patience::test_disk_that_hesitates_is_found_out",
        ),
    ),
)

RECOVERY = _in(
    "_store/_recovery.py",
    (
        "a torn tail is not cut off",
        "            file.truncate(scan.good_end)\n",
        "            pass\n",
        _FAULTS + "test_log_cut_at_every_byte_of_its_last_batch_opens",
    ),
    (
        "a torn tail is cut off without being kept",
        "        if reading.scan.torn_batch_count:\n",
        "        if False:\n",
        _FAULTS + "test_log_cut_at_every_byte_of_its_last_batch_opens",
    ),
    (
        "what may have been acknowledged is cut off though it cannot be kept",
        '        if scan.durability == "os":\n            raise\n',
        "",
        _FAULTS + "test_torn_tail_of_an_os_session_is_kept_before_it_is_cut",
    ),
    (
        "all torn tails but the newest are removed",
        "[:-MAX_TORN_FILES]:",
        "[:-1]:",
        _FAULTS + "test_torn_tails_are_kept_apart_and_bound_in_number",
    ),
    (
        "the name of a torn tail's copy is not synced",
        "                disk.sync_directory(path.parent)\n",
        "                pass\n",
        _FAULTS + "test_torn_tail_that_is_kept_already_is_kept_durably",
    ),
    (
        "a torn tail is written over another one",
        "own[-1].number + 1 if own else 0",
        "0",
        _FAULTS + "test_torn_tails_are_kept_apart_and_bound_in_number",
    ),
    (
        "the last batch is not written once more",
        "_copy_range(file, scan.last_batch_start, scan.good_end, file)",
        "pass",
        _FAULTS + "test_failed_sync_that_left_no_mark_is_made_up_for",
    ),
    (
        "what is believed is not synced",
        "        file.sync()\n    except OSError:\n",
        "    except OSError:\n",
        _CAUGHT + "test_recovery_is_durable_before_a_session_begins",
    ),
    (
        "a failed sync of a recovery is not marked",
        "            lock.mark(",
        "            str(",
        _FAULTS + "test_failed_sync_of_a_recovery_is_followed_by_a_copy",
    ),
    (
        "a failed sync of a recovery is tried again",
        "            lock.mark(reading.files.tail_path.name)\n        raise\n",
        "            file.sync()\n",
        _FAULTS + "test_failed_sync_of_a_recovery_is_followed_by_a_copy",
    ),
    ("a marked log is not copied", "is_sure = not lock.is_marked() and", "is_sure = True and", _COPY),
    (
        "a mark is taken away before the copy is made",
        "            file = _copy(disk, path, file, reading)\n",
        "            lock.clear_mark()\n            file = _copy(disk, path, file, reading)\n",
        _FAULTS + "test_mark_of_a_failure_survives_until_the_copy_is_made",
    ),
    ("a mark is never taken away", "                lock.clear_mark()\n", "                pass\n", _COPY),
    (
        "a missing last segment is not noticed",
        "    elif chain.current[-1].last < lock.noted_tail():\n",
        "    elif False:\n",
        _CAUGHT + "test_last_segment_that_is_missing_is_damage",
    ),
    (
        "a missing log is made anew",
        "if lock.has_noted_holder() or ",
        "if ",
        _LOCKS + "test_log_that_was_removed_or_replaced_stops_its_holder",
    ),
)

SETTLING_DISK = _in(
    "_store/_settling_disk.py",
    (
        "a sync of the directory is asked for again after one that failed",
        "                self._has_failed = True\n",
        "",
        "test_settling_disk::test_nothing_is_named_or_believed_after_a_sync_of_the_directory_has_failed",
    ),
    (
        "a sync of the directory that failed is not noted",
        "                self._note_failure()\n",
        "",
        "test_settling_disk::test_failed_sync_of_the_directory_at_an_open_is_made_up_for",
    ),
    (
        "two threads sync the directory at once",
        "        with self._mutex:\n",
        "        if True:\n",
        "test_settling_disk::test_thread_that_waits_for_a_sync_of_another_learns_that_it_failed",
    ),
)

DIRECTORY = _in(
    "_store/_directory.py",
    (
        "a directory whose making failed is left as it is",
        "                disk.remove_directory(directory)\n",
        "                pass\n",
        "test_settling_disk::test_store_that_is_made_anew_after_a_failed_sync_is_durable",
    ),
    (
        "a file gets its name before it is durable",
        "        write(file)\n        file.sync()\n",
        "        write(file)\n",
        _POWER_CUTS,
    ),
    (
        "the name of a new file is not synced",
        "        disk.sync_directory(target.parent)\n",
        "        pass\n",
        _CAUGHT + "test_names_are_durable_before_anything_else_happens",
    ),
    (
        "a new store's directory is not synced",
        "            disk.sync_directory(directory.parent)\n",
        "            pass\n",
        _FAULTS + "test_directory_is_durable_before_anything_in_it_is_acknowledged",
    ),
    (
        "a file is renamed before it is written",
        "    file = disk.open_file(temporary, create=True)\n",
        "    file = disk.open_file(temporary, create=True)\n    disk.rename(temporary, path)\n    temporary = path\n",
        _POWER_CUTS,
    ),
    (
        "somebody else's directory is taken for a store's",
        "        if foreign:\n",
        "        if False:\n",
        "test_store::test_foreign_directory_is_refused",
    ),
)

SCAN = _in(
    "_scan.py",
    (
        "a batch is believed without its last line",
        '                    if mark == b";":\n',
        "                    if True:\n",
        "test_scan::test_missing_line_within_an_older_batch_is_damage",
    ),
    (
        "a batch of unusual lines is believed without its last one",
        "        return self._end_batch() if parsed.is_last else None\n",
        "        return self._end_batch()\n",
        _CAUGHT + "test_batch_of_unusual_lines_is_whole_or_absent",
    ),
    (
        "the checksum of a usual line is ignored",
        "                    and int(stored, 16) == crc32(line[9:], seed)\n",
        "",
        "test_scan::test_every_flipped_bit_before_the_last_batch_is_damage",
    ),
    (
        "a usual batch is believed that is not the one that is due",
        "                    place == due\n                    and ",
        "                    ",
        "test_scan::test_missing_or_moved_batch_is_damage",
    ),
    (
        "a usual line is believed that is not the one that is due",
        "                    and int(index) == len(partial)\n",
        "",
        "test_scan::test_missing_line_within_an_older_batch_is_damage",
    ),
    (
        "a usual line of another session is believed",
        "                    place == due\n",
        '                    place.partition(b".")[2] == due.partition(b".")[2]\n',
        _CAUGHT + "test_line_that_an_earlier_session_left_over_is_no_damage",
    ),
    (
        "a batch is believed that is not the one that is due",
        "                and parsed.batch == self.next_batch\n",
        "",
        "test_scan::test_missing_or_moved_batch_is_damage",
    ),
    (
        "a line is believed that is not the one that is due",
        "                and parsed.position == len(self._partial)\n",
        "",
        "test_scan::test_missing_line_within_an_older_batch_is_damage",
    ),
    (
        "a line of another session is believed",
        "                (parsed.session == self.session or is_new_session)\n                and ",
        "                ",
        _CAUGHT + "test_line_that_an_earlier_session_left_over_is_no_damage",
    ),
    (
        "damage is taken for a torn tail",
        'if line.session > self.session or (is_later and (self.durability != "os" or line.text.startswith(_CLOSING))):',
        "if False:",
        "test_scan::test_every_flipped_bit_before_the_last_batch_is_damage",
    ),
    (
        "a torn tail of a session that does not sync is taken for damage",
        '(self.durability != "os" or line.text.startswith(_CLOSING))',
        "True",
        "test_scan::test_holes_in_an_os_session_are_a_torn_tail",
    ),
    (
        "a hole before a session's end is taken for a torn tail",
        " or line.text.startswith(_CLOSING)",
        "",
        "test_scan::test_hole_before_a_sync_of_an_os_session_is_damage",
    ),
    (
        "zeros are skipped",
        "        parsed = parse_line(line, self._seed)\n",
        '        parsed = parse_line(line.lstrip(b"\\0"), self._seed)\n',
        _CAUGHT + "test_what_stands_behind_zeros_is_not_believed",
    ),
    (
        "damage to a segment that has a successor is taken for a torn tail",
        "        if self.is_sealed:\n            self._refuse(\n",
        "        if False:\n            self._refuse(\n",
        _CAUGHT + "test_damage_in_a_segment_that_has_a_successor_is_no_torn_tail",
    ),
    (
        "a segment that has a successor may end within a batch",
        "        if self.is_sealed and self._partial:\n",
        "        if False:\n",
        _CAUGHT + "test_segment_that_ends_within_itself_is_damage",
    ),
    (
        "lines that damage swallowed are not searched for",
        "            self._search(line)\n",
        "",
        "test_scan::test_line_swallowed_by_damage_is_still_proof",
    ),
)

FRAMES = _in(
    "_frames.py",
    (
        "a record's checksum is ignored",
        "    if int(stored, 16) != crc32(line[9:], seed):\n",
        "    if False:\n",
        "test_frames::test_line_with_any_bit_flipped_is_not_believed",
    ),
    (
        "a checksum does not depend on the store",
        "    return crc32(store_id.encode())\n",
        "    return 0\n",
        "test_frames::test_line_of_another_store_is_not_believed",
    ),
    (
        "what is in parts is checked but for its last part",
        "part, before), text, crc32",
        "part, before), text[:-1], crc32",
        "test_frames::test_lines_in_parts_are_the_same",
    ),
    (
        "a header's checksum is ignored",
        "    if found is None or int(found[1], 16) != crc32(found[2]):\n        raise",
        "    if found is None:\n        raise",
        "test_frames::test_header_with_any_bit_flipped_is_damage",
    ),
    (
        "a newer format is read as if it were this one",
        "    if version > FORMAT_VERSION:\n",
        "    if False:\n",
        "test_frames::test_header_of_a_newer_format_says_so",
    ),
)

LOCK = _in(
    "_store/_lockfile.py",
    (
        "the note of a failure has no room of its own",
        "        if file.size() < _SIZE:\n",
        "        if False:\n",
        _CAUGHT + "test_failure_can_be_marked_on_a_full_disk",
    ),
    (
        "the room for the note of a failure is not there for sure",
        "            file.sync()\n",
        "",
        _CAUGHT + "test_failure_can_be_marked_on_a_full_disk",
    ),
    (
        "somebody else's lock file is written over",
        'if not is_store and text.strip(b" \\n\\0")',
        "if False",
        "test_store::test_foreign_lock_file_is_refused",
    ),
)

DISK = _in(
    "_disk.py",
    (
        "a short write is taken for a whole one",
        "        if written == len(chunk):\n            return\n",
        "        return\n",
        _FAULTS + "test_short_writes_are_completed",
    ),
    (
        "a file is not synced",
        "                os.fdatasync(self.live_fd())\n",
        "                pass\n",
        _CAUGHT + "test_sync_of_a_file_reaches_the_system",
    ),
    (
        "a directory is not synced",
        "            _sync_drive(fd)\n",
        "            pass\n",
        _CAUGHT + "test_sync_of_a_directory_reaches_the_system",
    ),
    (
        "a log that no name leads to is written to",
        "        if not found.st_nlink:\n",
        "        if False:\n",
        _LOCKS + "test_log_that_was_removed_or_replaced_stops_its_holder",
    ),
    (
        "a lock file that was replaced is held all the same",
        "found != self.identities[1]:",
        "False:",
        _LOCKS + "test_holder_whose_lock_file_is_gone_stops_and_nobody_else_begins",
    ),
    (
        "the directory is not locked",
        "                    own = _take(directory, path)\n",
        "                    own = _identity_of(os.fstat(directory.fd))\n",
        _LOCKS + "test_lock_file_lost_while_a_batch_is_in_flight_makes_no_second_writer",
    ),
    (
        "nothing is locked",
        "        fcntl.flock(file.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
        "        pass\n",
        _LOCKS + "test_living_holder_is_named_at_once",
    ),
    (
        "a lock that this process holds is not known",
        "    if identity in _held_locks:\n",
        "    if False:\n",
        "test_disk::test_lock_excludes_this_process",
    ),
    (
        "a path in a locked directory leads to what is there now",
        "return (str(path), None) if directory is None",
        "return (str(path), None) if True",
        _LOCKS + "test_lock_holder_works_in_the_directory_that_it_locked",
    ),
    (
        "a forked child keeps the lock",
        "        self._disk.close_all()\n",
        "        pass\n",
        _LOCKS + "test_lock_dies_with_the_parent_of_a_forked_child",
    ),
    (
        "a forked child believes that it holds the lock",
        "        lock.disable()\n",
        "        lock._disk.close_all()\n",
        _LOCKS + "test_forked_child_is_disabled_and_its_parent_goes_on",
    ),
    (
        "a fork does not wait for a lock that is being taken",
        "        with _taking:\n",
        "        with contextlib.nullcontext():\n",
        _LOCKS + "test_fork_waits_for_a_lock_that_is_being_taken",
    ),
    (
        "a lock is kept by a child that is just being forked",
        "                fcntl.flock(file.fd, fcntl.LOCK_UN)\n",
        "",
        "test_disk::test_lock_is_gone_when_it_is_released",
    ),
    (
        "a link in the place of a file is followed",
        "_WRITABLE = os.O_RDWR | os.O_NOFOLLOW\n",
        "_WRITABLE = os.O_RDWR\n",
        _LOCKS + "test_what_is_no_file_is_refused_at_once",
    ),
    (
        "files can be read by everybody",
        "FILE_MODE = 0o600",
        "FILE_MODE = 0o644",
        "test_store::test_file_store_is_a_private_readable_directory",
    ),
)

ADMISSION = _in(
    "_store/_admission.py",
    (
        "a sequence number is used again",
        "    if record.seq != seq + 1:\n",
        "    if False:\n",
        "test_store::test_store_refuses_records_that_cannot_follow",
    ),
    (
        "a name is used again",
        "        if holder is not None and ",
        "        if False and ",
        "test_store::test_store_refuses_records_that_cannot_follow",
    ),
    (
        "something follows the end of an instance",
        "    elif phase == _ENDED and type(record) is not InstanceResumed:\n",
        "    elif False:\n",
        "test_store::test_store_refuses_records_that_cannot_follow",
    ),
)

INDEX = _in(
    "_store/_index.py",
    (
        "an instance's number is given out again",
        "        self.last_number += 1\n",
        "        self.last_number = 1\n",
        "test_store::test_store_lists_headers_by_number",
    ),
    (
        "status messages are overlooked in lines",
        "        has_status = _STATUS_TEXT in ",
        "        has_status = False and _STATUS_TEXT in ",
        "test_store_index::test_index_takes_lines_that_say_more",
    ),
    (
        "lines that are not the next ones of their instances are taken for these",
        "seq == NEXT_SEQS[len(known)]:\n                        known.append",
        "seq:\n                        known.append",
        "test_store_index::test_index_takes_lines_that_say_more",
    ),
)

ENDED_INDEX = _in(
    "_store/_ended_index.py",
    (
        "two instances of a log that is read quickly have one name",
        "        return self._late_names.add(checksum, number)\n",
        "        self._late_names.add(checksum, number)\n        return True\n",
        "test_store_index::test_index_notes_a_second_start_under_one_name_in_lines",
    ),
    (
        "names of instances that ended during recovery are lost",
        "                self._names.extend(checksums, numbers)\n",
        "                pass\n",
        "test_store_index::test_index_takes_lines_that_say_the_usual",
    ),
)

PLAIN_INSTANCES = _in(
    "_store/_plain_instances.py",
    (
        "what else a start says is overlooked",
        "        if origin is None or not line.startswith(_TYPE_FOLLOWS, id_end):\n",
        "        if origin is None:\n",
        "test_store_index::test_index_takes_lines_that_say_more",
    ),
    (
        "an escape in an id is taken for the id",
        '        if b"\\\\" in instance_id or ',
        "        if ",
        "test_store_index::test_index_takes_lines_that_say_more",
    ),
)

FILE = _in(
    "_store/file.py",
    (
        "a session's number is used again",
        "session + 1\n",
        "session\n",
        "test_store::test_store_remembers_over_openings",
    ),
    (
        "a holder is noted before there is a store",
        "        log = recover_log(disk,",
        "        lock.note_holder(now)\n        log = recover_log(disk,",
        _POWER_CUTS,
    ),
)

COMPACTION = _in(
    "_store/_compaction.py",
    (
        "a compacted segment is not synced",
        "            file.sync()\n",
        "",
        _SEGMENT_CUTS,
    ),
    (
        "the name of a compacted segment is not synced",
        "            rename_durably(self.files.disk, self._temporary, self.files.path(self.name))\n",
        "            self.files.disk.rename(self._temporary, self.files.path(self.name))\n",
        _CAUGHT + "test_names_are_durable_before_anything_else_happens",
    ),
    (
        "a compaction drops what is needed",
        "        elif not self.needs.instance(number):\n",
        "        elif True:\n",
        _CAUGHT + "test_kill_at_any_call_while_segments_come_and_go",
    ),
    (
        "a compaction drops a tombstone that is needed",
        "            if not self.needs.tombstone(number):\n                return\n",
        "            return\n",
        _CAUGHT + "test_damaged_checkpoint_changes_nothing",
    ),
)

UPKEEP = _in(
    "_store/_upkeep.py",
    (
        "a checkpoint speaks of what is not durable",
        "        await self.committer.sync()\n        size = ",
        "        size = ",
        "test_checkpoint::test_checkpoint_is_written_when_all_that_it_tells_of_is_durable",
    ),
    (
        "a compacted segment has its name before what it rests on is durable",
        "            await self.committer.sync()\n            await self._in_thread(compaction.name_it)\n",
        "            await self._in_thread(compaction.name_it)\n",
        _SEGMENT_CUTS,
    ),
    (
        "the originals of a compaction are removed before it has its name",
        "            await self._in_thread(compaction.name_it)\n",
        """\
            remove_all(self.files.disk, [self.files.path(name) for name in run])
            await self._in_thread(compaction.name_it)
""",
        _SEGMENT_CUTS,
    ),
)

CHECKPOINT = _in(
    "_store/_checkpoint.py",
    (
        "a checkpoint's checksums are ignored",
        "        if crc32(part) != checksum:\n",
        "        if False:\n",
        _CAUGHT + "test_damaged_checkpoint_changes_nothing",
    ),
    (
        "the checksum of a checkpoint's last line is ignored",
        "    if int(stored, 16) != crc32(text):\n",
        "    if False:\n",
        _CAUGHT + "test_damaged_checkpoint_changes_nothing",
    ),
)

READING = _in(
    "_store/_reading.py",
    (
        "the checksum of a sealed segment is ignored",
        "        and _checksum(file, start, before.size, checksum) == before.checksum\n",
        "",
        _BITS,
    ),
    (
        "the checksum of a compacted segment is ignored",
        " and _checksum(file, start, end, 0) == compacted.checksum:",
        ":",
        _BITS,
    ),
    (
        "a sealed segment is believed before its checksum is compared",
        "            if following is not None and _is_as_sealed(",
        """\
            self._read_proven(name, file, location, start)
            if following is not None and _is_as_sealed(""",
        _SEALING + "test_wrong_checksum_of_intact_lines_locks_nobody_out",
    ),
    (
        "the checksum of a segment begins anew at a checkpoint",
        "checkpoint.offset, checkpoint.state, checkpoint.checksum",
        "checkpoint.offset, checkpoint.state, 0",
        _SEALING + "test_every_sealed_segment_has_its_checksum",
    ),
    (
        "a missing segment is not noticed",
        "    if chain.missing is not None:\n",
        "    if False:\n",
        _CAUGHT + "test_segment_that_is_missing_is_damage",
    ),
    (
        "a segment need not begin where the one before ended",
        "        if before is None:\n",
        "        if True:\n",
        _CAUGHT + "test_segment_that_ends_within_itself_is_damage",
    ),
)

FILES = _in(
    "_store/_files.py",
    (
        "a record is returned that is not what it was",
        "    if record is None or isinstance(record, StoreOpened | StoreClosed) or record.instance != number:\n",
        "    if False:\n",
        "test_store::test_damage_found_by_a_load_is_told",
    ),
)

MUTANTS = (
    *TAIL,
    *SEALS,
    *PROVEN,
    *COMMITTER,
    *WAITING,
    *RECOVERY,
    *DIRECTORY,
    *SETTLING_DISK,
    *SCAN,
    *FRAMES,
    *LOCK,
    *DISK,
    *ADMISSION,
    *INDEX,
    *ENDED_INDEX,
    *PLAIN_INSTANCES,
    *FILE,
    *COMPACTION,
    *UPKEEP,
    *CHECKPOINT,
    *READING,
    *FILES,
)
