"""Gangs: the slots that one attempt executes on together, all or none of them.

Decides which slots an attempt takes and when its turn has come. A gang of g takes the aligned block of g slots of one node that its
first slot, the lead, begins; so two blocks are one within the other or apart, never partly the same.

An attempt waits in the queue of every slot of its block, in the one order in which attempts arrived here. Its turn comes when it is the
head of all of them and none is at work; until then nothing is evicted, loaded or kept from working for it beyond what the order of
arrival says. The oldest attempt that waits is the head of each of its queues, so somebody's turn always comes: no two gangs can wait for
each other. Must not know how the members of a gang work together.
"""

from __future__ import annotations

from agents.core.state import Slot, State, Work
from atoll.model.ids import AttemptKey, SlotRef
from atoll.model.limits import GANG_SIZES


def block(lead: SlotRef, gang_size: int) -> tuple[SlotRef, ...]:
    """The slots of a gang, its lead first."""
    if gang_size == 1:
        return (lead,)
    return tuple(lead._replace(index=lead.index + offset) for offset in range(gang_size))


def lead_of(member: SlotRef, gang_size: int) -> SlotRef:
    """The first slot of the block of this size that a slot is in."""
    return member._replace(index=member.index - member.index % gang_size)


def members(state: State, work: Work) -> tuple[Slot, ...]:
    """The slots that an attempt waits for or executes on, its lead first."""
    return tuple(state.slots[ref] for ref in block(work.slot, work.gang_size))


def has_turn(slot: Slot, key: AttemptKey) -> bool:
    """Whether a slot has nothing else to do than this attempt, and can do it."""
    return slot.ready and not slot.occupied and bool(slot.queue) and slot.queue[0] == key


def objection(state: State, lead: SlotRef, gang_size: int) -> str | None:
    """Why no gang of this size can begin at this slot, if none can."""
    where = f"node {lead.node_id} of pool {lead.pool_id}"
    if lead not in state.slots:
        return f"site {state.site_id} has no slot {lead.index} on {where}"
    if gang_size not in GANG_SIZES:
        return f"a gang of {gang_size} slots was asked for: expected one of {GANG_SIZES}"
    count = len(state.nodes[lead.node_id].slots)
    if gang_size > count:
        return f"a gang of {gang_size} slots was asked for: {where} has {count}"
    if lead.index % gang_size:
        return f"a gang of {gang_size} slots was to begin at slot {lead.index}: it begins at a multiple of {gang_size}"
    if lead.index + gang_size > count:
        return f"a gang of {gang_size} slots was to begin at slot {lead.index}: {where} has {count}"
    return None
