"""How the ranks of a training lie on a cluster, and how they talk to each other."""

from typing import Annotated, Literal

from pydantic import Field

from ldznet.config import Config

Seconds = Annotated[float, Field(gt=0)]


class ClusterConfig(Config):
    """Placement, patience and network of the ranks. None of it changes what is computed."""

    device: Literal["auto", "gpu", "cpu"] = Field(
        default="auto",
        description="auto: one GPU a rank where the cluster has any now, and no more ranks than GPUs; gpu: waited for",
    )
    accelerator: str | None = Field(
        default=None, min_length=1, description="only on nodes with it, by Ray's name, such as A100 or H100"
    )
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = Field(
        default="PACK", description="ranks on few nodes, or on many; strict: or not at all"
    )
    wait_minutes: Annotated[float, Field(gt=0)] = Field(
        default=10, description="how long room for the ranks is waited for, at the start and after a loss"
    )
    resize_seconds: Seconds = Field(
        default=300,
        description="elastic workers: nodes that joined are looked for so often; to take them in goes back to the "
        "last checkpoint",
    )
    collective_timeout_seconds: Seconds = Field(
        default=1800, description="a rank that waits longer for the others fails"
    )
    interface: str | None = Field(
        default=None, min_length=1, description="network interface of NCCL and gloo, such as eth0"
    )
    nccl_debug: Literal["VERSION", "WARN", "INFO", "TRACE"] | None = Field(
        default=None, description="what NCCL logs"
    )
    nccl_infiniband: bool = Field(
        default=True, description="off: NCCL uses sockets though there is InfiniBand"
    )
    nccl_adapters: str | None = Field(
        default=None, min_length=1, description="InfiniBand adapters of NCCL, such as mlx5_0,mlx5_1"
    )

    def environment(self) -> dict[str, str]:
        """The variables by which NCCL and gloo are told; what is left out here stays as the nodes have it."""
        told = {
            "NCCL_SOCKET_IFNAME": self.interface,
            "GLOO_SOCKET_IFNAME": self.interface,
            "NCCL_DEBUG": self.nccl_debug,
            "NCCL_IB_DISABLE": None if self.nccl_infiniband else "1",
            "NCCL_IB_HCA": self.nccl_adapters,
        }
        return {name: value for name, value in told.items() if value is not None}
