"""Tokenizers in GGUF: llama.cpp reads text as the tokenizer that was written does."""

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from fixtures.llama import opened
from tokenizers import Regex, Tokenizer, models, processors, trainers
from tokenizers import normalizers as normal
from tokenizers import pre_tokenizers as cut

from optcore.errors import RecipeError
from optcore.gguf.fitness import check_model
from optcore.gguf.pre_tokenizers import _RULES, UNKNOWN
from optcore.gguf.tokenizer import Ends, Kind, Vocabulary, read_vocabulary
from optcore.gguf.tokenizer_keys import add_vocabulary

pytest.importorskip("llama_cpp", reason="the peer that reads the file")

CORPUS = [
    "def f(x):\n    return x+1  # it's  12345 and we'LL  go\r\n\r\n\tclass A: pass",
    "I'll don't 2024-01-02 naïve café über Straße 日本語 привет мир  ...  !!!",
    "camelCase HTTPServer XMLHttp iPhone 3.14159 foo/bar//baz\n\n\n  end",
]
TEXT = (
    "def g(x):\n  return x*1234567  # it's WE'LL  don't\r\n\r\n\t日本語 é naïve 12 345,678 camelCase HTTPServer"
    " foo//\n/x  \n\n   end  é हिन्दी 😀 <s> </s>"
)
SPECIALS = ["<unk>", "<s>", "</s>"]
STEPS = {
    "bytes, cut": lambda: cut.ByteLevel(add_prefix_space=False, use_regex=True),
    "bytes": lambda: cut.ByteLevel(add_prefix_space=False, use_regex=False),
    "digits": lambda: cut.Digits(individual_digits=True),
}
SETTINGS = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "unk_token": "<unk>"}


def byte_tokenizer(rule: tuple[str, ...], *, ignores_merges: bool = False) -> Tokenizer:
    """A tokenizer of a few hundred tokens that cuts text by a rule."""
    steps = [STEPS[step]() if step in STEPS else cut.Split(Regex(step), "isolated") for step in rule]
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignores_merges))
    tokenizer.pre_tokenizer = cut.Sequence(steps) if len(steps) > 1 else steps[0]
    alphabet = cut.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def piece_tokenizer(**parts: Any) -> Tokenizer:
    """One that writes a space as SentencePiece does, and bytes of characters that it does not know."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = cut.Metaspace(replacement="\u2581")
    octets = [f"<0x{octet:02X}>" for octet in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=[*SPECIALS, *octets], show_progress=False)
    trained.train_from_iterator(CORPUS, trainer)
    made = json.loads(trained.to_str())
    made["model"] |= {"byte_fallback": True, "unk_token": "<unk>", "fuse_unk": True}
    made["added_tokens"] = made["added_tokens"][: len(SPECIALS)]
    made["pre_tokenizer"] = None
    tokenizer = Tokenizer.from_str(json.dumps(made))
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def written(tokenizer: Tokenizer, folder: Path) -> Vocabulary:
    """The vocabulary of a tokenizer, and a GGUF file that has nothing else; three rows have no token."""
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(SETTINGS))
    vocabulary = read_vocabulary(folder, {"vocab_size": tokenizer.get_vocab_size() + 3})
    writer = gguf.GGUFWriter(folder / "vocabulary.gguf", "llama")
    for add in (writer.add_block_count, writer.add_embedding_length, writer.add_feed_forward_length):
        add(1)
    writer.add_head_count(1)
    writer.add_context_length(256)
    writer.add_layer_norm_rms_eps(1e-5)
    add_vocabulary(writer, vocabulary)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return vocabulary


def read_by_llama(folder: Path) -> list[int]:
    """Tokens of the text with what llama.cpp puts around it, special tokens read as such."""
    model = opened(folder / "vocabulary.gguf", vocab_only=True)
    tokens: list[int] = model.tokenize(TEXT.encode(), add_bos=True, special=True)
    return tokens


@pytest.mark.parametrize("rule", sorted(_RULES), ids=lambda rule: _RULES[rule])
def test_llama_cuts_text_by_the_rule_of_the_name(rule: tuple[str, ...], tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(rule, ignores_merges=_RULES[rule] == "tekken")
    vocabulary = written(tokenizer, tmp_path)
    assert (vocabulary.model, vocabulary.rule, vocabulary.remarks) == ("gpt2", _RULES[rule], ())
    assert read_by_llama(tmp_path) == tokenizer.encode(TEXT).ids


def test_rules_that_cut_alike_have_two_names(tmp_path: Path) -> None:
    """Llama 3's takes a piece whole that is a token; a name without this is given where a tokenizer merges up to it."""
    rule = next(rule for rule, name in _RULES.items() if name == "smaug-bpe")
    tokenizer = byte_tokenizer(rule, ignores_merges=True)
    assert written(tokenizer, tmp_path).rule == "llama-bpe"
    assert read_by_llama(tmp_path) == tokenizer.encode(TEXT).ids


def test_what_llama_reads_otherwise_is_said(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(("digits", "bytes, cut"))
    tokenizer.pre_tokenizer = cut.Sequence([cut.Whitespace(), cut.ByteLevel(add_prefix_space=False)])
    tokenizer.normalizer = normal.NFC()
    vocabulary = written(tokenizer, tmp_path)
    assert vocabulary.rule == UNKNOWN
    assert [remark.split(";")[0] for remark in vocabulary.remarks] == [
        "llama.cpp has no name for the rule by which this tokenizer cuts text, and cuts some of it elsewhere",
        "llama.cpp does not normalize text as this tokenizer does",
    ]
    plain = byte_tokenizer(("bytes, cut",), ignores_merges=True)
    assert "no merges lead to" in written(plain, tmp_path).remarks[0]


@pytest.mark.parametrize(
    ("parts", "prefixes"),
    [
        ({"normalizer": normal.Sequence([normal.Prepend("\u2581"), normal.Replace(" ", "\u2581")])}, True),
        ({"normalizer": normal.Replace(" ", "\u2581")}, False),
        ({"pre_tokenizer": cut.Metaspace(replacement="\u2581", prepend_scheme="first", split=False)}, True),
    ],
    ids=["llama-2", "gemma", "metaspace"],
)
def test_pieces_are_merged_in_the_order_of_the_merges(parts: dict[str, Any], prefixes: bool, tmp_path: Path) -> None:
    tokenizer = piece_tokenizer(**parts)
    vocabulary = written(tokenizer, tmp_path)
    assert (vocabulary.model, vocabulary.prefixes_space, vocabulary.ends) == ("llama", prefixes, Ends(True, False))
    kinds = [vocabulary.kinds[number] for number in (0, 1, 2, 3, 400, -1)]
    assert kinds == [Kind.UNKNOWN, Kind.CONTROL, Kind.CONTROL, Kind.BYTE, Kind.NORMAL, Kind.UNUSED]
    text = TEXT.removesuffix(" <s> </s>")  # spaces around special tokens are stripped by either in its own way
    model = opened(tmp_path / "vocabulary.gguf", vocab_only=True)
    assert model.tokenize(text.encode(), add_bos=True) == tokenizer.encode(text).ids


def test_numbers_of_special_tokens(tmp_path: Path) -> None:
    """The tokenizer's own word first, then the model's; of several ends of text the first."""
    byte_tokenizer(("bytes, cut",)).save(str(tmp_path / "tokenizer.json"))
    config = {"vocab_size": 600, "pad_token_id": 7, "eos_token_id": [2, 5]}
    assert read_vocabulary(tmp_path, config).specials == {"eos": 2, "pad": 7}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(SETTINGS | {"eos_token": "<s>"}))
    assert read_vocabulary(tmp_path, config).specials == {"bos": 1, "eos": 1, "pad": 7, "unk": 0}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": True, "chat_template": "{{ hello }}"}))
    vocabulary = read_vocabulary(tmp_path, config)
    assert (vocabulary.ends, vocabulary.template) == (Ends(True, False), "{{ hello }}")
    (tmp_path / "chat_template.jinja").write_text("{{ there }}")
    assert read_vocabulary(tmp_path, config).template == "{{ there }}"


def test_an_empty_template_puts_nothing_around_a_text(tmp_path: Path) -> None:
    byte_tokenizer(("bytes, cut",)).save(str(tmp_path / "tokenizer.json"))
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    tokenizer["post_processor"] = {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(SETTINGS))
    assert read_vocabulary(tmp_path, {"vocab_size": 600}).ends == Ends(False, False)


def test_tokenizers_without_a_place_are_refused(tmp_path: Path, stdlib_model: Path) -> None:
    (tmp_path / "config.json").write_text((stdlib_model / "config.json").read_text())
    with pytest.raises(RecipeError, match=r"no tokenizer\.json"):
        check_model(tmp_path, "text-generation", "/also/0")
    Tokenizer(models.Unigram([("a", -1.0)], None)).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(RecipeError, match="a Unigram one") as raised:
        check_model(tmp_path, "text-generation", "/also/0")
    assert raised.value.failure().field == "/also/0/format"
    tokenizer = byte_tokenizer(("bytes, cut",))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    rows = tokenizer.get_vocab_size() - 1
    config = json.loads((stdlib_model / "config.json").read_text()) | {"vocab_size": rows}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(RecipeError, match=f"{rows + 1} tokens, and the embedding {rows} rows"):
        check_model(tmp_path, "text-generation", "/also/0")
