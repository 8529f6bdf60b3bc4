"""How one pod joins and leaves the mesh. Pure: events in, commands out; `executor.py` carries the commands out.

Order is the security property: rules go in before the tunnel listens, and the plugin is answered last, so that at no
moment a connection of the pod leaves in the clear; until the tunnel serves, it is refused.

A pod that is *starting* and fails leaves nothing behind: its rules come out, the runtime gets an error and tries again.
A pod that is *running* (found again after the agent restarted) and fails keeps its rules: it is cut off, never exposed.
A pod that *runs* outside and is to join, or inside and is to leave, must not notice: it joins with listeners before
rules; when it leaves, new connections go their own way first, and the tunnel is told when the old ones have ended.
docs/enrolment.md shows the table as a picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from mesh.errors import LocalError
from mesh.ids import Uid

ENROLMENT_FAILED: Final = 100
"""CNI error code, plugin-specific range; 11 (try again later) is the other one used here."""


class State(Enum):
    NEW = auto()
    # starting: the plugin waits for an answer
    REDIRECTING = auto()
    STARTING = auto()
    PROVING = auto()
    # joining: it runs outside the mesh meanwhile, nobody waits
    ADMITTING = auto()
    """The tunnel opens its listeners; nothing turns to them yet."""
    TURNING = auto()
    # running
    IN_MESH = auto()
    REJOINING = auto()
    """Found again: its rules are compared and repaired."""
    WAITING = auto()
    """Rules are in; no tunnel that we know of serves it."""
    RECHECKING = auto()
    CUT_OFF = auto()
    """Something failed. Rules are in, so nothing leaks; tried again when a tunnel acknowledges the pod."""
    MENDING = auto()
    """Tried again of our own accord: rules first, then the tunnel is asked, because only it knows why it refused."""
    RENEWING = auto()
    """The tunnel serves it and does not hear it: it is made to listen again."""
    # leaving, with connections that are still the tunnel's
    RELEASING = auto()
    LEAVING = auto()
    # terminal
    REFUSED = auto()
    GONE = auto()


STARTING_STATES: Final = frozenset({State.REDIRECTING, State.STARTING, State.PROVING})
JOINING_STATES: Final = frozenset({State.ADMITTING, State.TURNING})
RESTING_STATES: Final = frozenset({State.IN_MESH, State.WAITING, State.CUT_OFF, State.LEAVING})
"""Where events from outside are heard."""
TERMINAL_STATES: Final = frozenset({State.REFUSED, State.GONE})


@dataclass(frozen=True, slots=True)
class Event:
    uid: Uid


class PodStarting(Event):
    """The plugin asks for it."""


class PodFound(Event):
    """The agent restarted; the pod was enrolled before and its namespace is still there."""


class PodRunning(Event):
    """It runs outside the mesh and is to join."""


class Dismissed(Event):
    """It runs in the mesh and is to go on without."""


class Released(Event):
    """Nothing new of it is captured."""


class Drained(Event):
    """The last connection that the tunnel had of it has ended, or has had time enough."""


class Drifted(Event):
    """Somebody changed its rules, or it is time to try again."""


class Deaf(Event):
    """A tunnel serves it, and at one of the tunnel's ports nobody listens any more."""


class RulesIn(Event): ...


class Serving(Event):
    """A tunnel acknowledged the pod: it listens in its namespace."""


class Proved(Event): ...


class TunnelLost(Event):
    """The last connection to a tunnel ended. Its listeners may live on."""


class PodGone(Event):
    """The runtime takes the pod down."""


@dataclass(frozen=True, slots=True)
class Failed(Event):
    """The command under way, or a tunnel's later acknowledgement, failed. `code` is a CNI error code."""

    why: str
    code: int = ENROLMENT_FAILED


@dataclass(frozen=True, slots=True)
class Command:
    uid: Uid


class Remember(Command):
    """Write the pod down before it is touched, so that whatever follows can be undone or resumed. May fail."""


class PutRules(Command):
    """Ends in RulesIn or Failed."""


class RepairRules(Command):
    """Compare, and replace only what differs. Ends in RulesIn or Failed."""


class Release(Command):
    """New connections go their own way, what is the tunnel's finds its way back. Ends in Released or Failed."""


class StartServing(Command):
    """Ends in Serving or Failed."""


class Renew(Command):
    """Of a pod that is served: somebody listens again where nobody did. Ends in Serving or Failed."""


class Prove(Command):
    """Ends in Proved or Failed."""


class StopServing(Command):
    """Best effort."""


class TakeRulesOut(Command):
    """Best effort."""


class Forget(Command):
    """The opposite of Remember; lets the namespace go. Best effort."""


@dataclass(frozen=True, slots=True)
class Answer(Command):
    """To the plugin, exactly once per PodStarting. `why` None means that the pod is in the mesh."""

    why: str | None = None
    code: int = 0


Step = tuple[State, Callable[[Event], list[Command]]]


def _nothing(_: Event) -> list[Command]:
    return []


def _undo(event: Event) -> list[Command]:
    """For the failure before a tunnel heard of the pod."""
    assert isinstance(event, Failed)
    uid = event.uid
    return [TakeRulesOut(uid), Forget(uid), Answer(uid, event.why, event.code)]


def _stop_and_undo(event: Event) -> list[Command]:
    return [StopServing(event.uid), *_undo(event)]


def _leave(event: Event) -> list[Command]:
    return [StopServing(event.uid), TakeRulesOut(event.uid), Forget(event.uid)]


S = State
TABLE: Final[dict[tuple[State, type[Event]], Step]] = {
    (S.NEW, PodStarting): (S.REDIRECTING, lambda e: [Remember(e.uid), PutRules(e.uid)]),
    (S.REDIRECTING, RulesIn): (S.STARTING, lambda e: [StartServing(e.uid)]),
    (S.REDIRECTING, Failed): (S.REFUSED, _undo),
    (S.STARTING, Serving): (S.PROVING, lambda e: [Prove(e.uid)]),
    (S.STARTING, Failed): (S.REFUSED, _stop_and_undo),  # a tunnel that said no may still try later
    (S.PROVING, Proved): (S.IN_MESH, lambda e: [Answer(e.uid)]),
    (S.PROVING, Failed): (S.REFUSED, _stop_and_undo),
    #
    (S.IN_MESH, Serving): (S.IN_MESH, _nothing),  # a second tunnel, during an upgrade
    (S.IN_MESH, Failed): (S.CUT_OFF, _nothing),
    (S.IN_MESH, TunnelLost): (S.WAITING, _nothing),
    (S.IN_MESH, PodGone): (S.GONE, _leave),
    #
    (S.NEW, PodFound): (S.REJOINING, lambda e: [RepairRules(e.uid)]),
    (S.REJOINING, RulesIn): (S.WAITING, _nothing),
    (S.REJOINING, Failed): (S.CUT_OFF, _nothing),
    (S.WAITING, Serving): (S.RECHECKING, lambda e: [Prove(e.uid)]),
    (S.WAITING, Failed): (S.CUT_OFF, _nothing),
    (S.WAITING, TunnelLost): (S.WAITING, _nothing),
    (S.WAITING, PodGone): (S.GONE, _leave),
    (S.RECHECKING, Proved): (S.IN_MESH, _nothing),
    (S.RECHECKING, Failed): (S.CUT_OFF, _nothing),
    #
    (S.CUT_OFF, Serving): (S.RECHECKING, lambda e: [RepairRules(e.uid)]),
    (S.RECHECKING, RulesIn): (S.RECHECKING, lambda e: [Prove(e.uid)]),
    (S.CUT_OFF, Failed): (S.CUT_OFF, _nothing),
    (S.CUT_OFF, TunnelLost): (S.CUT_OFF, _nothing),
    (S.CUT_OFF, PodGone): (S.GONE, _leave),
    #
    (S.IN_MESH, Drifted): (S.RECHECKING, lambda e: [RepairRules(e.uid)]),
    (S.CUT_OFF, Drifted): (S.MENDING, lambda e: [RepairRules(e.uid)]),
    (S.MENDING, RulesIn): (S.MENDING, lambda e: [StartServing(e.uid)]),
    (S.MENDING, Serving): (S.RECHECKING, lambda e: [Prove(e.uid)]),
    (S.MENDING, Failed): (S.CUT_OFF, _nothing),
    (S.WAITING, Drifted): (S.REJOINING, lambda e: [RepairRules(e.uid)]),
    #
    (S.IN_MESH, Deaf): (S.RENEWING, lambda e: [Renew(e.uid)]),
    (S.RENEWING, Serving): (S.RECHECKING, lambda e: [Prove(e.uid)]),
    (S.RENEWING, Failed): (S.CUT_OFF, _nothing),
    (S.WAITING, Deaf): (S.WAITING, _nothing),
    (S.CUT_OFF, Deaf): (S.CUT_OFF, _nothing),
    #
    # The way back of answers before the tunnel opens: peers may come by it at once, and an application's answer to the
    # client's own address must find the tunnel.
    (S.NEW, PodRunning): (S.ADMITTING, lambda e: [Remember(e.uid), Release(e.uid)]),
    (S.ADMITTING, Released): (S.ADMITTING, lambda e: [StartServing(e.uid)]),
    (S.ADMITTING, Serving): (S.TURNING, lambda e: [PutRules(e.uid)]),
    (S.ADMITTING, Failed): (S.REFUSED, _stop_and_undo),
    (S.TURNING, RulesIn): (S.PROVING, lambda e: [Prove(e.uid)]),
    (S.TURNING, Failed): (S.REFUSED, _stop_and_undo),
    #
    (S.IN_MESH, Dismissed): (S.RELEASING, lambda e: [Release(e.uid)]),
    (S.WAITING, Dismissed): (S.RELEASING, lambda e: [Release(e.uid)]),
    (S.CUT_OFF, Dismissed): (S.GONE, _leave),
    (S.RELEASING, Released): (S.LEAVING, _nothing),
    (S.RELEASING, Failed): (S.GONE, _leave),
    (S.LEAVING, Dismissed): (S.LEAVING, _nothing),
    (S.LEAVING, Drifted): (S.LEAVING, _nothing),
    (S.LEAVING, Deaf): (S.LEAVING, _nothing),
    (S.LEAVING, Serving): (S.LEAVING, _nothing),
    (S.LEAVING, TunnelLost): (S.LEAVING, _nothing),
    (S.LEAVING, Failed): (S.LEAVING, _nothing),
    (S.LEAVING, Drained): (S.GONE, _leave),
    (S.LEAVING, PodGone): (S.GONE, _leave),
}


class Enrolment:
    """The state of one pod. Not thread-safe: owned by the agent's event loop.

    Events from outside (PodGone, TunnelLost, a tunnel's later acknowledgement) wait until the command under way has
    reported; the executor sees to that, so the states in between need no row for them.
    """

    def __init__(self) -> None:
        self.state = State.NEW

    @property
    def is_over(self) -> bool:
        return self.state in TERMINAL_STATES

    def handle(self, event: Event) -> list[Command]:
        """What to do next, in this order; the first command that reports ends the list. Raises LocalError: this state
        cannot receive this event."""
        try:
            self.state, commands = TABLE[self.state, type(event)]
        except KeyError:
            raise LocalError(f"{type(event).__name__} while {self.state.name}") from None
        return commands(event)
