"""redis-py: PREFIX PROTOCOL, and JSON of how to connect. Prints how often it sent what."""

from __future__ import annotations

import json
import sys
from collections import Counter

import redis


def main() -> None:
    prefix, protocol, where = sys.argv[1:]
    client = redis.Redis(**json.loads(where), protocol=int(protocol))
    sent: Counter[str] = Counter()

    def send(*words: object) -> object:
        sent[str(words[0])] += 1
        try:
            return client.execute_command(*words)
        except redis.ResponseError as error:
            return error

    assert send("PING")
    for n in range(50):
        assert send("SET", f"{prefix}:{n}", f"value {n}")
        assert send("GET", f"{prefix}:{n}") == f"value {n}".encode()
    assert send("GET", f"{prefix}:none") is None
    large = b"large" * 200_000
    assert send("SET", f"{prefix}:large", large)
    assert send("GET", f"{prefix}:large") == large
    assert send("HSET", f"{prefix}:hash", "a", 1, "b", 2) == 2
    assert len(send("HGETALL", f"{prefix}:hash")) == 2  # type: ignore[arg-type]
    assert send("RPUSH", f"{prefix}:list", *range(1000)) == 1000
    assert len(send("LRANGE", f"{prefix}:list", 0, -1)) == 1000  # type: ignore[arg-type]
    assert isinstance(send("LPUSH", f"{prefix}:0", 1), redis.ResponseError)
    assert send("EVAL", "return {1, {2, {3}}}", 0)
    # MULTI and EXEC around the commands, all sent at once.
    with client.pipeline(transaction=True) as pipe:
        for _ in range(10):
            pipe.execute_command("INCR", f"{prefix}:count")
        assert pipe.execute()[-1] == 10
    sent.update({"MULTI": 1, "INCR": 10, "EXEC": 1})
    with client.pipeline(transaction=False) as pipe:
        for n in range(300):
            pipe.get(f"{prefix}:{n % 60}")
        assert sum(value is not None for value in pipe.execute()) == 250
    sent["GET"] += 300
    client.close()
    print(json.dumps(sent))


if __name__ == "__main__":
    main()
