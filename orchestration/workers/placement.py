"""Resources that lost worker groups still hold."""

from __future__ import annotations

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group


def free_placement_groups() -> None:
    """Free what this job's dead actors have reserved.

    Ray keeps an actor's placement groups until its job ends. Ray Train frees those of a lost controller, but neither
    without Ray's dashboard nor those of a group that was just starting: they would add up until nothing fits any more.
    """
    from ray._private.state import state  # ray.util.placement_group_table does not say who reserved what
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData

    job = ray.get_runtime_context().get_job_id()
    for found in state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(found)
        ours = group.creator_job_id.hex() == job and group.state != PlacementGroupTableData.REMOVED
        by_actor = not ray.ActorID(group.creator_actor_id).is_nil()
        if ours and by_actor and group.creator_actor_dead:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))
