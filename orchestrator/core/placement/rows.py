"""The tables that a decision is computed over: what a class of jobs costs at every row, what pools are like now, what came out.

Decides the form only. A class has `kinds` x P rows over P pools: row r is kind r // P at pool r % P. Kinds: by a replica that is ready (the
adapters of the job are loaded too; a gang's block is one whatever it lacks of them), cold, and, where the class has adapters, by a replica
that lacks some of them. All figures are int64: microseconds, bytes, counts, parts per million. Tables are row-major, so that one row's
figures lie together.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from atoll.model import limits
from atoll.model.learned import Start

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
AnyArray = npt.NDArray[Any]

READY, COLD, BARE = 0, 1, 2
# Beyond any sum of terms, and far from overflowing when summed.
UNREACHABLE: Final = 2**59
# The wait for a slot whose predicted end has passed: nothing, but not free either.
OVERDUE_US: Final = 1
# Waiting longer than this is no plan: a pool whose first slot is a day away is as good as none.
WAIT_MAX_US: Final = 24 * 3600 * 1_000_000
# Victims of a slot that are told apart; those beyond leave together. Slots of 80 GB hold three or four models, rarely more.
VICTIMS: Final = 6
# What the eviction of a pinned or protected replica costs: never.
FORBIDDEN_US: Final = 2**50


class Fix(IntEnum):
    """What does not change between decisions of a class, by row."""

    FEASIBLE = 0  # 1: no static filter rejects the pool
    SERIAL = 1  # stage, init, compile, adapt, execution, output: one after the other
    INPUT = 2
    NET = 3  # what the owner charges for the result to leave, as this job's microseconds
    HAZARD = 4  # losses of the place per million hours of holding it
    FAIL_PPM = 5  # of the load failing
    OCCUPANCY = 6  # for how long the slot is taken, beside a fetch
    FETCH = 7  # from where the weights are nearest outside of the site (`sources`), with no other flow
    RELOAD = 8  # what another copy costs in loading, without the fetch
    SAVING = 9  # the most that is saved: of a cold row by staging from host memory, of others by adapters that the replica has
    ADAPT_MILLI = 10  # what was learned of bringing adapters, thousandths; 0 where the class has none
    USD = 11  # price of the GPU, for ties
    HASH = 12  # rendezvous hash of model and pool, for ties
    COPY = 13  # fetch from another node of the site
    CROWD = 14  # what others lose when one more fetch shares the site's way to its sources
    LEAVING = 15  # what the owners of peer sites charge for the weights to leave them
    PAY = 16  # micro-dollars per hour of all GPUs that are taken, PAY_MAX at most
    BUDGET = 17  # micro-dollars of GPU time that the job's price limit leaves; NO_BUDGET: there is none
    EXECUTION = 18  # of SERIAL, what passes once it executes, until the result is there
    PEERS = 19  # 1: what comes from outside of the site comes from peer sites
    FIRST = 20  # what the first generation of a process takes beyond the next


class Dyn(IntEnum):
    """What a pool is like now, for everybody."""

    ACCEPTING = 0
    FREE = 1
    SOONEST = 2  # fleet time at which the first busy slot is predicted to be free
    FLOWS = 3  # fetches from the origin in flight at the site
    COPIES = 4  # copies between nodes of the site in flight
    WHOLE = 5  # 1: its free slots are one whole block of a gang that has a replica there
    WIDE_BEFORE = 6  # thousandths: how wide errors of what comes before execution are here, of everybody's
    WIDE_EXECUTION = 7  # and those of execution


class Room(IntEnum):
    """What the free slots of a pool, or of a node, offer: the emptiest, the one cheapest to clear, and of those that hold what must stay
    the one where most can be had. From VICTIM and KEPT_VICTIM on: bytes and price of each victim."""

    FREE = 0  # how many there are
    MOST = 1  # free bytes of the emptiest
    LEAST = 2  # free bytes of the one whose victims these are
    VICTIM = 3
    KEPT_LEAST = VICTIM + 2 * VICTIMS
    KEPT_VICTIM = KEPT_LEAST + 1
    FRESH = KEPT_VICTIM + 2 * VICTIMS  # whether a process has generated nothing yet: 1 of the emptiest, + 2 of the next, + 4 of the last


class Pres(IntEnum):
    """Where a model is, a line for each pool that has something of it."""

    POOL = 0
    READY = 1  # state of the best slot where the replica has all that the class wants
    READY_UNTIL = 2
    READY_ADAPT = 3  # microseconds, before what was learned, to bring what it lacks all the same: of a gang's block
    BARE = 4  # the same for replicas that lack adapters
    BARE_UNTIL = 5
    BARE_ADAPT = 6
    SOURCE = 7  # what the site has for nodes that have nothing of the model
    SOURCE_US = 8  # fleet time at which a fetch in flight should be done
    READY_FIRST = 9  # 1: what is bound to the slot next is the first generation of its process
    BARE_FIRST = 10


class Spot(IntEnum):
    """A node that has the weights, or fetches them. Of a pool those with the nearest source come first: host memory, disk, fetches."""

    POOL = 0
    NODE = 1  # its number in the table of nodes
    SOURCE = 2
    SOURCE_US = 3


class Out(IntEnum):
    """What a decision came to, by row; microseconds and bytes."""

    STATE = 0
    WAIT = 1
    FETCH = 2
    SAVING = 3  # less FIRST
    EVICT = 4
    EVICTED_BYTES = 5
    CHURN = 6
    RISK = 7
    TARDY = 8
    DELAY = 9
    TOTAL = 10
    FRAGMENT = 11
    LINK = 12
    SOURCE = 13
    NODE = 14  # of a cold row: number of the node that is meant, plus 1; 0: any
    PAID = 15  # micro-dollars of GPU time; of an impossible row: what it would cost, if that is what makes it impossible
    MONEY = 16
    SHORT = 17  # by how much a job that is ended at some time comes too late; of an impossible row: so late that an eviction is in vain
    FIRST = 18  # what is added because it is the first generation of its process


ROOM_WIDTH: Final = Room.FRESH + 1


class Slots(IntEnum):
    """How the best slot of a row stands."""

    NONE = 0
    FULL = 1  # takes no more now, or executes another model: its end can be waited for
    OPEN = 2  # busy, and may take one more behind what it does
    FREE = 3


class Source(IntEnum):
    """Where the weights come from for a cold row."""

    ORIGIN = 0  # the origin store, or peer sites
    FETCHING = 1  # the node fetches them already
    SITE_FETCHING = 2  # another node of the site does: one flight per model and site, copied from there when it has landed
    SITE = 3  # another node of the site has them
    DISK = 4
    HOST = 5


class State(IntEnum):
    """What can be done with a row."""

    IMPOSSIBLE = 0
    WAITS = 1  # after waiting
    BINDABLE = 2


class Rate(IntEnum):
    """Scalars of one decision, handed to the kernel as one array."""

    NOW = 0
    NEED = 1  # bytes: weights, adapters, activations
    EVICT_MILLI = 2  # exchange rate of evictions for this job: k_e over the priority's weight; 0: the term is off
    CHURN = 3  # 1: another copy must beat the best existing one by more than half its reload time
    SLACK = 4  # microseconds until the job's deadline; NO_DEADLINE: it has none, or the policy knows none
    TARDY_MILLI = 5
    TIE_US = 6
    TIE_MILLI = 7
    LINK_MILLI = 8  # price of crowding the way to the origin
    FRAGMENT_MILLI = 9  # price of breaking the last whole block of a pool, by half of the occupancy, over the weight; 0 for gangs
    MONEY = 10  # seconds per dollar
    WEIGHT_MILLI = 11  # of the job's priority
    DONE_WITHIN = 12  # microseconds until the job is ended if it is not done, whatever the policy; NO_DEADLINE: never
    BEGUN_WITHIN = 13  # and if it does not execute
    LINK_USED_MILLI = 14  # crowding costs nothing while those under way would keep no more than this share
    WIDTHS = 15  # from here on, start after start: middle and width of what comes before execution, and of execution, thousandths of each


STARTS: Final = tuple(Start)
WIDTHS_EACH: Final = 4
RATES: Final = Rate.WIDTHS + WIDTHS_EACH * len(STARTS)
NO_DEADLINE: Final = 2**60
# A fetch of a year is as good as none, however many share the way; sums and products with it stay far from overflowing.
FETCH_MAX_US: Final = limits.PREDICTED_US_MAX
# More flows share a way as these do: each has a thousandth of it, and their product with a year stays in int64.
FLOWS_MAX: Final = 1_000
# What evictions cost others counts up to six days, and crowding a way up to the double of what money does: dearer is as good as never,
# and times the largest exchange rate they stay in int64.
EVICT_MAX_US: Final = 2**39
LINK_MAX_US: Final = 2**56
# Losses in a million hours: one every 36 seconds. Whatever is held longer is lost.
LOSSES_MAX: Final = 10**8
# Places whose costs differ by a share of more than 35 years are not told apart further.
TIED_MAX_US: Final = 2**50
# Money is counted over twelve days of one place at most, and to $4,295 an hour: what costs more is as good as never, and products fit.
HELD_MAX_US: Final = 2**40
PAY_MAX: Final = 2**32
MONEY_MAX_US: Final = 2**50
NO_BUDGET: Final = 2**60
# What owners charge for bytes to leave counts up to $10,000, likewise.
USD_MICROS_MAX: Final = 10**10
MS_PER_HOUR: Final = 3_600_000
# Before its terms a line of figures tells: total, wait, whether it is cold, what it awaits (left 0).
LEAD: Final = 4


class Layout(IntEnum):
    """What has to be known of the terms to write them down, a line of a table each; -1 ends a line."""

    MOVING = 0  # the terms that stand in a decision's table
    COLUMN = 1  # their columns of `Out`
    CONCURRENT = 2  # the terms of which only the longest passes
    SAVED_BY = 3  # the term from which a row's saving is taken, by kind of row
    FIRST = 4  # the term that a first generation is part of
