"""From events to messages: order, pairs, no text twice, nothing of what was taken back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transcript_cases import ORPHAN, Said, event, log, said, told

from mesh.core.continuation import transcript_of
from mesh.core.transcript import Fold
from mesh.core.unit import AWAITING_APPROVAL, DENIED, ORPHANED, UNFINISHED, chars_of

A, B = "run_a", "run_b"
SENT = ("message_sent", A, {"role": "user", "content": "first"})
STARTED = ("run_started", A, {"agent": "x"})
DONE = ("run_completed", A, {"stop_reason": "end_turn"})


def fold(events: list[dict[str, Any]], **more: Any) -> Fold:
    made = Fold("s", **more)
    made.add(events)
    return made


def talk(*steps: tuple[str, str | None, dict[str, Any]]) -> list[Said]:
    return said(transcript_of(fold(log(*steps))).messages)


def streamed(text: str, run_id: str = A) -> tuple[str, str, dict[str, Any]]:
    return ("message_streamed", run_id, {"content": text})


def call(name: str | None, run_id: str = A, **data: Any) -> tuple[str, str, dict[str, Any]]:
    return ("tool_call_started", run_id, {"tool_name": "t", "tool_call_id": name, "tool_input": {}, **data})


def result(name: str | None, output: Any = "out", run_id: str = A) -> tuple[str, str, dict[str, Any]]:
    data = {"tool_name": "t", "tool_call_id": name, "tool_output": output}
    return ("tool_call_completed", run_id, data)


def received(text: str, **data: Any) -> tuple[str, str, dict[str, Any]]:
    return ("message_received", A, {"content": text, **data})


# --- against what was really said ---


@given(told())
def test_the_transcript_says_what_was_said(case: tuple[list[dict[str, Any]], list[Said]]) -> None:
    """If runs are mixed, cancelled, rolled back and repeated, then each thing said stands there once."""
    events, expected = case
    assert said(transcript_of(fold(events)).messages) == expected


@given(told(), st.lists(st.integers(0, 60), max_size=4))
def test_reading_on_gives_the_same_as_reading_at_once(
    case: tuple[list[dict[str, Any]], list[Said]], cuts: list[int]
) -> None:
    """If a log is read in pieces, also with events that were read before, then nothing differs."""
    events, _ = case
    pieces = Fold("s")
    for cut in sorted(cuts):
        pieces.add(events[max(0, pieces.seq - 3):cut])
    pieces.add(events)
    assert transcript_of(pieces) == transcript_of(fold(events))


@given(told())
def test_every_result_follows_its_call(case: tuple[list[dict[str, Any]], list[Said]]) -> None:
    """If a transcript is read at any moment, then every call has one result, before anything else is said."""
    events, _ = case
    at_any = Fold("s")
    for one in events:
        at_any.add([one])
        waiting: list[str | None] = []
        for role, _, call_id, _ in said(transcript_of(at_any).messages):
            if role == "tool":
                assert waiting.pop(0) == call_id
            elif call_id is not None:
                waiting.append(call_id)
            else:
                assert not waiting
        assert not waiting


@given(told())
def test_its_size_is_that_of_its_messages(case: tuple[list[dict[str, Any]], list[Said]]) -> None:
    """If units come and go, then the size that is counted stays that of what is there."""
    events, _ = case
    made = fold(events)
    there = [m for m in transcript_of(made).messages if not m.metadata.get("marker")]
    assert made.chars == sum(map(chars_of, there))


# --- text ---


def test_streamed_and_received_text_is_one_message() -> None:
    """If a text was streamed and is received, then it is one message with the received content."""
    steps = (SENT, STARTED, streamed("Hello"), streamed(" world"), received("Hello world"), DONE)
    assert talk(*steps) == [("user", "first", None, None), ("assistant", "Hello world", None, None)]


@pytest.mark.parametrize("role", ["wizard", "", None, 7, ["user"], {}])
def test_an_unknown_role_is_the_usual_one(role: Any) -> None:
    """If a message names no role that there is, then a user asked, and the assistant answered."""
    asked = ("message_sent", A, {"content": "ask", "role": role})
    assert talk(asked, STARTED, received("say", role=role), DONE) == [
        ("user", "ask", None, None), ("assistant", "say", None, None)]


def test_a_piece_may_be_a_delta_and_what_is_empty_is_no_message() -> None:
    """If a provider streams deltas, then they are the text; a message without content is none."""
    piece = ("message_streamed", A, {"delta": "a", "content": "ignored"})
    empty = ("message_sent", A, {"role": "user", "content": ""})
    assert talk(SENT, empty, STARTED, piece, received("a"), DONE) == [
        ("user", "first", None, None), ("assistant", "a", None, None)]


def test_text_before_a_tool_call_is_not_repeated_by_the_whole_text() -> None:
    """If the last message repeats all that was said around a call, then only its news are added."""
    steps = (SENT, STARTED, streamed("Let me look."), call("c"), result("c"), streamed("Done."),
             received("Let me look.Done."), DONE)
    assert [m[1] for m in talk(*steps)] == ["first", "Let me look.", None, None, "Done."]
    unstreamed = (SENT, STARTED, streamed("Look"), call("c"), result("c"), received("Look, done"), DONE)
    assert [m[1] for m in talk(*unstreamed)] == ["first", "Look", None, None, ", done"]


def test_the_node_s_word_about_a_run_that_received_before_adds_nothing() -> None:
    """If a provider received one text itself and the node the whole one, then each stands there once."""
    steps = (SENT, STARTED, streamed("A"), received("A"), call("c"), result("c"), streamed("B"),
             received("AB"), DONE)
    assert [m[1] for m in talk(*steps)] == ["first", "A", None, None, "B"]


def test_a_repetition_that_was_cut_adds_nothing() -> None:
    """If the whole text was too long to be repeated in full, then its beginning is not said twice."""
    steps = (SENT, STARTED, streamed("Hello world"), call("c"), result("c"), received("Hello"), DONE)
    assert [m[1] for m in talk(*steps)] == ["first", "Hello world", None, None]


def test_two_equal_messages_that_were_not_streamed_both_stand() -> None:
    """If a provider says the same thing twice, then it is there twice."""
    steps = (SENT, STARTED, received("ok"), call("c"), result("c"), received("ok"), DONE)
    assert [m[1] for m in talk(*steps)] == ["first", "ok", None, None, "ok"]


def test_partial_text_of_a_cancelled_run_stays_and_says_so() -> None:
    """If a run is cancelled, then what it streamed is a message that is marked partial."""
    messages = transcript_of(fold(log(
        SENT, STARTED, streamed("Hel"), ("run_cancelled", A, {"reason": "abort"})))).messages
    assert messages[1].content == "Hel" and messages[1].metadata["partial"] is True


def test_what_is_being_streamed_is_seen() -> None:
    """If a run is under way, then its text so far is there, marked partial, and nothing is kept of it."""
    made = fold(log(SENT, STARTED, streamed("Hel")))
    assert transcript_of(made).messages[-1].metadata["partial"] is True
    made.add([event(4, "message_streamed", A, {"content": "lo"}), event(5, *DONE)])
    assert [m.content for m in transcript_of(made).messages] == ["first", "Hello"]
    assert "partial" not in transcript_of(made).messages[-1].metadata


def test_errors_of_a_command_are_no_answer() -> None:
    """If a text came over stderr, then it is not what the agent said."""
    assert len(talk(SENT, STARTED, ("message_streamed", A, {"content": "x", "stream": "stderr"}), DONE)) == 1


def test_the_messages_say_where_they_come_from() -> None:
    """If an event has metadata, then its message has it too, with id, run, time and seq."""
    one = event(1, "message_sent", None, {"content": "x", "role": "narrator"}, metadata={"k": 1})
    made = fold([one])
    assert transcript_of(made).messages[0].metadata == {
        "k": 1, "event_id": "evt_1", "run_id": None, "timestamp": 1.0, "sequence_number": 1}
    assert transcript_of(made).messages[0].role == "user"  # an unknown role is the usual one
    assert (transcript_of(made).last_sequence, transcript_of(made).last_timestamp) == (1, 1.0)


# --- runs ---


def test_a_prompt_that_waits_stands_where_its_run_begins() -> None:
    """If a prompt comes while another run streams, then it does not cut that run's answer in two."""
    steps = (SENT, STARTED, streamed("one"), ("message_sent", B, {"content": "second"}), streamed(" text"),
             DONE, ("run_started", B, {}), streamed("reply", B), ("run_completed", B, {}))
    assert [m[1] for m in talk(*steps)] == ["first", "one text", "second", "reply"]


def test_a_message_to_a_running_run_stands_where_it_came() -> None:
    """If a run is steered while it executes, then the message stands between what it said."""
    steps = (SENT, STARTED, streamed("one"), ("message_sent", A, {"content": "steer"}), streamed("two"),
             received("onetwo"), DONE)
    assert [m[1] for m in talk(*steps)] == ["first", "one", "steer", "two"]


def test_another_attempt_replaces_what_the_former_one_said() -> None:
    """If a run is executed again, then its prompt stands there once, and only the last attempt's words."""
    steps = (SENT, STARTED, streamed("lost"), call("c"), STARTED, streamed("kept"), DONE)
    assert [m[1] for m in talk(*steps)] == ["first", "kept"]


def test_a_rolled_back_run_leaves_nothing() -> None:
    """If a run was rolled back, then neither its prompt nor its words are there; others are."""
    steps = (SENT, STARTED, received("kept"), DONE, ("message_sent", B, {"content": "no"}),
             ("run_started", B, {}), streamed("no", B), call("c", B), result("c", run_id=B),
             ("run_cancelled", B, {"reason": "rollback"}))
    assert [m[1] for m in talk(*steps)] == ["first", "kept"]


def test_many_rollbacks_leave_no_memory() -> None:
    """If thousands of runs are rolled back, then nothing of them is kept."""
    made, seq = Fold("s"), 0
    for n in range(2_000):
        for kind, data in (("message_sent", {"content": "x"}), ("run_started", {}),
                           ("run_cancelled", {"reason": "rollback"})):
            seq += 1
            made.add([event(seq, kind, f"run_{n}", data)])
    assert (made.chars, len(made._units) < 200, made._by_seq, made._runs) == (0, True, {}, {})


# --- tools ---


def test_calls_made_together_stand_before_their_results() -> None:
    """If two calls are open at once, then both stand before both results, in the order of the calls."""
    together = talk(STARTED, call("1"), call("2"), result("2", "b"), result("1", "a"), DONE)
    assert [(m[0], m[2], m[3]) for m in together] == [
        ("assistant", "1", None), ("assistant", "2", None), ("tool", "1", "a"), ("tool", "2", "b")]
    turns = talk(STARTED, call("1"), result("1", "a"), call("2"), result("2", "b"), DONE)
    assert [(m[0], m[2]) for m in turns] == [("assistant", "1"), ("tool", "1"), ("assistant", "2"),
                                             ("tool", "2")]


def test_an_orphaned_call_is_closed_by_a_marker() -> None:
    """If a run ends before its call does, then a marker is the result; while it executes, another."""
    made = fold(log(STARTED, call("1")))
    assert transcript_of(made).messages[-1].tool_output == UNFINISHED
    made.add([event(3, "run_failed", A, {})])
    last = transcript_of(made).messages[-1]
    assert (last.role, last.tool_call_id, last.tool_output) == ("tool", "1", ORPHANED)
    assert last.metadata["marker"] is True


def test_a_result_without_a_call_gets_one() -> None:
    """If a call was never written, then its result still has one before it."""
    assert [(m[0], m[2]) for m in talk(STARTED, result("9"), DONE)] == [("assistant", "9"), ("tool", "9")]


def test_results_without_ids_belong_to_the_oldest_call_of_their_tool() -> None:
    """If a provider gives no ids, then results meet their calls by the tool's name, in order."""
    messages = talk(STARTED, call(None), call(None), result(None, 1), result(None, 2), DONE)
    assert [m[3] for m in messages if m[0] == "tool"] == [1, 2]


def test_an_id_that_is_used_again_is_another_call() -> None:
    """If a provider repeats an id, then each call stands there, and results belong to the last one."""
    messages = talk(STARTED, call("1"), call("1"), result("1", "a"), call("1"), result("1", "b"), DONE)
    assert [m[3] for m in messages if m[0] == "tool"] == [ORPHAN, "a", "b"]
    assert len([m for m in messages if m[0] == "assistant"]) == 3


@pytest.mark.parametrize(("kind", "marker"), [
    ("tool_approval_requested", AWAITING_APPROVAL), ("tool_approval_denied", DENIED)])
def test_an_approval_stands_for_the_result_until_there_is_one(kind: str, marker: str) -> None:
    """If a call waits for approval, then that is its result, until the real one comes; then never again."""
    asked = (kind, A, {"tool_name": "t", "tool_call_id": "1"})
    made = fold(log(STARTED, call("1"), asked))
    assert transcript_of(made).messages[-1].tool_output == marker
    made.add([event(4, *result("1", "real")), event(5, *asked)])
    assert [m.tool_output for m in transcript_of(made).messages] == [None, "real"]


def test_a_failed_call_says_so() -> None:
    """If a tool failed, then its message is marked, and the error is the output when there is no other."""
    data = {"tool_name": "t", "tool_call_id": "1", "error": "aborted"}
    last = transcript_of(fold(log(STARTED, call("1"), ("tool_call_failed", A, data)))).messages[-1]
    assert (last.tool_output, last.metadata["failed"]) == ({"error": "aborted"}, True)


# --- compaction, pins, forks ---


def compacted(up_to: int, summary: str = "sum") -> tuple[str, None, dict[str, Any]]:
    return ("transcript_compacted", None, {"summary": summary, "up_to": up_to})


def pin(seq: int, pinned: bool = True) -> tuple[str, None, dict[str, Any]]:
    return ("message_pinned", None, {"seq": seq, "pinned": pinned})


def plain(count: int) -> list[tuple[str, str | None, dict[str, Any]]]:
    return [("message_sent", None, {"content": f"m{n}"}) for n in range(1, count + 1)]


def test_a_compaction_replaces_what_is_old_and_keeps_what_is_pinned() -> None:
    """If a session is compacted, then the summary comes first, then what is pinned, then what is newer."""
    messages = transcript_of(fold(log(*plain(5), pin(2), compacted(4), *plain(1)))).messages
    assert [m.content for m in messages] == ["sum", "m2", "m5", "m1"]
    assert messages[0].role == "system" and messages[0].metadata["up_to"] == 4


def test_the_next_compaction_replaces_the_former_summary() -> None:
    """If a session is compacted twice, then one summary stands there; what was unpinned between is gone."""
    steps = (*plain(4), pin(1), pin(2), compacted(3), pin(2, pinned=False), *plain(1), compacted(9, "two"))
    assert [m[1] for m in talk(*steps)] == ["two", "m1"]


def test_a_compaction_does_not_tear_a_call_from_its_result() -> None:
    """If a call is older than the limit and its result newer, then both stay."""
    assert [m[0] for m in talk(STARTED, call("1"), result("1"), DONE, compacted(2))] == [
        "system", "assistant", "tool"]


def test_the_run_that_makes_a_summary_is_not_part_of_the_conversation() -> None:
    """If an agent made the summary, then neither its instructions nor its answer are messages."""
    steps = (SENT, STARTED, received("r"), DONE, ("message_sent", B, {"content": "summarise"}),
             ("run_started", B, {"purpose": "compaction"}), streamed("sum", B),
             ("message_received", B, {"content": "sum"}), ("run_completed", B, {}))
    assert [m[1] for m in talk(*steps)] == ["first", "r"]
    assert [m[1] for m in talk(*steps, compacted(4))] == ["sum"]


def test_a_pin_of_a_repeated_text_means_the_message_that_holds_it() -> None:
    """If the event that was pinned only repeated a text, then the message with that text is pinned."""
    steps = (STARTED, streamed("A"), call("c"), result("c"), received("A"), DONE, pin(5), compacted(6))
    assert len(talk(*steps)) == 3


def test_a_fork_begins_with_the_original_and_goes_on_by_itself() -> None:
    """If a session was forked, then the original's messages say so, and the fork's seqs count from 1."""
    made = fold(log(SENT, STARTED, streamed("half"), ("message_sent", B, {"content": "waits"})))
    made.fork("f")
    made.add([event(1, "message_sent", None, {"content": "new"}, session_id="f")])
    messages = transcript_of(made).messages
    assert [m.content for m in messages] == ["first", "half", "new"]
    assert [m.metadata.get("session_id") for m in messages] == ["s", "s", None]
    assert transcript_of(made).last_sequence == 1 and messages[1].metadata["partial"] is True
    made.add([event(2, "transcript_compacted", None, {"summary": "all", "up_to": 0}, session_id="f")])
    assert [m.content for m in transcript_of(made).messages] == ["all", "new"]


# --- bounds ---


def test_over_its_bound_a_fold_leaves_out_the_oldest_and_counts_them() -> None:
    """If a conversation is larger than the bound, then the newest and the pinned are kept."""
    steps = [("message_sent", None, {"content": "x" * 10}) for _ in range(10)]
    made = fold(log(*steps[:3], pin(1), *steps), chars_max=45)
    transcript = transcript_of(made)
    assert [m.metadata["sequence_number"] for m in transcript.messages] == [1, 12, 13, 14]
    assert (transcript.metadata["omitted"], made.chars) == (9, 40)


def test_a_call_that_was_left_out_may_still_get_its_result() -> None:
    """If a call fell out of the bound, then its late result changes nothing."""
    made = fold(log(STARTED, call("1"), *plain(6)), chars_max=8)
    made.add([event(20, *result("1", "x" * 50))])
    assert made.chars <= 8 and [m.content for m in transcript_of(made).messages] == ["m3", "m4", "m5", "m6"]


def test_the_cost_of_an_event_does_not_grow_with_the_log() -> None:
    """If a log is ten times as long, then reading it takes about ten times the work, not a hundred."""
    import sys

    def work(count: int) -> int:
        calls = 0

        def count_calls(frame: Any, what: str, arg: Any) -> None:
            nonlocal calls
            calls += what in ("call", "c_call")

        steps: list[Any] = []
        for n in range(count // 5):
            run_id = f"run_{n}"
            steps += [("message_sent", run_id, {"content": "x"}), ("run_started", run_id, {"agent": "x"}),
                      call("c", run_id), result("c", run_id=run_id), ("run_completed", run_id, {})]
        events = log(*steps)
        sys.setprofile(count_calls)
        try:
            fold(events)
        finally:
            sys.setprofile(None)
        return calls

    assert work(20_000) < 11 * work(2_000)


def test_only_markers_are_made_up() -> None:
    """If there is nothing in the log, then there is nothing in the transcript."""
    empty = transcript_of(Fold("s"))
    assert (empty.messages, empty.last_sequence, empty.last_timestamp, empty.metadata) == ((), None, None, {})
