"""FastAPI, for uvicorn: a small object by its number."""

from __future__ import annotations

from fastapi import FastAPI

app = FastAPI()


@app.get("/items/{number}")
async def item(number: int) -> dict[str, int | str]:
    return {"id": number, "name": f"item {number}"}
