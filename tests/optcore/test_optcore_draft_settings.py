"""What engines are told of a draft: the names of today's releases, and no setting for one that an engine cannot use."""

import json
from typing import Any

import pytest

from optcore.deployment import deployment_notes
from optcore.draft_settings import ServedDraft, draft_obstacle, draft_settings
from optcore.engines import ENGINES
from optcore.export.base import EngineName
from optcore.report import Report
from optcore.report.card import render_card
from optcore.report.page import render_page

EAGLE = ServedDraft("eagle3", "eagle", 5, taps=(1, 14, 24))
CONFIG = {"num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096, "max_position_embeddings": 4096}


def _told(engine: EngineName, draft: ServedDraft) -> dict[str, str]:
    return {setting.name: setting.value for setting in draft_settings(engine, draft)}


@pytest.mark.parametrize(
    ("draft", "said"),
    [
        (EAGLE, {"method": "eagle3", "model": "draft", "num_speculative_tokens": 5}),
        (
            ServedDraft("eagle3", "speculators", 3, taps=(1, 2, 3)),
            {"method": "eagle3", "model": "draft", "num_speculative_tokens": 3},
        ),
        (ServedDraft("medusa", "medusa", 4), {"method": "medusa", "model": "draft", "num_speculative_tokens": 4}),
        (
            ServedDraft("block", "dflash", 7, has_mask_token=True),
            {"method": "dflash", "model": "draft", "num_speculative_tokens": 7},
        ),
        (ServedDraft("model", "", 5), {"method": "draft_model", "model": "draft", "num_speculative_tokens": 5}),
        (
            ServedDraft("ngram", "", 5, longest=3),
            {"method": "ngram", "prompt_lookup_min": 1, "prompt_lookup_max": 3, "num_speculative_tokens": 5},
        ),
    ],
)
def test_vllm(draft: ServedDraft, said: dict[str, Any]) -> None:
    told = _told("vllm", draft)
    assert told.keys() == {"--speculative-config"}
    assert json.loads(told["--speculative-config"]) == said


def test_sglang_counts_the_chosen_token_among_those_it_verifies() -> None:
    assert _told("sglang", EAGLE) == {
        "--speculative-algorithm": "EAGLE3",
        "--speculative-draft-model-path": "draft",
        "--speculative-num-steps": "5",
        "--speculative-eagle-topk": "1",
        "--speculative-num-draft-tokens": "6",
    }
    assert _told("sglang", ServedDraft("model", "", 3))["--speculative-algorithm"] == "STANDALONE"
    assert _told("sglang", ServedDraft("ngram", "", 3)) == {
        "--speculative-algorithm": "NGRAM",
        "--speculative-num-draft-tokens": "4",
    }
    assert _told("sglang", ServedDraft("block", "dflash", 15, has_mask_token=True)) == {
        "--speculative-algorithm": "DFLASH",
        "--speculative-draft-model-path": "draft",
        "--speculative-num-draft-tokens": "16",
    }


def test_tensorrt_is_told_the_layers() -> None:
    assert _told("tensorrt-llm", EAGLE) == {
        "speculative_config.decoding_type": "Eagle3",
        "speculative_config.max_draft_len": "5",
        "speculative_config.speculative_model": "draft",
        "speculative_config.eagle3_layers_to_capture": "[1, 14, 24]",
    }
    assert _told("tensorrt-llm", ServedDraft("ngram", "", 4)) == {
        "speculative_config.decoding_type": "NGram",
        "speculative_config.max_draft_len": "4",
        "speculative_config.max_matching_ngram_size": "4",
        "disable_overlap_scheduler": "true",
    }


def test_engines_without_heads_take_models_and_repetitions() -> None:
    small = ServedDraft("model", "", 6)
    assert _told("transformers", small) == {"assistant_model": "draft", "num_assistant_tokens": "6"}
    assert _told("llama.cpp", small) == {"--model-draft": "draft.gguf", "--spec-draft-n-max": "6"}
    assert _told("transformers", ServedDraft("ngram", "", 6)) == {
        "prompt_lookup_num_tokens": "6",
        "max_matching_ngram_size": "4",
    }


@pytest.mark.parametrize(
    ("engine", "draft", "why"),
    [
        ("sglang", ServedDraft("medusa", "medusa", 4), "method medusa"),
        ("tensorrt-llm", ServedDraft("medusa", "medusa", 4), "method medusa"),
        ("sglang", ServedDraft("eagle3", "speculators", 5, taps=(1, 2, 3)), "layout speculators"),
        ("transformers", EAGLE, "method eagle3"),
        ("llama.cpp", EAGLE, "method eagle3"),
        ("onnxruntime-genai", EAGLE, "without drafts"),
        ("vllm", ServedDraft("mtp", "plain", 3), "method mtp"),
        ("vllm", ServedDraft("block", "dflash", 7), "pickled"),
    ],
)
def test_what_an_engine_cannot_use_is_said(engine: EngineName, draft: ServedDraft, why: str) -> None:
    assert why in draft_obstacle(engine, draft)
    assert draft_settings(engine, draft) == ()


def test_transformers_takes_nothing_back_from_a_state() -> None:
    small = ServedDraft("model", "", 6)
    assert draft_obstacle("transformers", small) == ""
    assert "recurrent state" in draft_obstacle("transformers", small, recurrent=True)
    assert draft_settings("transformers", small, recurrent=True) == ()
    assert draft_settings("vllm", small, recurrent=True) == draft_settings("vllm", small)


def test_the_notes_of_an_artifact_with_a_draft() -> None:
    plain = deployment_notes("dense", ("int4",), CONFIG, "dense")
    notes = deployment_notes("dense", ("int4",), CONFIG, "dense", EAGLE)
    by_name = {title: name for name, title in ENGINES.items()}
    for before, after in zip(plain, notes, strict=True):
        engine = by_name[after.engine]
        assert after.settings == (*before.settings, *draft_settings(engine, EAGLE))
        assert (before.without_draft, after.without_draft) == ("", draft_obstacle(engine, EAGLE))
    report = Report(model="m", source_digest="", artifact_digest="", scheme="s", recipe={}, deployment=notes)
    for shown in (render_card(report), render_page(report)):
        assert "Without the draft: it has no loader for drafts of the method eagle3." in shown
        assert "speculative-num-draft-tokens" in shown
