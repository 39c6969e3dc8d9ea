"""The real networks, tiny, on two gloo ranks: ZeRO 2 and 3 give DDP's losses and weights; bf16 follows them."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file

STEPS, BATCH = 4, 4
NETWORKS: dict[str, dict[str, Any]] = {
    "cross-attention": {"kind": "ldznet"},
    "concat": {"kind": "ldznet", "fusion": "concat", "gradient_checkpointing": True},
}
ENGINES: dict[str, dict[str, Any]] = {
    "ddp": {"engine": "ddp"},
    "zero-2": {"zero_stage": 2, "micro_batch": 1},
    "zero-3": {"zero_stage": 3},
    "bf16": {"zero_stage": 2, "precision": "bf16"},
}
TRAINED = {"cross-attention": tuple(ENGINES), "concat": ("ddp", "zero-3")}


def train_all(rank: int, folder: str) -> None:
    from ldznet.loss import mask_loss
    from ldznet.modeling import NetworkConfig, UNetConfig, build_network
    from pipeline.training.config import TrainConfig
    from pipeline.training.ema import EMA, model_state
    from pipeline.training.engine import build_engine

    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    unet = UNetConfig(
        block_out_channels=(8, 8, 16, 16), norm_num_groups=4, attention_head_dim=2, cross_attention_dim=12
    )
    for kind, options in NETWORKS.items():
        for name in TRAINED[kind]:
            torch.manual_seed(0)
            network = build_network(NetworkConfig(unet=unet, positional_latent_side=16, **options))
            config = TrainConfig(steps=STEPS, batch_size=BATCH, workers=2, lr=1e-3, **ENGINES[name])
            engine = build_engine(network, forward=forward, loss=mask_loss, config=config)
            ema, losses = EMA(engine), []
            for _ in range(STEPS):
                losses.append(engine.train_step(batch_for(network, rank), lr=1e-3).loss)
                ema.update()
            with ema.swapped():
                assert engine.predict(batch_for(network, rank)).shape == (2, 1, 64, 64)
            state = model_state(engine, ema)
            if rank == 0:
                save_file(state, Path(folder) / f"{kind}-{name}")
                (Path(folder) / f"{kind}-{name}.json").write_text(json.dumps(losses))
            engine.close()
    dist.barrier()
    dist.destroy_process_group()


def forward(network: Any, batch: Any) -> torch.Tensor:
    return network(latents=batch.latents, context=batch.context, features=batch.features, images=batch.images)


def batch_for(network: Any, rank: int) -> Any:
    from pipeline.loading.batch import Batch

    generator = torch.Generator().manual_seed(rank)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    blocks = network._blocks.items()
    return Batch(
        keys=("a", "b"),
        latents=randn(2, 4, 8, 8),
        context=randn(2, 7, 12),
        features={number: randn(2, b.channels, 8 // b.stride, 8 // b.stride).half() for number, b in blocks},
        images=randn(2, 3, 64, 64).tanh(),
        masks=(randn(2, 1, 64, 64) > 0).float(),
        weight=torch.ones(2),
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("networks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONWARNINGS", "ignore")
        mp.spawn(train_all, (str(folder),), nprocs=2)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name"), [("cross-attention", "zero-2"), ("cross-attention", "zero-3"), ("concat", "zero-3")]
)
def test_zero_trains_the_real_networks_as_ddp_does(trained: Path, kind: str, name: str) -> None:
    expected, losses = (json.loads((trained / f"{kind}-{each}.json").read_text()) for each in ("ddp", name))
    assert expected[-1] < expected[0]
    assert losses == pytest.approx(expected, rel=1e-5)
    weights, reference = load_file(trained / f"{kind}-{name}"), load_file(trained / f"{kind}-ddp")
    assert weights.keys() == reference.keys()
    # AdamW's first steps move a weight by the learning rate whatever its gradient's size, so where that is all but
    # zero its rounding decides: the bound is a share of the way that a weight can have gone.
    furthest = max((weights[key] - reference[key]).abs().max() for key in reference)
    assert furthest < 0.1 * STEPS * 1e-3


@pytest.mark.slow
def test_bf16_follows_fp32(trained: Path) -> None:
    files = [trained / f"cross-attention-{each}.json" for each in ("ddp", "bf16")]
    expected, losses = (json.loads(file.read_text()) for file in files)
    assert losses == pytest.approx(expected, rel=2e-2)
    assert losses != expected
