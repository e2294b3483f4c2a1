"""Held-out moments that are not stored: taken again, block by block, where they are needed."""

import torch
from transformers import PreTrainedModel

from pruning.calibration.calibration import Weight
from pruning.calibration.moment import Moment, packed, unpacked
from pruning.calibration.passes import Reading, block_moments
from pruning.calibration.routed import Routed
from pruning.data.batch import Batch
from pruning.models.blockwise import State, embed
from pruning.models.sites import Site, blocks
from pruning.models.streamed import opened


class Retaken:
    """The held-out moments of a dense model, of one block at a time.

    Whoever asks for those of a block brings the held-out batches through the model up to it; the
    pass goes on from there, and starts anew for a block in front of it. These are the moments that
    `collect` had in one process of as many threads, to the last bit: the same batches, added in the
    same order.
    """

    def __init__(
        self,
        dense: PreTrainedModel,
        batches: list[Batch],
        weight: Weight,
        sites: list[Site],
        in_bfloat16: bool = False,
    ):
        self._dense, self._weight, self._sites = dense, weight, sites
        self._batches = [batch for batch in batches if batch.held_out]
        self._in_bfloat16 = in_bfloat16
        self.release()

    def release(self) -> None:
        """Free what was taken; whoever asks next starts at the first block."""
        self._states: list[State] = []
        self._behind = 0  # how many blocks the states have gone through
        self._moments: dict[str, Moment] = {}  # of the last of them, H packed, by what reads it

    def moment(self, site: Site, device: torch.device) -> Moment:
        """Return the held-out moment of one site, on a device."""
        if self._behind != site.block + 1:
            try:
                self._take(site.block)
            except BaseException:  # some states may have gone on
                self.release()
                raise
        kept = self._moments[site.reads]
        values = (kept.H, kept.mean, kept.variance)
        H, mean, variance = (None if value is None else value.to(device) for value in values)
        assert H is not None
        assert mean is not None
        return Moment(unpacked(H, len(mean)), mean, None, variance)

    @torch.no_grad()
    def _take(self, index: int) -> None:
        """Take the moments of block `index`."""
        if self._behind > index or not self._states:
            self.release()
            self._states = [embed(self._dense, one, self._in_bfloat16) for one in self._batches]
        self._moments = {}
        for number in range(self._behind, index + 1):
            sites = [site for site in self._sites if number == index == site.block]
            reading = Reading(sites, self._weight, held_out_alone=True)
            with opened(blocks(self._dense)[number]):
                taken = block_moments(self._dense, number, self._states, reading, advance=True)
        for site, split in taken.items():  # sites that read the same share one
            if not isinstance(split, Routed) and site.reads not in self._moments:
                split.held.H = packed(split.held.H)
                self._moments[site.reads] = split.held
        self._behind = index + 1
