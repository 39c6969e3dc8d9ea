"""The loop runs on a bare GPU machine: torch and diffusers, nothing of the cluster."""

import subprocess
import sys

PROGRAM = """
import sys
import jobs.pretrain
import pipeline.pretraining.curve_file, pipeline.pretraining.export, pipeline.pretraining.folder_checkpoints
import pipeline.pretraining.recipe_file, pipeline.pretraining.stages
unwanted = {"ray", "mlflow", "deepspeed", "boto3", "webdataset", "pandas", "pyarrow"}
print(sorted(unwanted & {name.partition(".")[0] for name in sys.modules}))
"""


def test_what_trains_alone_imports_no_ray_mlflow_deepspeed_or_s3() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
