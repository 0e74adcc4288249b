"""A sweep of retention over a real file: what goes, what stays, in which steps, and what it reports."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "core"))

from bench import Bench, new_run_id, opened

from mesh.config import RetentionSection
from mesh.core import wire
from mesh.core.export import END, EVENT, HEADER, RUN, decode_line
from mesh.core.workspace import patch_key
from mesh.errors import StoreError
from mesh.node.retention import DAY_S, PROTECTED, Retention
from mesh.node.tag_age import TagAge
from mesh.store.removing import Removing
from mesh.workspaces.artifacts import FileStore


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    yield from opened(tmp_path)


class Asker:
    """Whoever waits for the report."""

    report: Any = None

    def resolve(self, answer: bytes) -> None:
        assert answer[:2] == wire.OK
        self.report = wire.unpack(answer[2:])


def sweep(
    bench: Bench, *, errors: int = 0, meanwhile: list[Any] | None = None, **policy: Any
) -> dict[str, Any]:
    """One whole sweep, step by step as the partition's loop does it; somebody may call ``meanwhile``."""
    retention = Retention(
        bench.store, bench.state, bench.ops.keeping, RetentionSection(**policy), share=1.0,
        owns=lambda _: True, tags=lambda removing: TagAge(removing, bench.ops.runners.spent.forget),
    )
    asker = Asker()
    retention.ask(asker)  # type: ignore[arg-type]
    while retention.due_s is not None:
        bench.mono = max(bench.mono, retention.due_s)
        bench._clock()
        bench.partition.begin()
        retention.step()
        bench._commit()
        if meanwhile is not None and any(Path(policy["archive_dir"]).glob("*.part")):
            op, *args = meanwhile
            bench.call(op, *args)
    assert len(asker.report["errors"]) == errors
    return asker.report


def session(bench: Bench, sid: str, *, tags: Any = (), end: str | None = "complete") -> None:
    bench.call("session.start", sid, "echo", {"tags": list(tags)})
    if end is not None:
        bench.call(f"session.{end}", sid)


def left(bench: Bench) -> list[str]:
    found, _ = bench.store.list_sessions(status=None, agent_id=None, after=0, limit=1000, bytes_max=10**6)
    return [s.id for s in found]


def test_old_sessions_are_hidden_and_later_forgotten(bench: Bench) -> None:
    """If sessions are old enough, then they are deleted softly; 30 days later hard, with all rows."""
    session(bench, "old")
    session(bench, "pinned", tags=["pinned"])
    session(bench, "active", end=None)
    bench.call("session.create", "pending", "echo", None)
    bench.now += 91 * DAY_S
    session(bench, "young")
    policy = {"max_completed_session_age_days": 90.0, "batch_size": 1}
    report = sweep(bench, **policy)
    assert report["sessions_soft_deleted"] == 2  # also the one that never began
    assert left(bench) == ["pinned", "active", "young"]
    assert bench.lifecycle("old")[-1] == "deleted"
    assert sweep(bench, **policy)["sessions_soft_deleted"] == 0
    bench.now += 31 * DAY_S
    report = sweep(bench, **policy)
    assert (report["sessions_hard_deleted"], report["sessions_removed"]) == (2, 2)
    assert report["events_removed"] == 4
    assert not bench.state.has_session("old")
    assert len(bench.rows("SELECT n FROM session")) == 3
    bench.kill()
    assert left(bench) == ["pinned", "active", "young"]


def test_age_counts_from_creation_where_that_is_asked(bench: Bench) -> None:
    """If a session was created long ago and used yesterday, then only max_session_age_days takes it."""
    bench.call("session.create", "s", "echo", None)
    bench.now += 50 * DAY_S
    bench.call("session.activate", "s")
    bench.call("session.complete", "s")
    assert sweep(bench, max_completed_session_age_days=40.0)["sessions_soft_deleted"] == 0
    assert sweep(bench, max_session_age_days=40.0)["sessions_soft_deleted"] == 1


def fill(bench: Bench, sid: str, *types: str) -> None:
    """Append events in one commit."""
    bench.partition.begin()
    bench.state.session(sid)
    for event_type in types:
        bench.state.append(sid, event_type, {})
    bench._commit()


def test_a_long_log_is_shortened_and_says_so(bench: Bench) -> None:
    """If a session has too many events, then the oldest go, pieces first; beginnings and ends stay."""
    session(bench, "s", end=None)
    fill(bench, "s", *["run_started", *["message_streamed"] * 5, "message_received", "run_completed"] * 2)
    session(bench, "pinned", tags=["pinned"])
    fill(bench, "pinned", *["message_streamed"] * 20)
    seq = bench.state.session("s").seq
    report = sweep(bench, max_events_per_session=9, batch_size=2)
    assert report["events_pruned"] == seq - 9
    assert bench.events("s") == [
        "session_created", "session_started", "run_started", "message_received", "run_completed",
        "run_started", "message_streamed", "message_received", "run_completed"]
    assert len(bench.events("pinned")) > 9
    sweep(bench, max_events_per_session=4)
    assert set(bench.events("s")) <= PROTECTED
    bench.kill()
    state = bench.state.session("s")
    assert state.seq == seq and state.seq - state.pruned == len(bench.events("s")) == 5
    assert state.pruned_to == seq - 1
    fill(bench, "s", "message_sent")
    assert bench.state.session("s").seq == seq + 1


def test_a_log_without_its_end_goes_on_with_its_numbers(bench: Bench) -> None:
    """If the newest events were pruned, then seq goes on behind them, also after a restart."""
    session(bench, "s", end=None)
    fill(bench, "s", *["message_streamed"] * 9)
    sweep(bench, max_events_per_session=2)
    assert bench.events("s") == ["session_created", "session_started"]
    bench.kill()
    fill(bench, "s", "message_sent")
    assert bench.rows("SELECT max(seq) FROM event") == [(12,)]


def test_the_whole_log_is_bounded_from_its_oldest_end(bench: Bench) -> None:
    """If the partition keeps more events than its share, then the oldest go over all sessions."""
    for sid in ("a", "b"):
        session(bench, sid, end=None)
        fill(bench, sid, *["message_streamed"] * 10, "message_sent")
    total = len(bench.rows("SELECT pos FROM event"))
    assert sweep(bench, max_total_events=total - 12, batch_size=3)["events_pruned"] == 12
    assert [bench.events(sid).count("message_streamed") for sid in "ab"] == [0, 8]
    sweep(bench, max_total_events=1)
    assert set(bench.events("a") + bench.events("b")) <= PROTECTED


def test_a_disk_that_refuses_ends_the_sweep_with_a_report(bench: Bench) -> None:
    """If a step cannot be written, then the sweep is over, the report says why, and nothing is half done."""
    session(bench, "s", end=None)
    fill(bench, "s", *["message_streamed"] * 9)
    retention = Retention(
        bench.store, bench.state, bench.ops.keeping, RetentionSection(max_events_per_session=3), share=1.0,
        owns=lambda _: True,
    )
    asker = Asker()
    retention.ask(asker)  # type: ignore[arg-type]
    bench.store.fail_next = True
    with pytest.raises(StoreError):
        while True:
            retention.step()
            bench.mono = retention.due_s or bench.mono
    assert "disk is full" in asker.report["errors"][0] and retention.due_s is None
    assert bench.state.session("s").pruned == 0 and len(bench.events("s")) == 11


def test_a_kill_in_the_middle_of_a_removal_is_finished_by_the_next_life(bench: Bench) -> None:
    """If a partition dies while it removes a session's rows, then the next life removes the rest."""
    session(bench, "s")
    fill(bench, "s", *["message_streamed"] * 20)
    bench.call("session.delete", "s", True)
    retention = Retention(
        bench.store, bench.state, bench.ops.keeping, RetentionSection(batch_size=5), share=1.0,
        owns=lambda _: True,
    )
    retention.tick()
    retention.step()
    bench.kill()
    assert bench.rows("SELECT count(*) FROM event")[0][0] > 0
    sweep(bench)
    assert bench.rows("SELECT count(*) FROM event")[0][0] == 0


def test_a_session_that_is_forgotten_by_hand_meanwhile_leaves_no_file(bench: Bench, tmp_path: Path) -> None:
    """If somebody has a session forgotten while it is archived, then nothing of it is left in the archive,
    and the sweep goes on with the next one."""
    for sid in ("s", "t"):
        bench.call("session.start", sid, "echo", {})
        fill(bench, sid, *["message_streamed"] * 5)
        bench.call("session.complete", sid)
        bench.call("session.delete", sid)
        bench.now += 1
    bench.now += 31 * DAY_S
    report = sweep(
        bench, archive_dir=str(tmp_path / "a"), batch_size=2, meanwhile=["session.delete", "s", True])
    assert report["sessions_archived"] == 1 and [p.name[0] for p in (tmp_path / "a").iterdir()] == ["t"]


def test_what_a_tag_used_is_forgotten_when_no_run_ended_with_it_for_long(bench: Bench) -> None:
    """If a tag is not used for longer than it may be, then its sums are gone, in memory too; another one's,
    and those of a tag that is used, stay."""
    def used(tag: str) -> float:
        return tag_used(bench, tag)

    for sid, tag in (("a", "old"), ("b", "new")):
        use_tag(bench, sid, tag)
        bench.now += 5 * DAY_S
    assert (used("old"), used("new")) == (7, 7)
    sweep(bench, max_tag_age_days=8, batch_size=1)
    assert (used("old"), used("new")) == (0, 7)
    sweep(bench)
    bench.kill()
    assert (used("old"), used("new")) == (0, 7)


def use_tag(bench: Bench, sid: str, tag: str) -> None:
    """A run of a session with the tag uses 7 tokens."""
    bench.call("session.start", sid, "echo", {"tags": [tag]})
    run_id = new_run_id(sid, 1)
    bench.call("run.submit", run_id, sid, "x")
    bench.deliver()
    message = bench.runners[0].batch(run_id, "completed")
    message[5]["token_usage"] = {"total_tokens": 7}
    bench.say(bench.runners[0], message)


def tag_used(bench: Bench, tag: str) -> float:
    answer = wire.unpack(bench.ops.runners.spent.read([None, [tag], None], 0))
    return float(answer[1][f"tag:{tag}"].get("total_tokens", 0))


@pytest.mark.parametrize(("lost", "newer", "left"), [(None, False, 0), (None, True, 14), ("old", False, 14)])
def test_what_a_tag_used_is_forgotten_in_all_partitions_or_in_none(
    tmp_path: Path, lost: str | None, newer: bool, left: int
) -> None:
    """If a tag is old in one partition, then its sums go everywhere at once when it is old everywhere; else,
    or when another partition does not answer, nothing of them goes."""
    made = [next(opened(folder)) for folder in (tmp_path / "a", tmp_path / "b") if not folder.mkdir()]
    post: deque[tuple[int, int, list[Any]]] = deque()
    retentions = [Retention(
        bench.store, bench.state, bench.ops.keeping, RetentionSection(max_tag_age_days=8), share=0.5,
        owns=lambda _: True, tags=lambda removing, index=index, bench=bench: TagAge(  # type: ignore[misc]
            removing, bench.ops.runners.spent.forget, index=index, partitions=2,
            tell=lambda other, message: post.append((index, other, message))),
    ) for index, bench in enumerate(made)]
    for index, bench in enumerate(made):
        bench.now += 9 * DAY_S * (newer and index == 1)
        use_tag(bench, f"s{index}", "t")
    now = max(bench.now for bench in made) + (1 if newer else 9) * DAY_S
    retentions[0].ask(Asker())  # type: ignore[arg-type]
    while any(retention.due_s is not None for retention in retentions):
        for bench, retention in zip(made, retentions, strict=True):
            bench.now, bench.mono = now, max(bench.mono, retention.due_s or 0)
            bench._clock()
            bench.partition.begin()
            retention.step()
            bench._commit()
        while post:
            sender, other, message = post.popleft()
            if message[1] != lost:
                retentions[other].tags.take(sender, wire.unpack(wire.pack(message)))
    assert sum(tag_used(bench, "t") for bench in made) == left
    for bench in made:
        bench.store.connection.close()


def test_an_answer_to_an_earlier_question_about_a_tag_counts_for_nothing(bench: Bench) -> None:
    """If another partition said in an earlier sweep that a tag is old, then it is asked anew in this one."""
    use_tag(bench, "s", "t")
    told: list[list[Any]] = []
    age = TagAge(Removing(bench.store, bench.state), bench.ops.runners.spent.forget, partitions=2,
                 tell=lambda _, message: told.append(message))
    before = bench.now + 1
    sweep = age.sweep(before, 10)
    next(sweep)
    assert told == [["tags", "old?", ["t"], before]]
    for answered, left in ((before - 1, 7), (before, 0)):
        age.take(1, ["tags", "old", ["t"], answered])
        age.act()
        next(sweep)
        bench._commit()
        assert tag_used(bench, "t") == left
    assert told[1:] == [["tags", "forget", ["t"], before]]


def test_patches_of_attempts_that_died_over_them_go_with_their_session(bench: Bench) -> None:
    """If a runner died behind writing a patch and before it said so, then that goes with the session, too."""
    run_id = new_run_id("s", 1)
    bench.call("session.start", "s", "again", {})
    bench.call("run.submit", run_id, "s", "x", {"workspace": {"path": "/x", "artifact_store": True}})
    bench.deliver()
    bench.crash_runner(0)
    bench.roster()
    bench.spawn(0)
    bench.roster()
    assert bench.state.run(run_id).attempt == 2
    bench.post(["run.cancel", [run_id]])
    bench.deliver()
    bench.tick(30.0)
    folder = bench.path.parent / "workspaces" / "artifacts"
    for key in (patch_key(run_id, 1), patch_key(run_id, 2), patch_key(new_run_id("t", 2), 1)):
        FileStore(folder).put(key, b"patch")
    bench.call("session.cancel", "s")
    bench.call("session.delete", "s", True)
    sweep(bench)
    assert len(list(folder.iterdir())) == 1


def test_a_session_that_is_forgotten_is_a_file_that_can_be_imported(bench: Bench, tmp_path: Path) -> None:
    """If there is an archive, then a session goes as an export of its whole log, which gives it back."""
    folder = tmp_path / "archive"
    bench.call("session.start", "s", "echo", {"context": {"a": 1}})
    fill(bench, "s", *["message_streamed"] * 25)
    run_id = new_run_id("s", 1)
    bench.call("run.create", run_id, "s", "hello")
    bench.call("run.cancel", run_id)
    bench.call("session.complete", "s")
    kept = bench.events("s")
    bench.call("session.delete", "s")
    bench.now += 31 * DAY_S
    report = sweep(bench, archive_dir=str(folder), batch_size=10)
    assert (report["sessions_archived"], report["sessions_removed"]) == (1, 1)
    [file] = folder.iterdir()
    assert file.name == "s-1000000000.jsonl"
    lines = [decode_line(line, n) for n, line in enumerate(file.read_text().splitlines(), 1)]
    assert [kind for kind, _ in lines] == [HEADER, RUN, *[EVENT] * len(kept), END]
    bench.call("session.import", "s", {"session": lines[0][1]})
    bench.call("session.import", "s", {"runs": [lines[1][1]]})
    bench.call("session.import", "s", {"events": [value for kind, value in lines if kind == EVENT]})
    bench.call("session.import", "s", {"end": lines[-1][1]})
    assert bench.events("s") == kept and bench.state.session("s").context == {"a": 1}
    assert bench.status(run_id) == "cancelled"


def test_pruned_events_are_appended_to_a_file(bench: Bench, tmp_path: Path) -> None:
    """If there is an archive, then each event that is pruned stands in it, with its seq."""
    session(bench, "s", end=None)
    fill(bench, "s", *["message_streamed"] * 9)
    sweep(bench, max_events_per_session=4, archive_dir=str(tmp_path / "a"), batch_size=2)
    [file] = (tmp_path / "a").iterdir()
    assert file.name.endswith(".pruned.jsonl")
    found = [decode_line(line, 1)[1] for line in file.read_text().splitlines()]
    stored = bench.rows("SELECT seq FROM event ORDER BY seq")
    assert sorted([event["seq"] for event in found] + [seq for (seq,) in stored]) == list(range(1, 12))


def test_half_a_line_in_the_archive_costs_no_event_behind_it(bench: Bench, tmp_path: Path) -> None:
    """If a write to the archive broke off within a line, then the next events stand on lines of their own."""
    session(bench, "s", end=None)
    fill(bench, "s", *["message_streamed"] * 9)
    sweep(bench, max_events_per_session=8, archive_dir=str(tmp_path / "a"), batch_size=2)
    [file] = (tmp_path / "a").iterdir()
    with file.open("a") as broken:
        broken.write('["event",{"seq"')
    sweep(bench, max_events_per_session=4, archive_dir=str(tmp_path / "a"), batch_size=2)
    lines = [line for line in file.read_text().splitlines() if line != '["event",{"seq"']
    found = [decode_line(line, 1)[1]["seq"] for line in lines]
    stored = [seq for (seq,) in bench.rows("SELECT seq FROM event ORDER BY seq")]
    assert sorted(found + stored) == list(range(1, 12))


def test_what_cannot_be_archived_stays(bench: Bench, tmp_path: Path) -> None:
    """If the archive cannot be written, then nothing goes, the report says why, and other phases go on."""
    (tmp_path / "file").write_text("no folder")
    session(bench, "s")
    bench.call("session.delete", "s")
    session(bench, "long", end=None)
    fill(bench, "long", *["message_streamed"] * 9)
    bench.now += 31 * DAY_S
    report = sweep(bench, archive_dir=str(tmp_path / "file"), max_events_per_session=4, errors=2)
    assert all("cannot archive to" in error for error in report["errors"])
    assert report["sessions_hard_deleted"] == report["events_pruned"] == 0
    assert bench.state.has_session("s") and len(bench.events("long")) == 11


def test_a_deletion_that_is_taken_back_while_it_is_archived_stays(bench: Bench, tmp_path: Path) -> None:
    """If somebody undeletes a session whose archive is being written, then it is not forgotten."""
    session(bench, "s")
    bench.call("session.delete", "s")
    bench.now += 31 * DAY_S
    report = sweep(bench, archive_dir=str(tmp_path / "a"), batch_size=1, meanwhile=["session.undelete", "s"])
    assert report["sessions_hard_deleted"] == 0 and left(bench) == ["s"]
