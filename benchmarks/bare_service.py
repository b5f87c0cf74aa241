"""The floor that the service is measured against: a FastAPI application that does nothing but one INSERT."""

import os
from typing import Any

import uvicorn
from fastapi import Body, FastAPI
from psycopg.types.json import Jsonb
from psycopg_pool import ConnectionPool

app = FastAPI()
pool = ConnectionPool(os.environ["LATHE_DATABASE_URL"], min_size=10, max_size=20, open=False)


@app.post("/", status_code=201)
def insert(document: dict[str, Any] = Body()) -> dict[str, int]:  # noqa: B008  FastAPI's form
    """Store the body and answer with its number."""
    with pool.connection() as connection:
        row = connection.execute("INSERT INTO bare (document) VALUES (%s) RETURNING id", (Jsonb(document),)).fetchone()
    return {"id": row[0] if row else 0}


def main() -> None:
    """Serve on LATHE_BENCHMARK_BARE_PORT."""
    pool.open(wait=True)
    with pool.connection() as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS bare (id bigint GENERATED ALWAYS AS IDENTITY, document jsonb)")
    uvicorn.run(app, port=int(os.environ["LATHE_BENCHMARK_BARE_PORT"]), access_log=False)


if __name__ == "__main__":
    main()
