"""What is carried over from the card of a source, however it was written."""

from pathlib import Path

import pytest

from optcore.source_card import SourceCard, read_source_card


def card(folder: Path, text: str) -> SourceCard:
    (folder / "README.md").write_text(text)
    return read_source_card(folder)


def test_a_licence_goes_along(tmp_path: Path) -> None:
    head = "---\nlicense: other\nlicense_name: llama3.1\nlicense_link: LICENSE\nlanguage:\n- en\n- de\n---\n# Model\n"
    found = card(tmp_path, head)
    assert (found.license, found.license_name, found.language) == ("other", "llama3.1", ("en", "de"))
    assert found.license_link == "", "no such file goes along"
    (tmp_path / "LICENSE").write_text("You may.")
    assert card(tmp_path, head).license_link == "LICENSE"
    assert card(tmp_path, head.replace("LICENSE", "https://example.com/l")).license_link == "https://example.com/l"


def test_one_language_is_a_list_of_one(tmp_path: Path) -> None:
    found = card(tmp_path, "---\r\nlicense: mit\r\nlanguage: en\r\n---\r\n")
    assert found == SourceCard(license="mit", language=("en",))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# no head\nlicense: mit\n",
        "---\nlicense: mit\n",
        "---\n- mit\n---\n",
        "---\nlicense: [mit]\n---\n",
        "---\nlicense: 'm\\nit\n---\n",
        "---\na: &x [1]\nlicense: *x\n---\n",
        '---\nlicense: "m\\u0007it"\n---\n',
        f"---\nlicense: {'x' * 1000}\n---\n",
        "---\nlicense_link: ../../secret\n---\n",
    ],
)
def test_a_card_that_says_nothing_of_use_says_nothing(tmp_path: Path, text: str) -> None:
    assert card(tmp_path, text) == SourceCard()


def test_no_card_says_nothing(tmp_path: Path) -> None:
    assert read_source_card(tmp_path) == SourceCard()
