"""The embedded Valkey: what survives what, and who may come in."""

from pathlib import Path

import pytest
import redis

from lathe.local import valkey
from lathe.local.valkey import Valkey

pytestmark = pytest.mark.integration


def test_messages_outlive_a_clean_stop(tmp_path: Path) -> None:
    with valkey.running(tmp_path) as url, redis.Redis.from_url(url) as client:
        client.lpush("queue", "a", "b")
    with valkey.running(tmp_path) as url, redis.Redis.from_url(url) as client:
        assert client.llen("queue") == 2


def test_a_killed_server_is_revived_under_the_same_url(tmp_path: Path) -> None:
    ours = Valkey(tmp_path)
    with ours as url:
        with redis.Redis.from_url(url) as client:
            client.lpush("queue", "a")
            client.execute_command("WAITAOF", 1, 0, 5000)  # appendfsync everysec: a second may be lost, not more
        assert ours.process is not None
        ours.process.kill()
        ours.process.wait()
        assert ours.revive()
        with redis.Redis.from_url(url) as client:
            assert client.llen("queue") == 1


def test_it_never_forgets_a_message_for_want_of_memory(tmp_path: Path) -> None:
    with valkey.running(tmp_path) as url, redis.Redis.from_url(url, decode_responses=True) as client:
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert client.config_get("append*")["appendfsync"] == "everysec"
        assert client.config_get("appendonly") == {"appendonly": "yes"}


def test_nobody_comes_in_without_the_password(tmp_path: Path) -> None:
    ours = Valkey(tmp_path, durable=False)
    with ours as url:
        password = url.partition(":@")[0].removeprefix("redis://:").partition("@")[0]
        with redis.Redis.from_url(url.replace(password, "guess")) as client, pytest.raises(redis.AuthenticationError):
            client.ping()
        assert ours.process is not None
        assert password not in Path(f"/proc/{ours.process.pid}/cmdline").read_text()
        assert (tmp_path / "valkey" / "valkey.conf").stat().st_mode & 0o777 == 0o600
        with redis.Redis.from_url(url, decode_responses=True) as client:
            assert client.config_get("bind") == {"bind": "127.0.0.1"}
