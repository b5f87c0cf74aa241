"""Messages to a webhook endpoint: a test, one sent again, a period sent again."""

from fastapi import APIRouter, Response
from sqlalchemy.orm import Session

from api.audit import TrailDep
from api.dashboard.endpoint_settings import attempt
from api.dashboard.pages import PageRoute
from api.dashboard.posted import PostedDep
from api.dashboard.session import OURS, ViewerDep
from api.deps import SessionsDep, SettingsDep
from api.routes import webhook_messages
from lathe.webhook_models import WebhookReplay, WebhookReplayed

router = APIRouter(prefix="/settings/webhooks/{endpoint_id}", route_class=PageRoute, include_in_schema=False)


@router.post("/test", dependencies=[OURS])
def send_test(
    sessions: SessionsDep, settings: SettingsDep, viewer: ViewerDep, trail: TrailDep, endpoint_id: str
) -> Response:
    """Try the receiver out."""

    def send(session: Session) -> str:
        webhook_messages.send_test_webhook(session, settings, viewer, trail, endpoint_id)
        return "tested"

    return attempt(sessions, viewer, endpoint_id, send)


@router.post("/redeliver", dependencies=[OURS])
def redeliver_message(
    sessions: SessionsDep,
    settings: SettingsDep,
    viewer: ViewerDep,
    trail: TrailDep,
    posted: PostedDep,
    endpoint_id: str,
) -> Response:
    """Send one message again, now."""

    def redeliver(session: Session) -> str:
        webhook_messages.redeliver_webhook_message(session, settings, viewer, trail, posted.one("message"))
        return "redelivered"

    return attempt(sessions, viewer, endpoint_id, redeliver)


@router.post("/replay", dependencies=[OURS])
def replay_messages(
    sessions: SessionsDep,
    settings: SettingsDep,
    viewer: ViewerDep,
    trail: TrailDep,
    posted: PostedDep,
    endpoint_id: str,
) -> Response:
    """Send the messages of a period again. A browser's time has no zone: here it is in UTC."""
    since, until = (f"{text}Z" if text else None for text in (posted.one("since"), posted.one("until")))
    asked = {"since": since, "until": until, "statuses": posted.all("status")}

    def replay(session: Session) -> str:
        wanted = WebhookReplay.model_validate(asked)
        answer = webhook_messages.replay_webhook_messages(session, settings, viewer, trail, endpoint_id, wanted)
        return "replayed" if WebhookReplayed.model_validate_json(bytes(answer.body)).messages else "nothing"

    return attempt(sessions, viewer, endpoint_id, replay)
