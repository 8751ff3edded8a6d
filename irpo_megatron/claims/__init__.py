"""How any number of workers share the shards of one stage, on any nodes, through the file system alone.

    with Claimant(partial, lease_seconds=120) as claimant:
        claimant.announce({"generations-00000": 1920, ...})
        while (shard := claimant.claim(names)) is not None:
            ...  # make it; count on the way
            if claimant.holds(shard):
                ...  # publish it

    claims/
      shards.json               every shard of the stage, and how many samples it has
      workers/NODE-PID-….json   who a worker is, its heartbeat, what it has done
      leases/SHARD.0            which worker has the shard; one that takes it over from the dead writes SHARD.1
      counts/SHARD.json         how many samples of a committed shard are of no use
      refused.json              the mistake of the user that one worker found, which ends all

Nobody coordinates, and no clock is compared with that of another node. A lease is never removed or changed, so two
workers never hold the same one. That leases are right saves work and no more: a shard is published by a link that fails
where the shard is there already, so a worker that was thought dead and comes back changes nothing.
"""

from irpo_megatron.claims.claimant import Claimant
from irpo_megatron.claims.files import forget_attempt, raise_refusal
from irpo_megatron.claims.view import View, WorkerView, how_far, is_all_there, view_claims

__all__ = [
    "Claimant",
    "View",
    "WorkerView",
    "forget_attempt",
    "how_far",
    "is_all_there",
    "raise_refusal",
    "view_claims",
]
