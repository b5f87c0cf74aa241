"""What one application is made of: the same for every request."""

from functools import cached_property

from fastapi import Request

from api.auth import Keyring
from api.estimates import Estimator
from api.files import ArtifactStore, open_store
from api.listener import Listener
from api.monitoring.requests import RequestMetrics
from api.monitoring.service import ServiceMetrics
from api.pace import Pace
from api.rate_limit import RateLimit
from api.settings import Settings
from api.store.session import make_engine, make_sessions
from api.store.statements import Statements

FRESH_seconds = 1.0


class State:
    """The settings, and what is made of them. Nothing is connected yet."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.engine = make_engine(settings.database_url, pool_size=10, fresh_seconds=FRESH_seconds)
        self.sessions = make_sessions(self.engine)
        self.statements = Statements(settings.database_url)
        self.listener = Listener(settings.database_url)
        self.pace = Pace()
        self.keyring = Keyring(self.sessions, self.listener)
        counters = settings.rate_limit_storage.get_secret_value()
        self.rate_limit = RateLimit(settings.rate_limit, counters)
        self.failed_sign_ins = RateLimit(settings.sign_in_rate_limit, counters)
        self.estimator = Estimator(settings, self.sessions)
        self.requests = RequestMetrics()
        self.service = ServiceMetrics(self.sessions)

    @cached_property
    def store(self) -> ArtifactStore:
        """Where the files of finished jobs are."""
        return open_store(self.settings)


def state_of(request: Request) -> State:
    """The state behind a request: a plain call, for the framework takes a while over each dependency."""
    state: State = request.app.state.lathe
    return state
