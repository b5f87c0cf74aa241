"""Codes to bytes and back. Bits are little-endian throughout: element 0 sits in the lowest bits.

Layouts are those of compressed-tensors, tensors by their suffix after the module's name; NF4, unknown to it, is alike.

| Elements | Tensors |
| --- | --- |
| FP8, MXFP8 | `weight` float8_e4m3fn [N, K], `weight_scale` |
| INT8 | `weight` int8 [N, K], `weight_scale` |
| packed integers | `weight_packed` int32 [N, ceil(K b / 32)], `weight_scale`, `weight_zero_point`, `weight_shape` |
| FP4 | `weight_packed` uint8 [N, K / 2], `weight_scale`, `weight_global_scale` (NVFP4) |
| NF4 | `weight_packed` uint8 [N, K / 2], `weight_scale`, `weight_scale_second`, `weight_scale_mean` |
| ggml's integers | as INT8, packed integers; K-quants `weight_super_scale` |
| ggml's others | `weight_packed` uint8 [N, K b / 8], `weight_scale`, `weight_minimum`, and second levels of both |
"""

from collections.abc import Mapping, Sequence

import torch
from torch.nn.functional import pad

from optcore.algorithms.scales import Scales
from optcore.schemes import QuantArgs

_SCALE_SUFFIXES = {
    "weight_global_scale": "global_scale",
    "weight_scale_second": "second",
    "weight_scale_mean": "mean",
    "weight_super_scale": "super_scale",
    "weight_minimum": "minimum",
    "weight_super_minimum": "super_minimum",
}


def pack(codes_NK: torch.Tensor, scales: Scales, args: QuantArgs) -> dict[str, torch.Tensor]:
    """The stored tensors of a weight, by suffix. Integers are stored with 2^(b-1) added, zero points too."""
    return stored_as(pack_codes(codes_NK, args), codes_NK.shape, scales, args)


def stored_as(codes: torch.Tensor, shape_NK: Sequence[int], scales: Scales, args: QuantArgs) -> dict[str, torch.Tensor]:
    """Packed codes and scales of a weight [N, K], by suffix."""
    if args.bits == 8 and not args.packed:
        packed = {"weight": codes}
    elif args.type == "int":
        packed = {"weight_packed": codes, "weight_shape": torch.tensor(shape_NK, dtype=torch.int64)}
    else:
        packed = {"weight_packed": codes}
    packed["weight_scale"] = scales.scale
    for suffix, field in _SCALE_SUFFIXES.items():
        if (tensor := getattr(scales, field)) is not None:
            packed[suffix] = tensor
    if scales.zero_point is not None:
        packed["weight_zero_point"] = pack_int32(scales.zero_point.T, args.bits).T.contiguous()
    return packed


def unpack(tensors: Mapping[str, torch.Tensor], args: QuantArgs) -> tuple[torch.Tensor, Scales]:
    """Codes [N, K] and scales of stored tensors: the inverse of `pack`."""
    scales = stored_scales(tensors, args)
    if "weight" in tensors:
        return tensors["weight"], scales
    packed = tensors["weight_packed"]
    if "weight_shape" not in tensors:
        return unpack_bits(packed, args.bits), scales
    return unpack_int32(packed, args.bits, int(tensors["weight_shape"][1])), scales


def stored_scales(tensors: Mapping[str, torch.Tensor], args: QuantArgs) -> Scales:
    """The scales among stored tensors."""
    levels = {field: tensors.get(suffix) for suffix, field in _SCALE_SUFFIXES.items()}
    scales = Scales(tensors["weight_scale"], **levels)
    if "weight_zero_point" not in tensors:
        return scales
    words, rows = tensors["weight_zero_point"].T.contiguous(), int(tensors["weight_shape"][0])
    return scales._replace(zero_point=unpack_int32(words, args.bits, rows).T.contiguous())


def pack_codes(codes_NK: torch.Tensor, args: QuantArgs) -> torch.Tensor:
    """The bytes or words of codes."""
    if args.bits == 8 and not args.packed:
        return codes_NK
    if args.type == "int":
        return pack_int32(codes_NK, args.bits)
    return pack_nibbles(codes_NK) if args.bits == 4 else pack_bits(codes_NK, args.bits)


def pack_int32(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Signed integer codes [N, K] to int32 words [N, ceil(K b / 32)], stored with 2^(b-1) added.

    Element k has the bits from b k on, counted through the words of its row: with 3 bits some lie in two words.
    """
    unsigned = (codes.to(torch.int16) + 2 ** (bits - 1)).to(torch.uint8)
    words = pack_bits(pad(unsigned, (0, -codes.shape[1] % 32)), bits).view(torch.int32)
    return words[:, : -(-codes.shape[1] * bits // 32)].contiguous()


def unpack_int32(words: torch.Tensor, bits: int, columns: int) -> torch.Tensor:
    """Signed integer codes [N, K] of int32 words, int8."""
    octets = pad(words, (0, -words.shape[1] % bits)).view(torch.uint8)
    return (unpack_bits(octets, bits)[:, :columns].to(torch.int16) - 2 ** (bits - 1)).to(torch.int8)


def pack_nibbles(codes: torch.Tensor) -> torch.Tensor:
    """4-bit codes [N, K] in uint8 to bytes [N, K / 2]: element 2j in the low half of byte j. K is even."""
    return codes[:, 0::2] | (codes[:, 1::2] << 4)


def pack_bits(unsigned: torch.Tensor, bits: int) -> torch.Tensor:
    """Unsigned b-bit codes [N, K] in uint8 to bytes [N, K b / 8]: 8 codes fill b bytes. 8 divides K."""
    eights = unsigned.unflatten(1, (-1, 8))
    octets = unsigned.new_zeros(*eights.shape[:2], bits)
    for element in range(8):
        octet, shift = divmod(element * bits, 8)
        octets[..., octet] |= eights[..., element] << shift
        if shift + bits > 8:
            octets[..., octet + 1] |= eights[..., element] >> (8 - shift)
    return octets.flatten(1)


def pack_stream(unsigned_E: torch.Tensor, bits: int) -> torch.Tensor:
    """Unsigned b-bit codes [E] in uint8 to bytes [ceil(E b / 8)]: element e has the bits from b e on, across bytes."""
    packed = pack_bits(pad(unsigned_E, (0, -len(unsigned_E) % 8))[None], bits)[0]
    return packed[: -(-len(unsigned_E) * bits // 8)].clone()


def unpack_stream(octets: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """The codes [count], uint8, of `pack_stream`'s bytes."""
    return unpack_bits(pad(octets, (0, -len(octets) % bits))[None], bits)[0, :count]


def unpack_bits(octets: torch.Tensor, bits: int) -> torch.Tensor:
    """Unsigned b-bit codes [N, K] in uint8 of bytes [N, K b / 8]."""
    if bits == 4:
        return torch.stack((octets & 15, octets >> 4), -1).flatten(1)
    groups = octets.unflatten(1, (-1, bits))
    unsigned = octets.new_empty(*groups.shape[:2], 8)
    for element in range(8):
        octet, shift = divmod(element * bits, 8)
        value = groups[..., octet] >> shift
        if shift + bits > 8:
            value = value | (groups[..., octet + 1] << (8 - shift))
        unsigned[..., element] = value & (2**bits - 1)
    return unsigned.flatten(1)
