"""Flask, for gunicorn: a small object by its number."""

from __future__ import annotations

from flask import Flask

app = Flask(__name__)


@app.get("/items/<int:number>")
def item(number: int) -> dict[str, int | str]:
    return {"id": number, "name": f"item {number}"}
