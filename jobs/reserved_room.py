"""The room that a training has reserved on Ray: given back where the controller that reserved it was killed.

A placement group lives as long as the job, and nobody else knows of it. Private hooks of Ray Train: Ray is pinned.
"""

from typing import Any

_NAMESPACE = b"ldznet-rooms"


def room_callback(training: str) -> Any:
    """A callback for Ray Train's controller: it notes what it has reserved, under a name of this training's own."""
    from ray.train.v2._internal.execution.callback import WorkerGroupCallback

    class NoteRoom(WorkerGroupCallback):
        def after_worker_group_start(self, worker_group: Any) -> None:
            from ray.experimental.internal_kv import _internal_kv_put

            group = worker_group.get_worker_group_state().placement_group_handle.placement_group
            _internal_kv_put(training.encode(), group.id.binary(), overwrite=True, namespace=_NAMESPACE)

    return NoteRoom()


def give_room_back(training: str) -> None:
    """Remove the placement group that was noted last, if any."""
    from ray import PlacementGroupID
    from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    noted = _internal_kv_get(training.encode(), namespace=_NAMESPACE)
    if noted:
        remove_placement_group(PlacementGroup(PlacementGroupID(noted)))
        _internal_kv_del(training.encode(), namespace=_NAMESPACE)
