"""The enrolment table, told as conversations, then walked completely."""

import itertools

import pytest

from mesh.errors import LocalError
from mesh.ids import Uid
from nodeagent.enrol import machine as m
from tests.playbook import nothing, play

POD = Uid("Kubernetes//Pod/shop/web-1")


def in_state(state):
    enrolment = m.Enrolment()
    enrolment.state = state
    return enrolment


def test_a_pod_joins_rules_first_listeners_second_proof_third_answer_last():
    assert (
        play(m.Enrolment())
        >> m.PodStarting(POD)
        << m.Remember(POD)
        << m.PutRules(POD)
        >> m.RulesIn(POD)
        << m.StartServing(POD)
        >> m.Serving(POD)
        << m.Prove(POD)
        >> m.Proved(POD)
        << m.Answer(POD)
    )


def test_rules_that_do_not_go_in_are_taken_out_again_before_the_answer():
    assert (
        play(m.Enrolment())
        >> m.PodStarting(POD)
        << m.Remember(POD)
        << m.PutRules(POD)
        >> m.Failed(POD, "nft refused")
        << m.TakeRulesOut(POD)
        << m.Forget(POD)
        << m.Answer(POD, "nft refused", 100)
    )


@pytest.mark.parametrize("state", [m.State.STARTING, m.State.PROVING])
def test_a_start_that_fails_later_also_stops_the_tunnel(state):
    assert (
        play(in_state(state))
        >> m.Failed(POD, "no tunnel is connected", 11)
        << m.StopServing(POD)
        << m.TakeRulesOut(POD)
        << m.Forget(POD)
        << m.Answer(POD, "no tunnel is connected", 11)
    )


def test_a_pod_that_leaves_is_no_longer_served_then_released():
    assert (
        play(in_state(m.State.IN_MESH)) >> m.PodGone(POD) << m.StopServing(POD) << m.TakeRulesOut(POD) << m.Forget(POD)
    )


def test_a_pod_found_again_is_repaired_and_proven_without_an_answer():
    assert (
        play(m.Enrolment())
        >> m.PodFound(POD)
        << m.RepairRules(POD)
        >> m.RulesIn(POD)
        << nothing
        >> m.Serving(POD)
        << m.Prove(POD)
        >> m.Proved(POD)
        << nothing
    )


@pytest.mark.parametrize(
    "state", [m.State.REJOINING, m.State.WAITING, m.State.RECHECKING, m.State.RENEWING, m.State.IN_MESH]
)
def test_a_running_pod_keeps_its_rules_whatever_fails(state):
    enrolment = in_state(state)
    assert enrolment.handle(m.Failed(POD, "the kernel refused")) == []
    assert enrolment.state is m.State.CUT_OFF


def test_a_pod_that_was_cut_off_comes_back_when_a_tunnel_acknowledges_it():
    assert (
        play(in_state(m.State.CUT_OFF))
        >> m.Serving(POD)
        << m.RepairRules(POD)
        >> m.RulesIn(POD)
        << m.Prove(POD)
        >> m.Proved(POD)
    )


def test_losing_the_last_tunnel_only_waits_for_the_next():
    assert play(in_state(m.State.IN_MESH)) >> m.TunnelLost(POD) << nothing >> m.Serving(POD) << m.Prove(POD)


def test_a_running_pod_joins_listeners_first_rules_second_and_nothing_turns_before():
    assert (
        play(m.Enrolment())
        >> m.PodRunning(POD)
        << m.Remember(POD)
        << m.Release(POD)
        >> m.Released(POD)
        << m.StartServing(POD)
        >> m.Serving(POD)
        << m.PutRules(POD)
        >> m.RulesIn(POD)
        << m.Prove(POD)
        >> m.Proved(POD)
        << m.Answer(POD)
    )


def test_a_running_pod_that_is_dismissed_keeps_its_tunnel_until_its_connections_have_ended():
    assert (
        play(in_state(m.State.IN_MESH))
        >> m.Dismissed(POD)
        << m.Release(POD)
        >> m.Released(POD)
        << nothing
        >> m.Drained(POD)
        << m.StopServing(POD)
        << m.TakeRulesOut(POD)
        << m.Forget(POD)
    )


def test_rules_that_somebody_changed_are_mended_and_the_capture_is_proven_again():
    assert (
        play(in_state(m.State.IN_MESH))
        >> m.Drifted(POD)
        << m.RepairRules(POD)
        >> m.RulesIn(POD)
        << m.Prove(POD)
        >> m.Proved(POD)
        << nothing
    )


def test_a_pod_that_nobody_listens_for_is_renewed_and_the_capture_is_proven_again():
    assert (
        play(in_state(m.State.IN_MESH))
        >> m.Deaf(POD)
        << m.Renew(POD)
        >> m.Serving(POD)
        << m.Prove(POD)
        >> m.Proved(POD)
        << nothing
    )


EVENTS = [
    m.PodStarting(POD),
    m.PodRunning(POD),
    m.Dismissed(POD),
    m.Released(POD),
    m.Drained(POD),
    m.Drifted(POD),
    m.Deaf(POD),
    m.PodFound(POD),
    m.RulesIn(POD),
    m.Serving(POD),
    m.Proved(POD),
    m.TunnelLost(POD),
    m.PodGone(POD),
    m.Failed(POD, "why"),
]
FROM_OUTSIDE = (m.Serving, m.TunnelLost, m.PodGone, m.Failed, m.Drifted, m.Deaf, m.Dismissed)


@pytest.mark.parametrize(("state", "event"), list(itertools.product(m.State, EVENTS)), ids=str)
def test_every_pair_is_in_the_table_or_is_our_bug(state, event):
    enrolment = in_state(state)
    if (state, type(event)) in m.TABLE:
        enrolment.handle(event)
        assert enrolment.state is m.TABLE[state, type(event)][0]
    else:
        with pytest.raises(LocalError):
            enrolment.handle(event)
        assert enrolment.state is state


def test_every_event_of_the_machine_is_walked():
    assert {type(event).__name__ for event in EVENTS} == {event.__name__ for event in m.Event.__subclasses__()}


@pytest.mark.parametrize(("state", "event"), list(itertools.product(m.RESTING_STATES, FROM_OUTSIDE)), ids=str)
def test_whatever_comes_from_outside_is_expected_wherever_a_pod_rests(state, event):
    assert (state, event) in m.TABLE


def test_no_life_of_a_pod_answers_twice_or_leaves_a_refused_start_unanswered():
    reports = {m.PutRules: m.RulesIn, m.RepairRules: m.RulesIn, m.StartServing: m.Serving, m.Prove: m.Proved}
    for choices in itertools.product((True, False), repeat=4):
        enrolment, event, answers = m.Enrolment(), m.PodStarting(POD), 0
        for succeeds in choices:
            commands = enrolment.handle(event)
            answers += sum(isinstance(command, m.Answer) for command in commands)
            report = reports.get(type(commands[-1]))
            if report is None:
                break
            event = report(POD) if succeeds else m.Failed(POD, "why")
        assert answers == 1
        assert enrolment.state in (m.State.IN_MESH, m.State.REFUSED)


def test_rules_only_come_out_where_nothing_can_run_or_the_runtime_said_so():
    """No row that a running pod can reach by a failure contains TakeRulesOut."""
    for (state, event), (_, commands) in m.TABLE.items():
        made = commands(m.Failed(POD, "why") if event is m.Failed else event(POD))
        if m.TakeRulesOut(POD) in made:
            asked_for = event in (m.PodGone, m.Dismissed, m.Drained) or state is m.State.RELEASING
            assert asked_for or state in m.STARTING_STATES | m.JOINING_STATES
