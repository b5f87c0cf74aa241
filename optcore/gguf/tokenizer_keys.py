"""A vocabulary in the keys of a GGUF file."""

import gguf

from optcore.gguf.tokenizer import Vocabulary


def add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    """Add the tokenizer and the chat template."""
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.rule)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types([int(kind) for kind in vocabulary.kinds])
    if vocabulary.merges is not None:
        writer.add_token_merges(vocabulary.merges)
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(vocabulary.prefixes_space)
    for name, add in {
        "bos": writer.add_bos_token_id,
        "eos": writer.add_eos_token_id,
        "pad": writer.add_pad_token_id,
        "unk": writer.add_unk_token_id,
    }.items():
        if name in vocabulary.specials:
            add(vocabulary.specials[name])
    writer.add_add_bos_token(vocabulary.ends.adds_bos)
    writer.add_add_eos_token(vocabulary.ends.adds_eos)
    if vocabulary.template:
        writer.add_chat_template(vocabulary.template)
