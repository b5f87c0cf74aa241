"""What was measured, as data. Every number in it was measured in the run, but for what was `expected` before it."""

from typing import Literal

from pydantic import Field

from optcore.estimate.document import StageEstimate
from optcore.frozen import Frozen
from optcore.manifest import Parent
from optcore.report.front import Front

Task = Literal["text-generation", "fill-mask", "text-classification"]
"""What a model is for, in the Hub's words."""
GateMetric = Literal["kl", "ppl_ratio", "agreement", "accuracy"]
"""What a gate may ask for."""
Better = Literal["lower", "higher"]
Environment = dict[str, str]
"""What the numbers depend on: `hardware`, `python`, `torch`, `transformers`, `lathe` and the like, by name."""


class Measurement(Frozen):
    """One row of the before/after table."""

    name: str
    """A stable name for programs, such as `perplexity`."""
    title: str
    """What people call it."""
    unit: str = ""
    """`bytes`, `seconds` and `share` (0 to 1, written as a percentage) are known; any other follows the number."""
    source: float | None
    """The source model; None where the measure compares with the source, or was not possible."""
    baseline: float | None = None
    """The same number format with plain max scales, so that a reader sees what the scale search bought."""
    result: float | None
    """What we made."""
    better: Better | None = None
    """Which direction is good; None where neither is."""
    note: str = ""
    """How it was measured, or why it was not."""


class StageCost(Frozen):
    """What one stage took."""

    name: str
    seconds: float = Field(ge=0)
    peak_memory_bytes: int = Field(ge=0)
    """Of the host."""
    peak_gpu_memory_bytes: int | None = Field(default=None, ge=0)
    """On the fullest GPU; None where none was used."""
    cached: bool = False
    """True when the stage was found done; `seconds` is then what looking took."""


class Step(Frozen):
    """What the model was after one entry of the chain: the source first, the exported result last."""

    stage: str
    """The stage that left it; empty for the source."""
    what: str
    """What was done, in one line for people."""
    parameters: int
    weight_bytes: int
    values: dict[str, float] = Field(default={})
    """What the recipe's evaluators measured of it, by the name of the measurement, such as `mean_kl`."""
    rival: bool = False
    """Not on the way to the result: the trivial choice at the same size, made in place of the entry after it."""


class Trial(Frozen):
    """One result that was held against a gate."""

    stage: str
    tried: str
    """What was done, in one line for people."""
    metric: GateMetric
    value: float
    """As it was measured."""
    bound: float
    better: Better
    """Where values pass: those that are lower than the bound, or those that are higher; the bound itself does."""
    passed: bool
    then: str
    """What happened next: `kept`, `kept with a warning`, `went on to <stage>` or `stopped`."""


class DraftFacts(Frozen):
    """The speculative draft in `draft/`, which guesses what the result will say."""

    method: str
    tokens: int
    """Drafted a round."""
    parameters: int
    weight_bytes: int


class EngineRun(Frozen):
    """One checkpoint in one engine, in a process of its own on the machine's processor."""

    engine: str
    engine_version: str
    target: str
    """Format of the checkpoint."""
    result: str = ""
    """Name of the result among several of one run; the main one has none."""
    is_source: bool = False
    """The model that the chain started from, which the others are held against."""
    file_bytes: int
    """Weights on the disk."""
    threads: int
    prompt_tokens: int
    new_tokens: int
    """Written behind the prompt, greedily; 0 for models that do not generate."""
    load_seconds: float
    prefill_speed: float
    """Tokens a second, the median of three."""
    decode_speed: float | None
    """Tokens a second, the median of three; None for models that do not generate."""
    peak_memory_bytes: int
    """Of the whole process, its interpreter and libraries among it."""
    kl: float | None
    """Mean KL(source || this), nats a position; the source's own predictions are computed in float32."""
    agreement: float | None
    """Share of positions with the source's most likely prediction."""
    positions: int
    """How many were compared."""


class LayerError(Frozen):
    """How far one decoder layer's output is from the source's."""

    layer: str
    relative_error: float = Field(ge=0)
    """Norm of the difference of the hidden states over the norm of the source's."""


class TensorClass(Frozen):
    """The tensors that have one place in every layer, such as `model.layers.*.mlp.down_proj`."""

    name: str
    tensors: int
    """Modules of this class."""
    parameters: int
    """Parameters in the source."""
    quantized: int
    """How many of them are stored in a number format now."""
    schemes: tuple[str, ...] = ()
    """The formats."""
    layers: dict[str, str] = Field(default={})
    """Mixed precision: numbers of the layers that got each format, such as `0-3, 5`; `none` was left as it was."""
    source_bytes: int
    result_bytes: int
    """Codes, scales and biases."""

    @property
    def formats(self) -> str:
        """What became of these tensors, for people."""
        mixed = "; ".join(f"{scheme} in {layers}" for scheme, layers in self.layers.items())
        return mixed or ", ".join(self.schemes) or "as it was"


class Coverage(Frozen):
    """What was really quantized."""

    classes: tuple[TensorClass, ...]
    quantized_share: float = Field(ge=0, le=1)
    """Quantized parameters over all."""
    expert_tokens: tuple[int, int] | None = None
    """Calibration tokens that the least and the most visited expert saw; None for a dense model."""
    experts_without_tokens: int = 0
    """Expert projections that no token reached: their weights were rounded without a measurement."""
    fallbacks: dict[str, str] = Field(default={})
    """Linear layers for which a weaker method was used than asked for, and why."""


class Series(Frozen):
    """A curve to plot."""

    name: str
    title: str
    unit: str = ""
    points: tuple[tuple[float, float], ...]
    """Pairs of (x, y), in the order of x."""


class Setting(Frozen):
    """One option of an engine."""

    name: str
    """A flag, a key of a file, or an argument, as the engine spells it."""
    value: str = ""
    """Empty for a flag that takes none."""
    why: str


class EngineNotes(Frozen):
    """How one engine is best given the result: what belongs to a deployment rather than to weights."""

    engine: str
    """Name and release."""
    given: str
    """Where the settings go, such as `arguments of vllm serve`."""
    documentation: str
    """The engine's own page about them."""
    conditions: tuple[str, ...] = ()
    """What must hold, so that it loads the result at all."""
    without_draft: str = ""
    """Why it cannot use the draft that ships beside the result, as the end of a sentence; empty where it can."""
    settings: tuple[Setting, ...]
    commands: tuple[str, ...] = ()
    """What is typed in the result's folder, in this order: shell commands, or a piece of Python."""
    hardware: tuple[str, ...] = ()
    """What makes its number formats fast, and what does not."""


class Report(Frozen):
    """Everything that was measured in a run, and what is needed to get the same numbers again."""

    version: Literal[1] = 1
    """Version of this document's form."""
    model: str
    """The source for people: `Qwen/Qwen3-8B@<commit>`, or the name of a folder."""
    base_model: str = ""
    """Hub repository of the source, empty for a folder."""
    license: str = ""
    """The source's licence as its own card gives it, empty when unknown."""
    license_name: str = ""
    """Of a licence that has no identifier on the Hub."""
    license_link: str = ""
    """Where the text of that one is."""
    language: tuple[str, ...] = ()
    """As the source's card gives them."""
    source_digest: str
    """SHA-256 over the source checkpoint's files."""
    lineage: tuple[Parent, ...] = ()
    """The models that went into it, the source first."""
    data_digest: str = ""
    """SHA-256 over the calibration text's files."""
    recipe_digest: str = ""
    """SHA-256 of the recipe that ran, as in the manifest."""
    artifact_digest: str
    """SHA-256 over the result's files."""
    scheme: str
    """What was done in one line, such as `NVFP4 W4A4, blocks of 16; FP8 KV cache`."""
    schemes: tuple[str, ...] = ()
    """Names of the number formats that were applied, a fallback's instead of what it replaced."""
    task: Task = "text-generation"
    """What the model is for."""
    target: str = "compressed-tensors"
    """Name of the export."""
    result: str = ""
    """Its name among several results of one run; the main one has none."""
    recipe: dict[str, object]
    """The recipe with commits and data digests pinned."""
    measurements: tuple[Measurement, ...] = ()
    stages: tuple[StageCost, ...] = ()
    expected: tuple[StageEstimate, ...] = ()
    """What the stages after the fetch were expected to take, before they began."""
    expected_bytes: int | None = None
    """What the result's weights were expected to take on disk."""
    trials: tuple[Trial, ...] = ()
    """What gates measured, in the order in which it was tried."""
    steps: tuple[Step, ...] = ()
    """The model after each entry of a chain that changes its structure, in the order of the chain, and before each
    such entry its rival; else empty."""
    engine_runs: tuple[EngineRun, ...] = ()
    """Source and results in the engines that serve them; in the main result's report those of all results."""
    front: Front | None = None
    """The race that the result won, where the recipe was a goal or a sweep."""
    draft: DraftFacts | None = None
    coverage: Coverage | None = None
    layer_errors: tuple[LayerError, ...] = ()
    """In the order of the layers."""
    series: tuple[Series, ...] = ()
    deployment: tuple[EngineNotes, ...] = ()
    """For each engine that loads the result; the only part that nobody measured."""
    notices: tuple[str, ...] = ()
    """What a reader should know that is no failure."""
    environment: Environment = Field(default={})

    def to_json(self) -> str:
        """The report as indented JSON; `Report.model_validate_json` reads it back to an equal report."""
        return self.model_dump_json(indent=2) + "\n"
