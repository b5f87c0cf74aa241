"""What bringing a model here takes, and writing a result."""

from optcore.estimate.facts import ModelFacts
from optcore.estimate.shared import layer_peak
from optcore.estimate.stored import Model, result_bytes
from optcore.estimate.work import Cost, Memory, Work
from optcore.export import AnyExport
from optcore.frozen import tag
from optcore.recipe import Recipe

_HEAVY = ("onnx",)
"""Targets whose writers build the model by transformers."""


def fetching(recipe: Recipe, models: dict[str, ModelFacts]) -> Cost:
    """Of download, hashes, and a look into the text; what lies on this machine is not copied."""
    named = {"/model": recipe.model}
    for number, technique in enumerate(recipe.chain):
        named |= {f"/chain/{number}/{name}": ref for name, ref in technique.models.items()}
    bytes_ = {place: facts.weight_bytes for place, facts in models.items()}
    away = sum(float(bytes_.get(place, 0)) for place, ref in named.items() if ref.id)
    text = recipe.calibration.samples * min(recipe.calibration.sequence_length, 2048)
    work = Work(disk=sum(bytes_.values()) + away, network=away, values=200.0 * text)
    return Cost("fetch", work, Memory(), away)


def exporting(model: Model, export: AnyExport) -> Cost:
    """Of writing a target, and of decoding it again to prove it."""
    facts, name, written = model.facts, tag(type(export)), result_bytes(model, export)
    # A quantized checkpoint is in the layout of compressed-tensors already, and its files are linked.
    is_linked = name == "compressed-tensors" or (name == "dense" and not model.formats)
    passes = 20.0 if is_linked else 60.0
    heavy = name in _HEAVY
    values = passes * facts.parameters * (4 if heavy else 1) if model.formats or not is_linked else facts.parameters
    disk = written * (1 if is_linked else 3) + (6.0 * facts.parameters if heavy else 0)
    largest = max((one.elements for one in facts.tensors), default=0)
    held = 24.0 * largest + 4.0 * facts.largest_layer
    if heavy:
        held = 12.0 * facts.parameters + layer_peak(facts, 128, 128)
    base = "transformers" if heavy else "torch"
    work = Work((base,), values=values, disk=disk, calls=0.3 * len(facts.linears))
    # Where links are possible a linked result takes no room, and its work folder says so.
    return Cost(f"export {name}", work, Memory(base, host=held), 0.0 if is_linked else float(written))
