"""Write the generated pages and build the site: `python -m docs`."""

import sys
from pathlib import Path

from docs import generate, site

ROOT = Path(__file__).parents[1]


def main() -> int:
    """0 when the site stands in `.lathe/site`."""
    for name in generate.write():
        sys.stdout.write(f"wrote docs/{name}\n")
    try:
        sys.stdout.write(site.build(ROOT))
    except site.SiteError as error:
        sys.stderr.write(f"{error}\nthe site was not built\n")
        return 1
    sys.stdout.write(
        "open .lathe/site/index.html, or serve that folder: python -m http.server --directory .lathe/site\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
