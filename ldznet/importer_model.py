"""From the authors' checkpoint to a whole model folder: the network, and which frozen LDM belongs to it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from ldznet.errors import UserError
from ldznet.importer import (
    NETWORK_PREFIX,
    ImportReport,
    frozen_unet_from_state_dict,
    import_checkpoint,
    read_unet_config,
)
from ldznet.importer_checkpoint import load_state_dict
from ldznet.importer_ldm import CLIP_TOKENIZER, FROZEN_UNET_PREFIX
from ldznet.ldm_folder import ldm_digest, resolve_ldm, weight_files
from ldznet.modeling.build import unet_config_of
from ldznet.modeling.config import NetworkConfig, UNetConfig
from ldznet.modeling.pretrained import read_network_config
from ldznet.prediction_config import PredictionConfig, Resize

PIXELS_PER_LATENT = 8
_STEP = 64  # px, what the network's input must be a multiple of
_ROUNDING = 0.01  # of a tensor's largest value: the same weights stored as bf16 or fp16 differ by less


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelImport:
    """What an import wrote, and how its predictions are made; None for a frozen LDM."""

    report: ImportReport
    prediction: PredictionConfig | None


def import_model(
    checkpoint: str | Path,
    out: str | Path,
    *,
    unet_config: str | Path | Mapping[str, Any] | None = None,
    ldm: str | Path | None = None,
    ldm_out: str | Path | None = None,
    tokenizer: str | Path = CLIP_TOKENIZER,
    resize: Resize = "squash",
) -> ModelImport:
    """Turn a checkpoint into a folder that predicts and can be evaluated. Nothing in the file is executed.

    The authors' LD-ZNet or ZNet checkpoint becomes a model folder whose `prediction.json` names its frozen LDM:
    `ldm`, or the one inside the checkpoint, written to `ldm_out`. Told neither, it names none, and whoever
    predicts with it has to. An original-format SD v1 checkpoint becomes a frozen-LDM folder at `out`.

    Args:
        checkpoint: `.ckpt`, `.pt`, `.pth` or `.safetensors`.
        out: folder to write; must not be there yet, or be empty.
        unet_config: CompVis's UNet parameters (a mapping or a JSON file) for other than SD v1's size.
        ldm: folder or hub id of the frozen LDM in the diffusers layout. Where the checkpoint holds its frozen
            UNet, the two are compared.
        ldm_out: folder for the frozen LDM inside the checkpoint.
        tokenizer: folder or hub id of CLIP's tokenizer, which no such checkpoint holds; for frozen LDMs only.
        resize: how photos are brought to the network's size.

    Raises:
        UserError: as `import_checkpoint`; a folder that is there already; an LDM that is not the network's.
    """
    if ldm is not None and ldm_out is not None:
        raise UserError(
            "give --ldm (an LDM that is there) or --ldm-out (the one in the checkpoint), not both"
        )
    if ldm_out is not None and Path(ldm_out).absolute() == Path(out).absolute():
        raise UserError("--out and --ldm-out name one folder: the network and the LDM need two")
    for folder in (out, ldm_out):
        if folder is not None:
            _check_free(Path(folder))
    ldm_folder = None if ldm is None else resolve_ldm(ldm)
    unet = read_unet_config(unet_config)
    state = load_state_dict(checkpoint)
    is_network = any(name.startswith(f"{NETWORK_PREFIX}final.") for name in state)
    if not is_network and (ldm is not None or ldm_out is not None):
        raise UserError(
            f"checkpoint {checkpoint} holds no LD-ZNet or ZNet but Stable Diffusion, if anything: "
            "it becomes a frozen LDM at --out; --ldm and --ldm-out are for networks"
        )
    if ldm_folder is not None:
        _check_frozen_unet(state, ldm_folder, unet, checkpoint=str(checkpoint))
    del state
    report = import_checkpoint(checkpoint, out, unet_config=unet_config, ldm_out=ldm_out, tokenizer=tokenizer)
    if not is_network:
        return ModelImport(report=report, prediction=None)
    source = report.ldm_folder or ldm_folder
    prediction = PredictionConfig(
        ldm_source=_lasting(ldm if ldm is not None else ldm_out),
        ldm_digest=None if source is None else ldm_digest(source),
        size=_network_side(read_network_config(report.folder)),
        resize=resize,
    )
    prediction.save(report.folder)
    return ModelImport(report=report, prediction=prediction)


def _check_free(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already: name another folder, or remove it first")


def _check_frozen_unet(state: Mapping[str, Tensor], ldm: Path, unet: UNetConfig, *, checkpoint: str) -> None:
    """Refuse an LDM whose UNet has other sizes than the network's, or other weights than the checkpoint's own."""
    theirs = unet_config_of(ldm)
    for field in ("block_out_channels", "cross_attention_dim"):
        if getattr(theirs, field) != getattr(unet, field):
            raise UserError(
                f"the LDM {ldm} is not that of {checkpoint}: its UNet has {field} {getattr(theirs, field)}, "
                f"the network {getattr(unet, field)} (sizes other than SD v1's: --unet-config)"
            )
    if not any(name.startswith(FROZEN_UNET_PREFIX) for name in state):
        return
    held = frozen_unet_from_state_dict(state, unet_config=unet, where=checkpoint).state_dict()
    for path in weight_files(ldm, "unet"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - a safetensors file is no mapping
                given = file.get_tensor(name).float()
                if name not in held or not _equal_but_for_rounding(given, held[name]):
                    raise UserError(
                        f"the LDM {ldm} is not that of {checkpoint}: the checkpoint's own frozen UNet differs in {name}"
                    )


def _equal_but_for_rounding(given: Tensor, held: Tensor) -> bool:
    if given.shape != held.shape:
        return False
    return bool((given - held).abs().max() <= _ROUNDING * held.abs().max())


def _network_side(network: NetworkConfig) -> int:
    """Side in px of the input that the network was made for: its positional embedding tells, 384 where it has none."""
    if not network.fused_blocks:
        return int(PredictionConfig.model_fields["size"].default)
    side = network.positional_latent_side * PIXELS_PER_LATENT
    return max(_STEP, round(side / _STEP) * _STEP)


def _lasting(source: str | Path | None) -> str | None:
    """A folder as an absolute path, so that the model finds it from anywhere; a hub id as it is."""
    if source is None:
        return None
    folder = Path(source).expanduser()
    return str(folder.absolute()) if folder.exists() else str(source)
