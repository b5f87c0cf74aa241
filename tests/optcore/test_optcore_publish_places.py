"""Where the results of a run go on the Hub, and how their cards say to load them."""

from typing import Any

import pytest
from pydantic import ValidationError

from optcore.errors import RecipeError
from optcore.plan import check
from optcore.recipe import recipe_from
from optcore.references import Place, Publish
from optcore.report.loading import loading_commands

SEVERAL = {
    "model": {"id": "a/b"},
    "chain": [{"technique": "ptq", "scheme": "int8", "propagate": "original", "also": ["fp8_dynamic"]}],
}
VARIANT = "fp8_dynamic-compressed-tensors"


@pytest.mark.parametrize(
    ("layout", "place"),
    [
        ("folder", Place("me/x", "v1", f"also/{VARIANT}")),
        ("branch", Place("me/x", VARIANT)),
        ("repo", Place(f"me/x-{VARIANT}", "v1")),
    ],
)
def test_the_main_result_goes_where_the_recipe_says_and_another_beside(layout: Any, place: Place) -> None:
    publish = Publish(repo_id="me/x", revision="v1", layout=layout)
    assert publish.place("") == Place("me/x", "v1")
    assert publish.place(VARIANT) == place


def test_nothing_can_be_left_open_without_a_pull_request() -> None:
    with pytest.raises(ValidationError, match="nothing to merge"):
        Publish(repo_id="me/x", via="branch", merge=False)


@pytest.mark.parametrize(
    ("publish", "field"),
    [
        ({"repo_id": "me/x", "layout": "branch", "revision": VARIANT}, "/publish/revision"),
        ({"repo_id": f"me/{'x' * 70}", "layout": "repo"}, "/publish/repo_id"),
    ],
)
def test_places_that_the_hub_would_refuse_are_refused_before_any_work(publish: dict[str, str], field: str) -> None:
    check(recipe_from(SEVERAL | {"publish": publish | {"layout": "folder"}}))
    with pytest.raises(RecipeError) as caught:
        check(recipe_from(SEVERAL | {"publish": publish}))
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (None, ['name = "path/to/this/folder"', "vllm serve path/to/this/folder\n"]),
        (Place("me/x", "main"), ['name = "me/x"', "from_pretrained(name)", "vllm serve me/x\n"]),
        (Place("me/x", "v1"), ['from_pretrained(name, revision="v1")', "vllm serve me/x --revision v1\n"]),
        (
            Place("me/x", "v1", "also/y"),
            ['+ "/also/y"', 'revision="v1"', "--include 'also/y/*'", "vllm serve x/also/y\n"],
        ),
    ],
)
def test_the_commands_name_the_place(place: Place | None, words: list[str]) -> None:
    python, shell = loading_commands(place)
    compile(python, "card", "exec")
    assert all(word in python + shell for word in words), python + shell
