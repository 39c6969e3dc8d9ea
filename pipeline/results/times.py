"""What networks take: a training step from cached features and from photos, and a mask of a new photo."""

import time
from itertools import islice
from pathlib import Path
from statistics import median

from ldznet.config import Config
from ldznet.predictor import Predictor
from pipeline.datasets.opening import open_dataset
from pipeline.datasets.sample import bounded_reader, load_image
from pipeline.recipe import Recipe
from pipeline.results.origin import Recorded
from pipeline.tracking.config import store_uri
from pipeline.tracking.history import logged_curve
from pipeline.training.run import model_run_id


class TimesRow(Config):
    """One network's."""

    system: str
    cached: float  # samples a second of training
    online: float
    photo_milliseconds: float  # a photo and one phrase in, a mask out


class TimesRecord(Recorded):
    """docs/results/times.json."""

    batch_size: int
    steps: int  # of each training that was timed
    photos: int
    rows: tuple[TimesRow, ...]

    def minutes_of(self, samples_per_second: float, steps: int) -> float:
        """What so many steps take, beside start and validation."""
        return steps * self.batch_size / samples_per_second / 60


def training_rate(recipe: Recipe, model_folder: Path) -> float:
    """Samples a second of a training: the median of what it logged but for the first, when everything is cold."""
    run_id = model_run_id(model_folder)
    assert run_id is not None, "it was tracked"
    uri = store_uri(recipe.tracking, Path(recipe.output_folder))
    return median(logged_curve(uri, run_id, "train/samples_per_second", name="").values[1:])


def photo_milliseconds(model_folder: Path, recipe: Recipe, *, set_name: str, photos: int) -> float:
    """Median time from a photo and a phrase to the mask, everything computed, of photos of a set; one to warm up."""
    dataset = open_dataset(recipe.data_of(set_name))
    by_photo = {sample.image_id: sample for sample in dataset.samples(recipe.set_named(set_name).split)}
    predictor = Predictor.from_pretrained(model_folder)
    taken = []
    for sample in islice(by_photo.values(), photos + 1):
        photo = load_image(sample, bounded_reader(dataset.store))
        started = time.perf_counter()
        predictor.set_image(photo)
        predictor.predict([sample.phrase])
        taken.append(1000 * (time.perf_counter() - started))
    return median(taken[1:])
