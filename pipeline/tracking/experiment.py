"""The experiment under which MLflow keeps runs, and the one that a run is in."""

from typing import TYPE_CHECKING

from pipeline.tracking.config import TrackingConfig, artifact_location

if TYPE_CHECKING:
    from mlflow import MlflowClient

_TAGS = {"mlflow.experimentKind": "custom_model_development"}  # else the page takes us for prompts


def experiment_id(client: "MlflowClient", config: TrackingConfig, uri: str) -> str:
    """The id of the configured experiment in the store at `uri`; made where there is none."""
    from mlflow.exceptions import MlflowException

    name = config.experiment
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(
                name, artifact_location=artifact_location(config, uri), tags=_TAGS
            )
        except MlflowException:
            found = client.get_experiment_by_name(name)  # another job was first
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise MlflowException(f"the experiment {name!r} was deleted: restore it or choose another name")
    return found.experiment_id


def experiment_of(client: "MlflowClient", run_id: str) -> str | None:
    """The id of the experiment that a run is in; None where MLflow answers that it has none such, or deleted it."""
    from mlflow.entities import LifecycleStage
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id).info
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # it did not answer that
            raise
        return None
    return run.experiment_id if run.lifecycle_stage == LifecycleStage.ACTIVE else None
