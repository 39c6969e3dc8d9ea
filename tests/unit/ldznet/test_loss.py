"""The loss, and padding that counts nowhere."""

import torch
import torch.nn.functional as F

from ldznet.loss import mask_loss


def test_without_weights_it_is_the_mean_bce() -> None:
    torch.manual_seed(0)
    logits, masks = torch.randn(3, 1, 8, 8), torch.rand(3, 1, 8, 8).round()
    expected = F.binary_cross_entropy_with_logits(logits, masks)
    torch.testing.assert_close(mask_loss(logits, masks), expected)
    torch.testing.assert_close(mask_loss(logits, masks, torch.ones(3)), expected)


def test_a_padding_sample_changes_neither_loss_nor_gradient() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 1, 8, 8, requires_grad=True)
    masks = torch.rand(3, 1, 8, 8).round()
    loss = mask_loss(logits, masks, torch.tensor([1.0, 0.0, 1.0]))
    loss.backward()
    torch.testing.assert_close(loss, mask_loss(logits[[0, 2]], masks[[0, 2]]))
    assert not logits.grad[1].any()
    assert logits.grad[0].any()


def test_a_batch_of_padding_alone_gives_zero_and_no_nan() -> None:
    logits = torch.randn(2, 1, 4, 4, dtype=torch.bfloat16, requires_grad=True)
    loss = mask_loss(logits, torch.zeros(2, 1, 4, 4), torch.zeros(2))
    loss.backward()
    assert loss == 0
    assert loss.dtype == torch.float32
    assert not logits.grad.any()
