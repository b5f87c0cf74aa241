"""What a pass reads: every stored byte once, and no more memory for a deeper model."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fixtures.tiny_models import EXTRAS, MakeModel
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from optcore.errors import BadCheckpoint, RecipeError
from optcore.streaming.cache import EmptyCache, KeysAndValues
from optcore.streaming.decoder import Decoder
from optcore.streaming.match import unmatched
from optcore.streaming.reader import TensorReader

_WALK = """
import resource, sys, torch
from pathlib import Path
from optcore.streaming.decoder import Decoder
torch.set_num_threads(1)
decoder = Decoder(Path(sys.argv[1]))
state = decoder.embed(torch.arange(64)[None])
for index in range(len(decoder)):
    with decoder.layer(index, keep_stored=True) as layer:
        state = decoder.forward(index, layer, state)
        decoder.stored_tensors(index)
status = Path("/proc/self/status").read_text()
print(next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")))
"""


@pytest.mark.parametrize("family", EXTRAS)
def test_one_pass_is_exactly_one_read_of_the_checkpoint(family: str, tiny_model: MakeModel) -> None:
    folder = tiny_model(family)
    decoder, seen = Decoder(folder), {}
    for index in range(len(decoder)):
        with decoder.layer(index, keep_stored=True):
            stored = decoder.stored_tensors(index)
            seen |= stored
    seen |= dict(decoder.outside_tensors())
    share = decoder.reader.bytes_read / decoder.reader.total_bytes
    print(f"{family}: {decoder.reader.bytes_read} of {decoder.reader.total_bytes} bytes read, {share:.3f}x")
    assert share == 1
    expected = load_file(folder / "model.safetensors")
    assert seen.keys() == expected.keys()
    assert all(
        torch.equal(seen[name], tensor) and seen[name].dtype == tensor.dtype for name, tensor in expected.items()
    )


def test_what_is_stored_stays_when_a_parameter_is_changed(tiny_model: MakeModel) -> None:
    decoder = Decoder(tiny_model("Llama"))
    with decoder.layer(0, keep_stored=True) as layer:
        layer.input_layernorm.weight.mul_(3)
        stored = decoder.stored_tensors(0)["model.layers.0.input_layernorm.weight"]
    assert torch.equal(stored, decoder.reader.tensor("model.layers.0.input_layernorm.weight"))


def test_tensors_without_a_place_are_kept(tiny_model: MakeModel, tmp_path: Path) -> None:
    shutil.copytree(tiny_model("Llama"), tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    extra = {"model.layers.2.mlp.up_proj.weight": torch.ones(3, 5, dtype=torch.int8)}
    save_file(tensors | extra, tmp_path / "model" / "model.safetensors")
    decoder = Decoder(tmp_path / "model")
    assert torch.equal(dict(decoder.outside_tensors())["model.layers.2.mlp.up_proj.weight"], extra.popitem()[1])


def test_stored_tensors_are_gone_with_their_layer(tiny_model: MakeModel) -> None:
    decoder = Decoder(tiny_model("Llama"))
    with decoder.layer(0, keep_stored=True):
        pass
    with pytest.raises(RuntimeError, match="keep_stored"):
        decoder.stored_tensors(0)


def test_a_deeper_model_takes_no_more_memory(tmp_path: Path) -> None:
    shallow, deep = (_peak_bytes(_llama(layers, tmp_path / str(layers))) for layers in (3, 12))
    print(f"peak RSS: 3 layers {shallow / 2**20:.1f} MiB, 12 layers {deep / 2**20:.1f} MiB, {deep / shallow - 1:+.1%}")
    assert deep < 1.15 * shallow


@pytest.mark.parametrize("family", ["Qwen3Next", "Lfm2"])
def test_hybrid_models_have_a_cache_where_they_have_attention(family: str, tiny_model: MakeModel) -> None:
    decoder = Decoder(tiny_model(family))
    state = decoder.embed(torch.arange(16)[None])
    caches = [_Seen(), _Seen()]
    for index in range(2):
        with decoder.layer(index) as layer:
            state = decoder.forward(index, layer, state, caches[index])
    assert [decoder.has_key_value_cache(index) for index in range(2)] == [False, True]
    assert [cache.tokens for cache in caches] == [0, 16]


def test_a_layer_without_a_cache_argument_is_a_typed_error(tiny_model: MakeModel) -> None:
    decoder = Decoder(tiny_model("Llama"))
    state = decoder.embed(torch.arange(16)[None])
    without = tuple({k: v for k, v in own.items() if k != "past_key_values"} for own in state.arguments)
    with decoder.layer(0) as layer, pytest.raises(RecipeError, match="no KV cache"):
        decoder.forward(0, layer, state._replace(arguments=without), _Seen())


def test_an_encoder_has_no_cache_and_predicts_its_own_position(tiny_model: MakeModel) -> None:
    decoder = Decoder(tiny_model("Bert"))
    assert not decoder.is_causal
    assert not decoder.has_key_value_cache(0)
    assert Decoder(tiny_model("Llama")).is_causal
    assert Decoder(tiny_model("Roberta")).longest_sequence == 510  # positions count from the padding's


def test_an_index_that_names_a_tensor_its_file_lacks_is_bad(tiny_model: MakeModel, tmp_path: Path) -> None:
    source = tiny_model("Llama")
    (tmp_path / "a.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x.weight": "a.safetensors"}}))
    with pytest.raises(BadCheckpoint, match=r"no tensor x\.weight"):
        TensorReader(tmp_path)


@pytest.mark.parametrize(
    "facts",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]},
        {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": "1", "data_offsets": [0]},
        {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
    ],
)
def test_a_header_that_contradicts_its_file_is_bad(facts: dict[str, object], tmp_path: Path) -> None:
    header = json.dumps({"x": facts}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(BadCheckpoint, match=r"cannot read model\.safetensors"):
        TensorReader(tmp_path)


def test_patterns_without_a_match_are_listed() -> None:
    names = ["model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"]
    assert unmatched(["re:.*up_proj", "lm_head", "re:.*gate", names[1]], names) == ["lm_head", "re:.*gate"]


class _Seen(EmptyCache):
    """Counts the tokens whose keys and values it is handed."""

    tokens = 0

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_: object, **__: object) -> KeysAndValues:
        self.tokens += keys.shape[-2]
        return keys, values


def _llama(layers: int, folder: Path) -> Path:
    """Zeros will do: they take as much room as trained weights."""
    config = LlamaConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=layers, num_attention_heads=8, vocab_size=1024
    )
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    config.save_pretrained(folder)
    tensors = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    return folder


def _peak_bytes(folder: Path) -> int:
    done = subprocess.run([sys.executable, "-c", _WALK, str(folder)], check=True, stdout=subprocess.PIPE)
    return int(done.stdout.split()[-1]) * 1024
