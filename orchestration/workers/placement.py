"""Removal of resource reservations of lost worker groups."""

from __future__ import annotations

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group


def free_placement_groups() -> None:
    """Remove the placement groups that this job's dead actors created.

    Ray keeps an actor's placement groups until its job ends. Ray Train removes those of a lost controller, but not
    without Ray's dashboard, and not those of a group that was still starting. They would accumulate until no resources
    are left.
    """
    from ray._private.state import state  # ray.util.placement_group_table does not list the creators
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData

    job = ray.get_runtime_context().get_job_id()
    for serialized in state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(serialized)
        of_this_job = group.creator_job_id.hex() == job and group.state != PlacementGroupTableData.REMOVED
        by_actor = not ray.ActorID(group.creator_actor_id).is_nil()
        if of_this_job and by_actor and group.creator_actor_dead:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))
