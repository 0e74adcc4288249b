"""What the actors of one node say to each other: the messages, in one place.

Three conversations, none of them visible to a client:

**Supervisor and child**, over an inherited socket pair, one JSON object per line, ``{"t": kind, ...}``.

    child -> supervisor   ready {epoch, pid}        serving; ``epoch`` is the incarnation it serves under;
                                                    the router adds its endpoints {address, feed}
                          beat {lag_ms}             once a second; silence means it hangs
                          progress {note?}          still recovering, keeps the start limit away
                          restart {name}            (router) a client asked for it
                          fatal {message, code?, details?}   this node cannot start here
                          hopeless {message}        this child cannot start before somebody mends something
    supervisor -> child   stop {again}              drain and exit (to be started again?); SIGTERM too
                          roster {children: [...]}  to the router, the whole truth at each change

    a roster entry: {name, kind, index, agent, state, pid, incarnation, epoch, restarts, cause}; agent: of a
    runner, whose alone it is; state is one of ChildState; cause is None or {exit_status, signal, stderr, at,
    reason} of the last death.

**Router and actors**, bodies of messages with peer ROUTER_ID, msgpack arrays ``[kind, ...]``.

    actor -> router       ["ready", kind letter, index, incarnation, pid, stats map]   at connect, each second
                          ["bye"]                                                      drained, about to exit
    router -> actor       ["welcome", boot id, map version, slot map]                  after each ready whose
                                                                                    sender does not know them
                          ["roster", [[index, incarnation, pid, state, reachable], ...]]  the runners, whole

**Partition and runner**, through the router. Commands are numbered per (partition epoch, runner
incarnation) from 1 and resent until acknowledged; batches are numbered per (run, attempt) from 1.

    partition -> runner   ["commands", epoch, first, [command, ...]]
                          ["frame", number, [place, ...]]     its batches are in the log, but those
                          ["stored", run_id, attempt, n]      batch n (and all below) is in the log
                          ["expected", run_id, attempt, n]    there was a gap: send again from n
                          ["taken", run_id, attempt, n, [text, ...]]  the log has them
                          ["asked", run_id, attempt, name]    the question is stored: ask no more
                          ["held", run_id, attempt, -n, nil]  what it reserves is stored
                          ["decided", run_id, attempt, name, {approved, scope, by, reason, name}]  name:
                                                              as people saw it, in the answer
                          ["fenced", run_id, attempt]         that attempt is over; forget it
    a command             ["run", run_id, attempt, session map, input, options map]
                          ["cancel", run_id, attempt, reason]  reason may be missing: "cancel"
                          ["pause", run_id, attempt], ["resume", run_id, attempt]
                          ["steer", run_id, attempt]          steering prompts wait: the run may take them
                          ["decided", ...]                    as above, when somebody answers
                          ["close", session_id]               the live session ended; release its instance
                          ["reload", token]
                          ["known", [[run_id, attempt], ...]] what this epoch believes is running there
                          ["answer", token, encoded answer]   of a read of the catalogue
    runner -> partition   ["acks", epoch, n]
                          ["frame", number, [batch, ...]]     batches of many runs
                          ["batch", run_id, attempt, n, [[type code, ts, fragment], ...], report or nil]
                          ["take", run_id, attempt, n]        the n-th that finds some: give it what waits;
                                                              resent until answered
                          ["ask", run_id, attempt, n, name, request map]  behind batch n, ask a human; resent
                                                              until asked or decided, and to a new partition;
                                                              a request of nil takes the question back
                          ["hold", run_id, attempt, n, {metric: amount}]  what all its calls reserve from now
                                                              on; resent until held
                          ["read", token, op, args]           asked again until it is answered
                          ["catalogue", token or nil, [{name, provider, capabilities, problem, ...}, ...]]
                                                              all that it hosts
                          ["lost", [[run_id, attempt], ...]]  answer to "known": I do not have these
                          ["left", [[run_id, attempt], ...]]  the last word of one that was told to stop:
                                                              nothing but these ever began here

    session map of a run  {id, agent, agent_id, incarnation, context, metadata, tags, seq, fork?}
                          agent is the run's; seq is that of the session at the dispatch; fork is
                          [session_id, seq] of what its transcript begins with
    report                {token_usage, turn_count, provider_metadata} of this attempt so far, when that
                          changed; with {status, output, error} it is the settlement: status is completed,
                          failed, cancelled or timeout, its batch ends with the run's terminal event.

**Partition and partition**, through the router (``node/tag_age.py``).

                          ["tags", "old?", [tag, ...], before]    did no run with them end since then?
                          ["tags", "old", [tag, ...], before]     of these, none
                          ["tags", "forget", [tag, ...], before]  all said so

Several messages to one receiver may travel as ["many", [message, ...]].

Every rule follows from one: the receiver may be a new incarnation that knows nothing. So everything is
numbered, resent until acknowledged, and safe to receive twice.
"""

from __future__ import annotations

from enum import StrEnum


class ChildState(StrEnum):
    """Where a supervised child stands."""

    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    DOWN = "down"
    STOPPED = "stopped"


#: What partitions are told of a runner that ends its work and takes no more; its process lives.
STOPPING = "stopping"
PARTITION = b"P"
RUNNER = b"R"
ROUTER = b"X"


def identity(kind: bytes, index: int, incarnation: int) -> bytes:
    """The ZeroMQ identity of an actor, ``p3.e7`` or ``r1.e2``: it names the incarnation, so a late
    message of a dead one is recognisable."""
    return f"{kind.decode().lower()}{index}.e{incarnation}".encode()


__all__ = ["PARTITION", "ROUTER", "RUNNER", "STOPPING", "ChildState", "identity"]
