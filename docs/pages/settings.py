"""The settings page, from the classes that read the environment."""

import json
import sys
from typing import Any

from pydantic.fields import FieldInfo

from api.settings import Settings
from docs.pages.markdown import one_line, table
from worker.settings import WorkerSettings


def settings_page() -> str:
    """Every environment variable of the service and of its workers."""
    own = {name: field for name, field in WorkerSettings.model_fields.items() if name not in Settings.model_fields}
    return f"""# Settings

The service is configured by environment variables, read once at the start. On one machine `lathe up` sets the required
ones itself.

## The API and everything else

{_table(Settings.model_fields)}

## Workers

Workers, the relay and the reconciler read these as well.

{_table(own)}

## Variables of other software that we honour

| Variable | Meaning |
| --- | --- |
| `HF_ENDPOINT` | Base URL of the Hub, for a mirror or a Hub of your own. |
| `HF_HOME` | Where publishing keeps its files. Engines have folders of their own, one a project. |
| `CUDA_VISIBLE_DEVICES` | GPUs that a worker's engine may use. |
| `AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and the like | The artifact store in S3. |
"""


def _table(fields: dict[str, FieldInfo]) -> str:
    rows = [(f"`LATHE_{name.upper()}`", _default(field), one_line(field.description)) for name, field in fields.items()]
    return table(("Variable", "Default", "Meaning"), rows)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    text = _words(field.get_default(call_default_factory=True))
    return f"`{text}`" if text else "empty"


def _words(value: Any) -> str:
    """A default as a person would write it; the path of the interpreter at hand is no part of the documentation."""
    if isinstance(value, tuple):
        return " ".join("python" if item == sys.executable else str(item) for item in value)
    if isinstance(value, dict):
        return json.dumps(value)
    return "" if value is None else str(value)
