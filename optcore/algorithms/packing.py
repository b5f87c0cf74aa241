"""Codes to bytes and back. Bits are little-endian throughout: element 0 sits in the lowest bits."""

import torch


def pack_int32(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Signed integer codes [N, K] to int32 words [N, ceil(K / (32 / bits))]; stored with an offset of 2^(bits-1).

    Element k sits at bits `bits * (k mod per_word)` of word `k // per_word`. `bits` divides 32.
    """
    per_word = 32 // bits
    rows, columns = codes.shape
    unsigned = codes.to(torch.int64) + 2 ** (bits - 1)
    padded = torch.nn.functional.pad(unsigned, (0, -columns % per_word))
    shifts = torch.arange(per_word, device=codes.device) * bits
    words = (padded.view(rows, -1, per_word) << shifts).sum(-1)
    return words.to(torch.uint32).view(torch.int32)


def pack_nibbles(codes: torch.Tensor) -> torch.Tensor:
    """4-bit codes [N, K] in uint8 to bytes [N, K / 2]: element 2j in the low half of byte j. K is even."""
    return codes[:, 0::2] | (codes[:, 1::2] << 4)
