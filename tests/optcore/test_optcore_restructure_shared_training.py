"""Training of numbers that many weights share: they move, what shares them moves together, and every form is exact."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.exporting import run_of
from fixtures.tiny_models import MakeModel
from fixtures.training import killed_and_gone_on, logits_of, training_run
from fixtures.training_stages import AsWritten
from safetensors.torch import load_file, save_file

from optcore.compact import Form, load_compact
from optcore.errors import FormLost, RecipeError
from optcore.export import Compact
from optcore.palettized import PALETTES
from optcore.plan import check
from optcore.recipe import recipe_from
from optcore.techniques import Distill, Finetune, HashShare, Heal, Palettize, TieLayers
from optcore.techniques.base import Technique
from optcore.training import dense_stage

torch.set_num_threads(1)
QUICK: dict[str, Any] = {
    "batch": 2,
    "sequence_length": 16,
    "validation": {"samples": 2},
    "warmup": 0,
    "steps": 2,
    "learning_rate": 0.01,
    "weight_decay": 0.1,
    "data": {"kind": "random", "windows": 8},
}
PALETTE = Palettize(bits=2, group=100, sensitivity="none", embeddings=True)
HASH = HashShare(ratio=0.3, weighting="none")
TIE = TieLayers(runs=((0, 1),))
FORMS = {"palette": (PALETTE, "palette"), "hash": (HASH, "buckets"), "tie": (TIE, "same")}
NUMBERS = ("palette.safetensors", "hashed.safetensors")


def _made(technique: Technique, source: Path, folder: Path) -> Path:
    run = run_of(source, source, folder / "made")
    technique.apply(run)
    return run.out


def _wide(source: Path, folder: Path) -> Path:
    """The model in float32, so that tables are narrower than the weights."""
    shutil.copytree(source, folder / "wide")
    config = json.loads((source / "config.json").read_text())
    (folder / "wide" / "config.json").write_text(json.dumps({**config, "dtype": "float32"}))
    tensors = {name: tensor.float() for name, tensor in load_file(source / "model.safetensors").items()}
    save_file(tensors, folder / "wide" / "model.safetensors", metadata={"format": "pt"})
    return folder / "wide"


@pytest.mark.parametrize(
    ("form", "family", "wide"),
    [
        ("palette", "Qwen2", False),
        ("palette", "GptOss", True),  # experts that are all in one tensor, a table for rows of two of them
        ("palette", "Bert", False),
        ("hash", "Qwen2", False),  # a head that is the embeddings
        ("hash", "Llama", True),
        ("tie", "Qwen2", False),
        ("tie", "GptOss", False),
    ],
)
@pytest.mark.usefixtures("keeps_the_last")
def test_shared_numbers_train_and_give_every_bit(
    form: str, family: str, wide: bool, tiny_model: MakeModel, tmp_path: Path, as_written: AsWritten
) -> None:
    source = _wide(tiny_model(family), tmp_path) if wide else tiny_model(family)
    technique, stored_as = FORMS[form]
    made = _made(technique, source, tmp_path)
    tokens_BT = torch.arange(3, 19)[None]
    said = as_written(tokens_BT)
    training = Finetune.model_validate(QUICK)
    run = training_run(training, made, made, tmp_path)
    training.apply(run)
    ((_, trained),) = said
    Compact().write(run_of(source, run.out, tmp_path / "compact"))  # compares every bit
    after = _matrices(tmp_path / "compact", stored_as)
    Compact().write(run_of(source, made, tmp_path / "before"))
    assert _matrices(tmp_path / "before", stored_as) == after
    old, new = (load_file(folder / "model.safetensors") for folder in (made, run.out))
    assert after
    assert sum(not torch.equal(old[name], new[name]) for name in after) > 0.9 * len(after)
    for file in (made / name for name in NUMBERS if (made / name).exists()):
        stored, kept = load_file(file), load_file(run.out / file.name)
        assert {name: (one.dtype, one.shape) for name, one in stored.items()} == {
            name: (one.dtype, one.shape) for name, one in kept.items()
        }
        assert all(torch.equal(one, kept[name]) for name, one in stored.items() if name.endswith(".indices"))
    logits, untrained = logits_of(run.out, tokens_BT), logits_of(made, tokens_BT)
    assert (logits - trained).norm() < 0.05 * (untrained - trained).norm()  # files hold 16 bits


def _matrices(compact: Path, kind: str) -> dict[str, Form]:
    """Those in one form."""
    forms = load_compact(compact).forms
    return {name: form for name, form in forms.items() if form.form == kind and len(form.shape) > 1}


@pytest.mark.parametrize("form", FORMS)
def test_a_killed_run_goes_on_exactly(form: str, tiny_model: MakeModel, tmp_path: Path) -> None:
    source = tiny_model("Qwen2")
    made = _made(FORMS[form][0], source, tmp_path)
    training = Distill.model_validate({**QUICK, "steps": 4, "learning_rate": 1e-3, "save_every": 2})
    runs = killed_and_gone_on(training, source, made, tmp_path, 3)
    whole, killed = ([path.read_bytes() for path in sorted(run.out.glob("*.safetensors"))] for run in runs)
    assert whole == killed
    assert whole[0] != (made / "model.safetensors").read_bytes()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.usefixtures("keeps_the_last")
def test_what_parts_them_is_never_written(
    form: str, tiny_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = _made(FORMS[form][0], tiny_model("Llama"), tmp_path)
    monkeypatch.setattr(dense_stage, "constraints_of", lambda *_: ())
    training = Finetune.model_validate(QUICK)
    run = training_run(training, made, made, tmp_path)
    with pytest.raises(FormLost, match="shared a number with others, and do not any more"):
        training.apply(run)


def test_a_value_that_no_weight_has_stays(tiny_model: MakeModel, tmp_path: Path) -> None:
    """Norms alone are healed: tables stay as they are, to the bit, with entries that nothing points to."""
    made = _made(Palettize(bits=8, group=1, sensitivity="none"), tiny_model("Llama"), tmp_path)
    training = Heal.model_validate({**QUICK, "adapters": False})
    run = training_run(training, made, made, tmp_path)
    training.apply(run)
    before, after = load_file(made / PALETTES), load_file(run.out / PALETTES)
    assert before.keys() == after.keys()
    assert all(torch.equal(one, after[name]) for name, one in before.items())


RESTRUCTURED = ({"technique": "palettize"}, {"technique": "hash_share"}, {"technique": "tie_layers", "ties": 1})


@pytest.mark.parametrize("first", RESTRUCTURED, ids=lambda one: one["technique"])
def test_training_may_follow_and_adapters_may_not(first: dict[str, Any]) -> None:
    document = {"model": {"id": "org/model"}, "target": {"format": "compact"}}
    after = [{"technique": "finetune"}, {"technique": "distill"}, {"technique": "heal", "adapters": False}]
    check(recipe_from({**document, "chain": [first, *after]}))
    for other, remedy in (
        ({"technique": "finetune", "scope": "lora"}, "use `scope: full`"),
        ({"technique": "distill", "student": {"id": "org/small"}}, "leave out `student`"),
        ({"technique": "heal"}, "use `adapters: false`"),
        ({"technique": "ptq", "scheme": "int4"}, "the last of the chain"),
    ):
        chain = [first, {"technique": "finetune"}, other]
        with pytest.raises(RecipeError, match="would be lost") as caught:
            check(recipe_from({**document, "target": {"format": "dense"}, "chain": chain}))
        assert caught.value.field == "/chain/2"
        assert remedy in caught.value.remedy
