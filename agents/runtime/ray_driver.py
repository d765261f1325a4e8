"""This process as a driver of one Ray cluster: connect, find and make named actors, let go.

Decides what Ray is told and asked; the only place besides `ray_slots` that imports it, inside functions: the import costs
0.3 s and reads the environment. Calls block unless they say otherwise. One process, one cluster.
"""

from __future__ import annotations

import atexit
import importlib
import logging
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from agents.runtime.cluster import ClusterError, auth_environment
from agents.runtime.slot_actor import SlotActor
from agents.runtime.slot_state import SlotOptions

_THREAD_TIMEOUT_S: Final = 5.0
# Ray counts resources in ten-thousandths, and gives each node one of its own name: room for 1,000 slots.
_SEAT_SHARE: Final = 0.001


def connect(*, address: str, node_ip: str | None, namespace: str, token: str | None) -> None:
    """Become a driver of the cluster at `address`, from the node of this host. ClusterError when it cannot be reached.

    `token` None: the environment says how to authenticate.
    """
    if token is not None:
        os.environ.update(auth_environment(token))
        os.environ.pop("RAY_AUTH_TOKEN_PATH", None)
    os.environ.pop("RAY_ADDRESS", None)
    try:
        import ray
    except ImportError as error:
        raise ClusterError(f"a real site needs Ray (install atoll[worker]): {error}") from None
    if token is not None:
        _read_secret_again()
    # That it sets no SIGTERM handler outside of the main thread is what is wanted: the signal is the agent's.
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        ray.init(
            address=address,
            namespace=namespace,
            log_to_driver=False,
            configure_logging=False,
            **({"_node_ip_address": node_ip} if node_ip else {}),
        )
    except Exception as error:  # Ray raises whatever its parts raise
        raise ClusterError(f"no Ray cluster answers at {address}: {' '.join(str(error).split())[:300]}") from error
    _quieten()


def _read_secret_again() -> None:
    """Ray reads the environment when it is imported, which may have been before the secret was known."""
    raylet = importlib.import_module("ray._raylet")  # compiled: nothing tells a type checker what is in it
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()


def _quieten() -> None:
    """End Ray's thread that prints errors of workers to this program's standard output: each reaches us as an exception anyway,
    and after the cluster's death it would spin."""
    from ray._private.worker import global_worker

    global_worker.threads_stopped.set()
    global_worker.gcs_error_subscriber.close()
    global_worker.listener_thread.join(_THREAD_TIMEOUT_S)
    global_worker.threads_stopped.clear()


def disconnect() -> None:
    """Let go; what is detached stays."""
    import ray

    ray.shutdown()


def abandon() -> None:
    """The cluster is dead: nothing is left to take leave of, and Ray's own farewell at exit would wait for it."""
    import ray

    atexit.unregister(ray.shutdown)


def is_node_alive() -> bool:
    """Whether the cluster counts the node of this host as alive."""
    import ray

    own = ray.get_runtime_context().get_node_id()
    return any(node["NodeID"] == own and node["Alive"] for node in ray.nodes())


def find_actor(name: str) -> Any | None:
    """The actor of this name in the driver's namespace, if it lives."""
    import ray

    try:
        return ray.get_actor(name)
    except ValueError:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """A slot's place in the placement group of its node."""

    group: str
    bundle: int


def reserve_seats(group: str, count: int, timeout_s: float) -> None:
    """The placement group of a node's slots: one bundle each, packed strictly onto this host; found again if it is there.

    What a bundle holds is a share of the resource that Ray gives each of its nodes by name, so no other node can be meant, a
    cluster of somebody else's needs no special resource, and nothing that its owner counts is taken. Ray would wait for ever for a
    group that no node has room for: ClusterError instead.
    """
    import ray
    from ray.util.placement_group import get_placement_group, placement_group, remove_placement_group

    here = ray.get_runtime_context().get_node_id()
    (node,) = [found for found in ray.nodes() if found["NodeID"] == here]
    resource = f"node:{node['NodeManagerAddress']}"
    offered = float(node["Resources"].get(resource, 0.0))
    if offered < count * _SEAT_SHARE:
        raise ClusterError(f"this host's Ray node offers {offered:g} of {resource}: {count} slots need {count * _SEAT_SHARE:g}")
    with suppress(ValueError):
        found = get_placement_group(group)
        if found.bundle_count == count and found.wait(timeout_s):
            return
        remove_placement_group(found)  # of an earlier number of slots
    bundles = [{resource: _SEAT_SHARE}] * count
    made = placement_group(bundles, strategy="STRICT_PACK", name=group, lifetime="detached")
    if not made.wait(timeout_s):
        remove_placement_group(made)
        raise ClusterError(f"Ray found no room for the {count} slots of {group} within {timeout_s:g} s")


def release_seats(groups: Iterable[str]) -> None:
    """Give placement groups up; those that are not there are none."""
    from ray.util.placement_group import get_placement_group, remove_placement_group

    for group in groups:
        with suppress(ValueError):
            remove_placement_group(get_placement_group(group))


def make_actor(name: str, options: SlotOptions, seat: Seat) -> Any:
    """A new detached slot process in its seat. ValueError while an earlier one of this name is being buried, or without the seat."""
    import ray
    from ray.util.placement_group import get_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    here = PlacementGroupSchedulingStrategy(placement_group=get_placement_group(seat.group), placement_group_bundle_index=seat.bundle)
    return (
        ray.remote(SlotActor)
        .options(
            name=name,
            lifetime="detached",
            # A dead slot is news, and an attempt's retry the orchestrator's decision.
            max_restarts=0,
            max_task_retries=0,
            num_cpus=0,
            scheduling_strategy=here,
        )
        .remote(options)
    )


def kill_actor(actor: Any) -> None:
    """End an actor's process; nothing if it has ended."""
    import ray

    ray.kill(actor, no_restart=True)


def kill_named(prefix: str, *, keep: frozenset[str]) -> tuple[str, ...]:
    """End the namespace's actors whose names begin so, but those in `keep`; which they were."""
    import ray

    ended = []
    for name in ray.util.list_named_actors():
        if name.startswith(prefix) and name not in keep:
            actor = find_actor(name)
            if actor is not None:
                ray.kill(actor, no_restart=True)
                ended.append(name)
    return tuple(ended)
