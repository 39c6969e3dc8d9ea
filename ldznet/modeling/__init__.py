"""The trainable networks of the paper: RGBNet, ZNet, LDZNet."""

from ldznet.modeling.build import (
    InitialisationReport,
    build_network,
    initialise_from_ldm,
    network_from_pretrained,
    unet_config_of,
)
from ldznet.modeling.config import NetworkConfig, UNetConfig
from ldznet.modeling.ldznet import LDZNet
from ldznet.modeling.network import SegmentationNetwork
from ldznet.modeling.rgbnet import RGBNet
from ldznet.modeling.znet import ZNet

__all__ = [
    "InitialisationReport",
    "LDZNet",
    "NetworkConfig",
    "RGBNet",
    "SegmentationNetwork",
    "UNetConfig",
    "ZNet",
    "build_network",
    "initialise_from_ldm",
    "network_from_pretrained",
    "unet_config_of",
]
