"""One cell of figure 4: a decoder that went astray is told, not scored."""

import pytest
import torch

from ldznet.errors import FinalError
from ldznet.probe import ProbeDecoder
from pipeline.probing.cell import _scores
from pipeline.probing.config import ProbeConfig
from pipeline.probing.features import ProbeSamples


def test_a_decoder_of_no_numbers_is_told_with_its_block_and_the_mend() -> None:
    decoder = ProbeDecoder(channels=4, hidden=4, side=8)
    for parameter in decoder.parameters():
        torch.nn.init.constant_(parameter, float("nan"))
    samples = ProbeSamples(
        features={7: torch.randn(3, 4, 2, 2)},
        masks=torch.ones(3, 1, 16, 16, dtype=torch.bool),
        image_ids=["a", "b", "c"],
    )
    with pytest.raises(FinalError, match=r"probe of block 7 .* lower probe\.lr"):
        _scores(decoder, samples, 7, config=ProbeConfig())
