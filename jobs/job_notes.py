"""What a submitted job finds out while it runs, noted in its metadata on the cluster: its caches, its runs in MLflow.

Ray takes a job's metadata when it is submitted and has no public call that adds to them; so its own record of the job
is changed, which Ray leaves alone between a job's start and its end. Ray is pinned.
"""

import json
import logging
import os
from collections.abc import Mapping

from pipeline.tracking.config import SUBMISSION

logger = logging.getLogger(__name__)

_KEY, _NAMESPACE = "_ray_internal_job_info_{}", b"job"
_TIMEOUT_S = 30


def note_on_job(facts: Mapping[str, str | None]) -> None:
    """Note facts with the job that this process is the driver of, as `ldznet.NAME`; those that are None are left out.

    Nothing is done where the process is no job of `ldznet submit`. A cluster that cannot be asked costs the notes and
    not the job.
    """
    submission, address = os.environ.get(SUBMISSION), os.environ.get("RAY_ADDRESS")
    known = {f"ldznet.{name}": fact for name, fact in facts.items() if fact is not None}
    if not (submission and address and known):
        return
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled
    from ray.exceptions import RpcError

    key = _KEY.format(submission).encode()
    try:
        cluster = GcsClient(address=address)
        body = cluster.internal_kv_get(key, _NAMESPACE, _TIMEOUT_S)
        if body is None:  # of another cluster
            return
        record = json.loads(body)
        record["metadata"] = {**(record.get("metadata") or {}), **known}
        cluster.internal_kv_put(key, json.dumps(record).encode(), True, _NAMESPACE, _TIMEOUT_S)  # noqa: FBT003 - overwrite
    except RpcError as error:
        logger.warning("the cluster took no note of %s: %s", ", ".join(known), error)
