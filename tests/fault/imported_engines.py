"""Imports all that an engine imports, which takes seconds: ranks are forked from a process that has done it."""

from importlib import import_module

from pipeline.training.deepspeed_engine import prepare_deepspeed

prepare_deepspeed()
for name in (
    "deepspeed.runtime.zero.muon.muon_optimizer",  # imports torch's compiler
    "deepspeed.runtime.zero.stage3",
    "deepspeed.runtime.zero.stage_1_and_2",
    "pipeline.training.ddp_engine",
    "pipeline.training.loop",
    "torch._dynamo",
    "unit.pipeline.training.training_toy",
):
    import_module(name)
