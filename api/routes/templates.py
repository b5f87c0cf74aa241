"""Recipes to start from."""

from fastapi import APIRouter

from api import wire
from api.deps import AnyCaller
from api.templates import templates
from lathe.models import Page, Template

router = APIRouter(prefix="/v1", tags=["catalog"])


@router.get("/templates")
def list_templates(_caller: AnyCaller) -> Page[Template]:
    """Recipes by purpose, such as `fit-on-8-gb`, each whole, with an example of a model."""
    return wire.page(list(templates().values()), list(templates()))
