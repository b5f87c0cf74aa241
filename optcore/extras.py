"""Optional parts of Lathe, and how somebody who lacks one installs it."""


def how_to_install(*extras: str) -> str:
    """The command, for a remedy. It names the folder of Lathe: on PyPI the name belongs to another project."""
    return f"pip install '.[{','.join(extras)}]' in Lathe's own folder"
