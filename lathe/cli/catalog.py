"""Commands about what a service can do."""

from lathe.cli.output import print_json, print_table
from lathe.cli.session import AsJson, connect


def techniques(as_json: AsJson = False) -> None:
    """List what a recipe's chain may name."""
    with connect() as client:
        found = client.techniques()
    if as_json:
        for technique in found:
            print_json(technique)
    else:
        print_table(("technique", "what it does", "paper"), [(item.name, item.title, item.paper) for item in found])


def formats(as_json: AsJson = False) -> None:
    """List number formats, and which targets hold them."""
    with connect() as client:
        found = client.formats()
    if as_json:
        for item in found:
            print_json(item)
    else:
        rows = [(item.name, item.kind, item.title, ", ".join(item.targets)) for item in found]
        print_table(("format", "for", "what it is", "targets"), rows)
