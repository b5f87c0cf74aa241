"""llama.cpp's mixes of block formats: `q4_k_m` and its kin, which give some linear layers more bits than the rest.

The rules are those of `llama_tensor_get_type_impl` and `tensor_type_fallback` in
https://github.com/ggml-org/llama.cpp/blob/master/src/llama-quant.cpp, so that a file of ours and one of llama.cpp's own
quantizer hold the same formats. What llama.cpp calls `Q2_K` is `q2_k_m` here: `q2_k` is the format alone.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, WithJsonSchema

from optcore.frozen import Frozen
from optcore.schemes import GGML_FORMATS, PRESETS, SUPER_BLOCK

Role = Literal["v", "k", "o", "down"]
"""Of the linear layers that any rule names: values (also where they are in one matrix with queries or keys), keys, the
attention's output, and the projection back from the feed-forward network."""
When = Literal["always", "first_eighth", "first_sixteenth", "first_two", "first_four", "more_bits", "grouped"]
Rule = tuple[tuple[str, When], ...]
"""Formats with where they hold; the first that does, else the mix's base."""

# How checkpoints spell the roles. Leaves that stand for several are told by their parent: llama.cpp has no rule for the
# output of a linear attention or of a recurrent layer.
_ROLES: tuple[tuple[Role, re.Pattern[str]], ...] = (
    ("v", re.compile(r"\.(v_proj|value|value_proj|qkv_proj|query_key_value|c_attn|Wqkv|W_pack|kv_b_proj)$")),
    ("k", re.compile(r"\.(k_proj|key|key_proj)$")),
    ("o", re.compile(r"(?<!linear_)(attn|attention)\.(o_proj|out_proj|dense|c_proj|wo)$")),
    ("down", re.compile(r"(\.(down_proj|w2|fc2|dense_4h_to_h|fc_out)|(mlp|ffn)\.(c_proj|down))$")),
)
_EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts")
_NUMBER = re.compile(r"\.(\d+)\.")
_FALLBACKS = {"q6_k": "q8_0", "q5_k": "q5_1", "q4_k": "q5_0", "q3_k": "q4_0", "q2_k": "q4_0", "iq4_xs": "iq4_nl"}
_BLOCK = 32


class Mix(Frozen):
    """Which format each kind of linear layer gets."""

    name: str
    title: str
    """What people call it."""
    base: str
    """Of all that no rule names."""
    v: Rule = ()
    o: Rule = ()
    down: Rule = ()
    eight_o: str | None = None
    """Of the attention's output in models of eight experts, in the place of `o`."""
    falcon_o: Rule = ()
    falcon_down: Rule | None = None
    """In the place of `down`; None where Falcon is like the others."""


class Anatomy(NamedTuple):
    """What the rules ask of a model."""

    layers: int
    experts: int = 0
    """Routed experts of a layer; 0 in a dense model."""
    group: int = 1
    """Query heads that share a key head."""
    model_type: str = "llama"

    @property
    def is_70b(self) -> bool:
        """Whether llama.cpp takes it for one of the 70B models, whose values are few and cheap."""
        return self.layers == 80 and (self.group > 1 or self.model_type == "qwen2")


class Place(NamedTuple):
    """Of one linear layer among those of its role, as the rules count."""

    number: int
    """From 0."""
    total: int


_MORE: Rule = (("q6_k", "more_bits"),)
_MIXES = (
    Mix(
        name="q2_k_s",
        title="GGUF Q2_K_S",
        base="q2_k",
        v=(("q4_k", "grouped"),),
        down=(("q4_k", "first_eighth"),),
    ),
    Mix(
        name="q2_k_m",
        title="GGUF Q2_K, llama.cpp's mix",
        base="q2_k",
        v=(("q4_k", "grouped"), ("q3_k", "always")),
        o=(("q3_k", "always"),),
        down=(("q3_k", "always"),),
        eight_o="q5_k",
    ),
    Mix(name="q3_k_s", title="GGUF Q3_K_S", base="q3_k", eight_o="q5_k"),
    Mix(
        name="q3_k_m",
        title="GGUF Q3_K_M",
        base="q3_k",
        v=(("q5_k", "first_two"), ("q4_k", "always")),
        o=(("q4_k", "always"),),
        down=(("q5_k", "first_sixteenth"), ("q4_k", "always")),
        eight_o="q5_k",
        falcon_down=(("q5_k", "first_sixteenth"), ("q4_k", "more_bits")),
    ),
    Mix(
        name="q3_k_l",
        title="GGUF Q3_K_L",
        base="q3_k",
        v=(("q5_k", "always"),),
        o=(("q5_k", "always"),),
        down=(("q5_k", "always"),),
        falcon_o=(("q4_k", "always"),),
        falcon_down=(("q4_k", "always"),),
    ),
    Mix(
        name="q4_k_s",
        title="GGUF Q4_K_S",
        base="q4_k",
        v=(("q5_k", "first_four"),),
        down=(("q5_k", "first_eighth"),),
        eight_o="q5_k",
        falcon_down=(),
    ),
    Mix(
        name="q4_k_m",
        title="GGUF Q4_K_M",
        base="q4_k",
        v=_MORE,
        down=_MORE,
        eight_o="q5_k",
        falcon_down=(("q6_k", "first_sixteenth"), ("q5_k", "more_bits")),
    ),
    Mix(name="q5_k_s", title="GGUF Q5_K_S", base="q5_k"),
    Mix(name="q5_k_m", title="GGUF Q5_K_M", base="q5_k", v=_MORE, down=_MORE),
)
MIXES: Mapping[str, Mix] = {mix.name: mix for mix in _MIXES}


def _known(value: str) -> str:
    if value not in PRESETS and value not in MIXES:
        raise ValueError(f"unknown format {value!r}; known are {', '.join((*PRESETS, *MIXES))}")
    return value


FormatName = Annotated[str, AfterValidator(_known), WithJsonSchema({"type": "string", "enum": [*PRESETS, *MIXES]})]
"""A number format, or a mix of some."""


def title_of(name: str) -> str:
    """What people call a format or a mix."""
    return MIXES[name].title if name in MIXES else PRESETS[name].title


def base_of(name: str) -> str:
    """The format of most of the weights of a mix; a format is its own."""
    return MIXES[name].base if name in MIXES else name


def formats_in(name: str) -> tuple[str, ...]:
    """Every format that linear layers may get from a format or a mix, whatever the model, its base first."""
    if name not in MIXES:
        return with_fallbacks((name,))
    mix = MIXES[name]
    rules = (mix.v, mix.o, mix.down, mix.falcon_o, mix.falcon_down or ())
    named = (format_ for rule in rules for format_, _ in rule)
    eight = (mix.eight_o,) if mix.eight_o else ()
    return with_fallbacks((mix.base, *named, *eight, "q5_k", "q8_0"))  # of the values in 70B and 8-expert models


def with_fallbacks(names: Sequence[str]) -> tuple[str, ...]:
    """These formats, and those that rows too short for their blocks get in their place."""
    fallbacks = (_FALLBACKS[name] for name in names if name in _FALLBACKS)
    return tuple(dict.fromkeys((*names, *fallbacks)))


def fitting(name: str, inputs: int) -> str | None:
    """The format that rows of so many inputs get in the place of one whose blocks do not divide them.

    None where no block format does; formats other than ggml's are left as they are.
    """
    if name in _FALLBACKS and inputs % SUPER_BLOCK:
        name = _FALLBACKS[name]
    return None if name in GGML_FORMATS and inputs % _BLOCK else name


def role_of(name: str) -> Role | None:
    """What a linear layer does, by its name in the checkpoint; None where no rule asks."""
    return next((role for role, pattern in _ROLES if pattern.search(name)), None)


def anatomy(config: Mapping[str, Any], layers: int) -> Anatomy:
    """What a model's `config.json` says of what the rules ask."""
    text = {**config, **(config.get("text_config") or {})}
    experts = next((text[key] for key in _EXPERT_COUNTS if isinstance(text.get(key), int)), 0)
    heads, key_heads = (text.get(key) for key in ("num_attention_heads", "num_key_value_heads"))
    # Where layers differ there is a list of them.
    group = heads // key_heads if isinstance(heads, int) and isinstance(key_heads, int) and key_heads else 1
    return Anatomy(layers, experts if experts > 1 else 0, group, str(config.get("model_type", "")))


def resolved(mix: Mix, names: Sequence[str], model: Anatomy) -> dict[str, str]:
    """The format of each linear layer of a decoder, `names` in the order of the model; widths are not looked at.

    Values are counted among the layers that have any; so are projections of dense models, while those of experts
    go by the number of their layer.
    """
    roles = {name: role_of(name) for name in names}
    values, downs = ([name for name in names if roles[name] == role] for role in ("v", "down"))
    places = {name: Place(index, len(values)) for index, name in enumerate(values)}
    for index, name in enumerate(downs):
        number = _NUMBER.search(name)
        own = int(number[1]) if model.experts and number else index
        places[name] = Place(own, model.layers)
    nowhere = Place(0, 1)
    return {name: _format(mix, role, places.get(name, nowhere), model) for name, role in roles.items()}


def _format(mix: Mix, role: Role | None, place: Place, model: Anatomy) -> str:
    """Of one linear layer."""
    is_falcon = model.model_type == "falcon"
    if role in ("v", "k") and model.experts == 8:
        return "q8_0"
    if role == "v":
        found = _first(mix.v, place, model) or mix.base
        return "q5_k" if model.is_70b and found in ("q3_k", "q4_k") else found
    if role == "down":
        rule = mix.falcon_down if is_falcon and mix.falcon_down is not None else mix.down
        return _first(rule, place, model) or mix.base
    if role == "o" and model.experts == 8 and not is_falcon:
        return mix.eight_o or mix.base
    if role == "o":
        return _first(mix.falcon_o if is_falcon else mix.o, place, model) or mix.base
    return mix.base


def _first(rule: Rule, place: Place, model: Anatomy) -> str | None:
    return next((format_ for format_, when in rule if _holds(when, place, model)), None)


def _holds(when: When, place: Place, model: Anatomy) -> bool:
    number, total = place
    eighth = total // 8
    return {
        "always": True,
        "first_eighth": number < eighth,
        "first_sixteenth": number < total // 16,
        "first_two": number < 2,
        "first_four": number < 4,
        "more_bits": number < eighth or number >= 7 * total // 8 or (number - eighth) % 3 == 2,
        "grouped": model.group >= 4,
    }[when]
