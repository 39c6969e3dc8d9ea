"""Notices to leave under Ray Train: how its ranks hear of them, and how it hears that they left for no fault of theirs.

Private hooks of Ray Train throughout: Ray is pinned, and a test under a real one holds them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.training import preemption


def notice_callback() -> Any:
    """A callback for Ray Train's workers: SIGTERM to one is a notice from then on.

    Ray runs the training in a thread, and signals can be taken by the main thread alone.
    """
    from ray.train.v2._internal.execution.callback import WorkerCallback

    class Listen(WorkerCallback):
        def after_init_train_context(self) -> None:
            preemption.listen()

    return Listen()


@contextmanager
def leaving_on_notice() -> Iterator[None]:
    """Around a rank's work: a node that Ray drains is a notice too, and to have left on one counts as a preemption.

    Ray restarts the ranks then without counting it towards `max_failures`.
    """
    from ray.exceptions import RayActorError

    with preemption.told_by(_node_is_drained):
        try:
            yield
        except preemption.Preempted as left:
            raise RayActorError(None, str(left), False, True) from left  # noqa: FBT003 - picklable as positions only


def _node_is_drained() -> bool:
    from ray.train.v2._internal.execution.context import get_train_context

    return get_train_context().preemption_context.preemption_info is not None
