"""The protocol without a network: what is built, and how answers are read."""

from email.utils import formatdate
from time import time

import httpx
import pytest
from scripted_server import job_document, page

from lathe import errors
from lathe._connection import connection
from lathe._protocol import jobs, webhooks
from lathe._protocol.call import conclude, error_of, retry_after
from lathe.client import Client
from optcore.recipe import recipe_from

RECIPE = {"model": {"path": "m"}, "chain": [{"technique": "ptq", "scheme": "fp8"}]}


def _response(status: int, document: object = None, **headers: str) -> httpx.Response:
    request = httpx.Request("GET", "http://127.0.0.1/v1/jobs")
    if isinstance(document, bytes):
        return httpx.Response(status, content=document, headers=headers, request=request)
    return httpx.Response(status, json=document, headers=headers, request=request)


def _problem(status: int, code: str) -> dict[str, object]:
    wrong = [{"pointer": "/chain/0", "reason": "because"}]
    return {
        "type": "x",
        "title": "T",
        "status": status,
        "detail": "what",
        "code": code,
        "remedy": "do",
        "errors": wrong,
    }


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "bad_request", errors.BadRequest),
        (401, "unauthorized", errors.Unauthorized),
        (403, "forbidden", errors.Forbidden),
        (404, "not_found", errors.NotFound),
        (409, "conflict", errors.Conflict),
        (409, "idempotency_in_progress", errors.RequestInProgress),
        (413, "body_too_large", errors.PayloadTooLarge),
        (422, "invalid", errors.Unprocessable),
        (422, "recipe_invalid", errors.RecipeRefused),
        (429, "rate_limited", errors.TooManyRequests),
        (500, "internal", errors.ServerError),
        (503, "unavailable", errors.ServerError),
        (418, "teapot", errors.APIError),
    ],
)
def test_a_problem_becomes_the_exception_of_its_code_and_status(status: int, code: str, kind: type) -> None:
    error = error_of(_response(status, _problem(status, code)))
    assert type(error) is kind
    assert (str(error), error.remedy, error.field, error.code) == ("what", "do", "/chain/0", code)
    assert error.errors[0].reason == "because"


def test_an_answer_that_is_no_problem_document_is_an_error_too() -> None:
    error = error_of(_response(502, b"<html>bad gateway</html>"))
    assert isinstance(error, errors.ServerError)
    assert (error.status, error.code) == (502, "http_502")


def test_a_success_that_the_api_never_gives_is_a_bad_response() -> None:
    for body in (b"<html>", b'{"id": 1}'):
        with pytest.raises(errors.BadResponse, match="something else than the API promises"):
            conclude(jobs.get_job("job_1"), _response(200, body))


def test_a_redirect_is_not_followed_and_not_a_success() -> None:
    with pytest.raises(errors.APIError, match="HTTP 302"):
        conclude(jobs.get_job("job_1"), _response(302, b"", location="http://127.0.0.1:1/"))


def test_retry_after_is_read_as_a_number_and_as_a_date() -> None:
    assert retry_after({"retry-after": "7"}) == 7
    assert retry_after({"retry-after": formatdate(time() + 30, usegmt=True)}) == pytest.approx(30, abs=2)
    assert retry_after({"retry-after": formatdate(time() - 30, usegmt=True)}) == 0
    assert retry_after({"retry-after": "soon"}) is None
    assert retry_after({}) is None


def test_an_identifier_never_becomes_another_address() -> None:
    assert jobs.get_job("a/../b?c").path == "/v1/jobs/a%2F..%2Fb%3Fc"
    for nothing in ("", ".", ".."):
        with pytest.raises(ValueError, match="not an identifier"):
            jobs.get_job(nothing)


def test_every_post_carries_a_new_idempotency_key_unless_one_is_given() -> None:
    calls = [
        jobs.create_job(RECIPE, None),
        jobs.create_job(RECIPE, None),
        jobs.change_job("job_1", "cancel"),
    ]
    keys = {call.headers["Idempotency-Key"] for call in (*calls, webhooks.create_webhook_endpoint("https://x", None))}
    assert len(keys) == 4
    assert jobs.create_job(RECIPE, "mine").headers["Idempotency-Key"] == "mine"


def test_a_recipe_goes_filled_in_and_a_mapping_as_it_is() -> None:
    assert jobs.create_job({"future": 1}, None).body == {"future": 1}
    assert jobs.create_job(recipe_from(RECIPE), None).body["seed"] == 0
    with pytest.raises(TypeError, match="create_from_file"):
        jobs.create_job("recipe.yaml", None)  # type: ignore[arg-type]


def test_lists_ask_for_the_next_page_when_it_is_needed() -> None:
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(dict(request.url.params.multi_items()))
        after = request.url.params.get("after")
        document = (
            page(job_document(id="job_2"), has_more=True, last_id="job_2") if after is None else page(job_document())
        )
        return httpx.Response(200, json=document)

    with Client("http://127.0.0.1", "lk_x", transport=httpx.MockTransport(answer)) as client:
        listed = client.jobs.list(status=["queued"])
        assert next(listed).id == "job_2"
        assert len(asked) == 1
        assert [job.id for job in listed] == ["job_1"]
    assert asked == [{"status": "queued", "limit": "20"}, {"status": "queued", "limit": "20", "after": "job_2"}]


def test_the_environment_names_the_service_and_arguments_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATHE_URL", "https://lathe.example/base")
    monkeypatch.setenv("LATHE_API_KEY", " lk_env\n")
    found = connection(None, None, 30)
    assert str(found["base_url"]) == "https://lathe.example/base"
    assert found["headers"]["Authorization"] == "Bearer lk_env"
    assert found["trust_env"] is True
    assert found["follow_redirects"] is False
    mine = connection("http://127.0.0.1:1", "lk_arg", 30)
    assert mine["headers"]["Authorization"] == "Bearer lk_arg"
    assert mine["trust_env"] is False


def test_an_unusable_address_or_key_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("ftp://x", "nonsense", "http://", "http://[::1"):
        with pytest.raises(errors.LatheError, match="address"):
            Client(address)
    with pytest.raises(errors.LatheError, match="API key") as raised:
        Client("http://127.0.0.1", "lk_\nsecret")
    assert "secret" not in str(raised.value)
