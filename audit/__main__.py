"""`python -m audit`: ask osv.dev about every installed package; 1: a hole is known, 3: it could not be asked."""

import json
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_SERVICE = ("--vulnerability-service", "osv", "--format", "json", "--progress-spinner", "off")


def main(arguments: Sequence[str]) -> int:
    """Ask with pip-audit, and print what is known; the exit status."""
    with tempfile.TemporaryDirectory() as folder:
        packages = Path(folder) / "installed.txt"
        packages.write_text(_without_builds(_installed()))
        pip_audit = Path(sysconfig.get_path("scripts")) / "pip-audit"
        command = [pip_audit, *_SERVICE, "--no-deps", "--disable-pip", "-r", packages, *arguments]
        asked = subprocess.run(command, check=False, capture_output=True, text=True)
    try:
        answers = json.loads(asked.stdout)["dependencies"]
    except ValueError:
        reason = asked.stderr.strip().rpartition("\n")[2]
        print(f"NOT AUDITED. Is api.osv.dev within reach? pip-audit says: {reason}")
        return 3
    return tell(answers)


def tell(answers: Sequence[dict[str, Any]]) -> int:
    """Print what is known of each package; the exit status."""
    skipped = [each for each in answers if "skip_reason" in each]
    found = [(each, known) for each in answers for known in each.get("vulns", [])]
    for each in skipped:
        print(f"{each['name']}: NOT AUDITED: {each['skip_reason']}")
    for each, known in found:
        names = " ".join([known["id"], *known["aliases"]])
        print(f"{each['name']} {each['version']}: {names}: fixed in {', '.join(known['fix_versions']) or 'no version'}")
    print(f"{len(answers) - len(skipped)} packages audited, {len(skipped)} not, {len(found)} known vulnerabilities")
    return 1 if found else 3 if skipped else 0


def _installed() -> str:
    command = [sys.executable, "-m", "pip", "list", "--format=freeze", "--exclude-editable"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _without_builds(packages: str) -> str:
    """`torch==2.11.0+cpu` as `torch==2.11.0`: advisories know no builds."""
    return "".join(line.partition("+")[0] + "\n" for line in packages.splitlines())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
