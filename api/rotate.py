"""`python -m api.rotate`: seal every stored secret again, with LATHE_SECRET_KEY, after the key was changed.

May run beside the service, be stopped and be started again: each value is replaced for itself, and only if nobody else
changed it meanwhile. Status 0 says that everything stored opens with LATHE_SECRET_KEY alone.
"""

import sys
from collections import Counter

from api.errors import VaultError
from api.settings import Settings
from api.store import sealed
from api.store.sealed import Kind
from api.store.session import Sessions, make_engine, make_sessions
from api.vault import Vault


def main() -> int:
    """Say of each kind of secret how many were sealed again; 1 when a value opens with no key or changed meanwhile."""
    settings = Settings()
    engine = make_engine(settings.database_url, pool_size=1)
    try:
        done = [_tell(kind, rotate(make_sessions(engine), settings.vault, kind)) for kind in sealed.KINDS]
    finally:
        engine.dispose()
    return 0 if all(done) else 1


def rotate(sessions: Sessions, vault: Vault, kind: Kind) -> Counter[str]:
    """Seal all of one kind again: how many `sealed`, `kept` as they were, `changed` meanwhile and `lost`."""
    return Counter(_again(sessions, vault, kind, key, value) for key, value in sealed.walk(sessions, kind))


def _again(sessions: Sessions, vault: Vault, kind: Kind, key: tuple[str, ...], value: str) -> str:
    place = kind.place(*key)
    try:
        anew = vault.reseal(value, place)
    except VaultError:
        sys.stderr.write(f"{kind.name}: no key opens the one of {place!a}\n")
        return "lost"
    if anew is None:
        return "kept"
    with sessions.begin() as session:
        return "sealed" if sealed.replace(session, kind, key, value, anew) else "changed"


def _tell(kind: Kind, count: Counter[str]) -> bool:
    """Print one line; whether the new key alone opens all of them."""
    sys.stdout.write(f"{kind.name}: {count['sealed']} sealed again, {count['kept']} already were")
    if count["changed"]:
        sys.stdout.write(f", {count['changed']} changed meanwhile (run this again)")
    if count["lost"]:
        sys.stdout.write(f", {count['lost']} open with no key")
    sys.stdout.write("\n")
    return not count["changed"] and not count["lost"]


if __name__ == "__main__":
    sys.exit(main())
