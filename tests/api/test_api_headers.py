"""The headers of the OWASP list, on pages, assets, API answers and errors alike."""

import re

import pytest
from fastapi.testclient import TestClient

from api.main import create_app
from api.settings import Settings

pytestmark = pytest.mark.integration
EVERY = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
KINDS = [
    ("/sign-in", 200, "same-origin", "no-store"),
    ("/", 303, "no-referrer", "no-store"),
    ("/static/lathe.css", 200, "no-referrer", "no-cache"),
    ("/static/nothing", 404, "no-referrer", "no-store"),
    ("/v1/jobs", 200, "no-referrer", "no-store"),
    ("/v1/jobs/nothing", 404, "no-referrer", "no-store"),
    ("/healthz", 200, "no-referrer", "no-store"),
    ("/openapi.json", 200, "no-referrer", "no-store"),
]


@pytest.mark.parametrize(("path", "status", "referrer", "cache"), KINDS, ids=[path for path, *_ in KINDS])
def test_every_answer_has_safe_headers(client: TestClient, path: str, status: int, referrer: str, cache: str) -> None:
    answer = client.get(path, follow_redirects=False)
    assert answer.status_code == status
    assert {name: answer.headers.get(name) for name in EVERY} == EVERY
    assert (answer.headers["referrer-policy"], answer.headers["cache-control"]) == (referrer, cache)
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert re.fullmatch(r"[a-z-]+=\(\)(, [a-z-]+=\(\))+", answer.headers["permissions-policy"])
    assert not {"server", "x-powered-by", "access-control-allow-origin"} & answer.headers.keys()


def test_browsers_are_bound_to_tls_by_answers_over_tls_only(settings: Settings) -> None:
    app = create_app(settings)
    plain, safe = (TestClient(app, base_url=f"{scheme}://lathe.example") for scheme in ("http", "https"))
    assert "strict-transport-security" not in plain.get("/healthz").headers
    for path in ("/healthz", "/sign-in", "/v1/jobs"):
        with safe:
            assert safe.get(path).headers["strict-transport-security"] == "max-age=31536000"
