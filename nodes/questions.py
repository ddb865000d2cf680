"""Questions of the canvas: they wait for one another, and never for ComfyUI's own requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from aiohttp import web
from server import PromptServer

from ..ultragen_core.printable import encodable

_WORKER = ThreadPoolExecutor(1, thread_name_prefix="ultragen-canvas")


def add_question(path: str, answer: Callable[[object], dict]) -> None:
    """Add a POST route that gives `answer` the json of the request. Its ValueErrors and OSErrors are sentences."""

    @PromptServer.instance.routes.post(path)
    async def route(request: web.Request) -> web.Response:
        try:
            asked = await request.json()
            found = await asyncio.get_running_loop().run_in_executor(_WORKER, answer, asked)
        except (ValueError, OSError, RecursionError) as error:
            return web.json_response({"error": encodable(str(error))}, status=400)
        return web.json_response(found)


def mapping(name: str, value: object) -> Mapping:
    """Return the value. Raises ValueError where it is no mapping."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must be names with values, got a value of type {type(value).__name__}.")
    return value
