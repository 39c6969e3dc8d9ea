"""`ldznet train` as it is, but that rank 0 writes down every step's loss, and waits for a sign after one of them.

python -m integration.node_training RECIPE output=FOLDER ...

In the output folder it leaves `starts.jsonl` (rank, ranks, node of every start) and `losses.jsonl` (step, loss, ranks).
Where there is a file `wait-after`, with the number of a step, training pauses after it until there is a file `go`.
"""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def recorded_rank(config: dict[str, Any]) -> dict[str, Any]:
    """What each rank runs."""
    import ray

    from jobs.ray_training import _rank
    from pipeline.recipe import Recipe
    from pipeline.training import rank_training, ranks
    from pipeline.training.observer import TrainingObserver

    folder = Path(Recipe.model_validate(config["recipe"]).output_folder)
    folder.mkdir(parents=True, exist_ok=True)

    class Recorder(TrainingObserver):
        def on_step(self, metrics: Mapping[str, float], *, step: int) -> None:
            write(folder / "losses.jsonl", step=step, loss=metrics["loss"], ranks=ranks.world_size())
            pause = folder / "wait-after"
            while pause.is_file() and step == int(pause.read_text()) and not (folder / "go").is_file():
                time.sleep(0.05)

    rank_training.TrainingObserver = Recorder  # type: ignore[misc]
    node = ray.get_runtime_context().get_node_id()
    write(folder / "starts.jsonl", rank=ranks.rank(), ranks=ranks.world_size(), node=node)
    return _rank(config)


def write(path: Path, **facts: object) -> None:
    with path.open("a") as file:
        file.write(f"{json.dumps(facts)}\n")


def read(path: Path) -> list[dict[str, Any]]:
    """Whole lines."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def main() -> int:
    from integration.node_training import recorded_rank

    from jobs import ray_training, train

    ray_training._rank = recorded_rank
    return train.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
