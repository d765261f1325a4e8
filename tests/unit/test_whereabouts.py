"""Where agents and clients ask next, of several orchestrators."""

from __future__ import annotations

from atoll.model.address import Address
from atoll.whereabouts import Whereabouts

A, B, C = (Address(host=name) for name in ("a", "b", "c"))


def test_whoever_does_not_answer_is_followed_by_the_next_and_after_a_round_it_is_told() -> None:
    where = Whereabouts([A, B, C])
    seen = [(where.current, where.unanswered()) for _ in range(6)]
    assert [address for address, _ in seen] == [A, B, C, A, B, C]
    # The third of each round leads to one that was asked before.
    assert [fresh for _, fresh in seen] == [True, True, False, True, True, False]


def test_the_word_of_one_that_stands_by_is_followed() -> None:
    where = Whereabouts([A, B, C])
    assert where.told("c:7443") and where.current == C
    where.answered()
    assert where.unanswered() and where.current == A
    assert where.told("none") and where.current == B


def test_a_leader_that_was_only_named_is_left_when_it_does_not_answer() -> None:
    where = Whereabouts([A])
    assert not where.several
    assert where.told("leader.example.com:9") and where.current == Address(host="leader.example.com", port=9)
    assert where.several and where.hinted
    assert not where.unanswered()
    assert where.current == A and not where.hinted


def test_an_address_that_is_good_elsewhere_only_is_not_followed() -> None:
    where = Whereabouts([A])
    assert not where.told("127.0.0.1:9")
    assert where.current == A
    here = Whereabouts([Address(host="127.0.0.1")])
    assert here.told("localhost:9") and here.current == Address(host="localhost", port=9)
    for nonsense in ("", "none", "x y", "a:b:c", "[::", "a:99999"):
        where.told(nonsense)
        assert where.current == A


def test_one_that_answers_in_trouble_is_asked_twice() -> None:
    where = Whereabouts([A, B])
    where.troubled()
    assert where.current == A
    assert where.troubled() and where.current == B
    where.troubled()
    where.answered()
    where.troubled()
    assert where.current == B
