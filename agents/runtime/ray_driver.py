"""This process as a driver of one Ray cluster: connect, find and make named actors, let go.

Decides what Ray is told and asked; the only place besides `ray_slots` that imports it, inside functions: the import costs
0.3 s and reads the environment. Calls block unless they say otherwise. One process, one cluster.
"""

from __future__ import annotations

import atexit
import importlib
import logging
import os
from typing import Any, Final

from agents.runtime.cluster import ClusterError, auth_environment
from agents.runtime.slot_actor import SlotActor, SlotOptions

_THREAD_TIMEOUT_S: Final = 5.0


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


def make_actor(name: str, options: SlotOptions) -> Any:
    """A new detached slot process on this host. ValueError while an earlier one of this name is being buried."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(node_id=ray.get_runtime_context().get_node_id(), soft=False)
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
