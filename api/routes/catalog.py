"""What a recipe may say: techniques and number formats, read from the engine's registries."""

from collections.abc import Iterable
from typing import Any

from fastapi import APIRouter

from api import wire
from api.deps import AnyCaller
from lathe.models import FormatInfo, Page, TechniqueInfo
from optcore.engines import KV, MIXED, loading
from optcore.export import AnyExport, Export
from optcore.frozen import members, tag
from optcore.mixes import MIXES, formats_in, title_of
from optcore.schemes import KV_CACHE_PRESETS, PRESETS
from optcore.targets import belongs
from optcore.techniques import AnyTechnique, Technique

router = APIRouter(prefix="/v1", tags=["catalog"])


@router.get("/techniques")
def list_techniques(_caller: AnyCaller) -> Page[TechniqueInfo]:
    """Techniques that a chain may name, with the schema of each."""
    data = [_technique(kind) for kind in members(AnyTechnique) if issubclass(kind, Technique)]
    return wire.page(data, [each.name for each in data])


@router.get("/formats")
def list_formats(_caller: AnyCaller) -> Page[FormatInfo]:
    """Number formats, with the targets that hold them and the engines that load those."""
    exports = [kind for kind in members(AnyExport) if issubclass(kind, Export)]
    weights = [
        _format(name, title_of(name), "weights", (each for each in exports if belongs(name, each)), _rows(name))
        for name in (*PRESETS, *MIXES)
    ]
    caches = [
        _format(
            name,
            f"{name.upper()} KV cache",
            "kv_cache",
            (each for each in exports if name in each.kv_caches),
            (f"{KV}{name}",),
        )
        for name in KV_CACHE_PRESETS
    ]
    return wire.page([*weights, *caches], [each.name for each in (*weights, *caches)])


def _technique(kind: type[Technique]) -> TechniqueInfo:
    return TechniqueInfo(
        name=tag(kind),
        title=kind.title,
        description=kind.__doc__ or "",
        paper=kind.paper,
        needs=tuple(sorted(kind.needs)),
        leaves=tuple(sorted(kind.leaves)),
        json_schema=kind.model_json_schema(),
    )


def _rows(name: str) -> tuple[str, ...]:
    """What the matrix of engines knows a format by: a mix by all that it may hold."""
    return (*formats_in(name), MIXED) if name in MIXES else (name,)


def _format(name: str, title: str, kind: Any, exports: Iterable[type[Export]], rows: tuple[str, ...]) -> FormatInfo:
    engines = {target: loading(target, rows) for target in map(tag, exports)}
    return FormatInfo(name=name, title=title, kind=kind, targets=tuple(engines), engines=engines)
