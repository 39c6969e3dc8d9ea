"""The published loss: mean binary cross-entropy on logits."""

import torch.nn.functional as F
from torch import Tensor


def mask_loss(logits: Tensor, masks: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean BCE-with-logits over all pixels of the samples that count, in fp32.

    Args:
        logits: `B,1,H,W`.
        masks: `B,1,H,W`, 0 or 1.
        weight: `B`, one a sample; 0 for padding. None counts every sample alike.

    Returns:
        A scalar: the weighted mean of each sample's mean loss; 0 where no sample counts.
    """
    loss = F.binary_cross_entropy_with_logits(logits.float(), masks.float(), reduction="none").mean(
        dim=(1, 2, 3)
    )
    if weight is None:
        return loss.mean()
    weight = weight.to(loss)
    return (loss * weight).sum() / weight.sum().clamp_min(1e-12)
