"""Questions that the canvas asks the server. One thread answers them, so that ComfyUI's own requests never wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from aiohttp import web

from ..ultragen_core.host.server import prompt_server
from ..ultragen_core.printable import encodable

_WORKER = ThreadPoolExecutor(1, thread_name_prefix="ultragen-canvas")


def add_question(path: str, answer: Callable[[object], dict]) -> None:
    """Add a POST route to ComfyUI's server, if one runs.

    answer: takes the request's JSON. Its ValueErrors and OSErrors are shown to the user.
    """

    async def route(request: web.Request) -> web.Response:
        try:
            asked = await request.json()
            found = await asyncio.get_running_loop().run_in_executor(_WORKER, answer, asked)
        except (ValueError, OSError, RecursionError) as error:
            return web.json_response({"error": encodable(str(error))}, status=400)
        return web.json_response(found)

    if server := prompt_server():
        server.routes.post(path)(route)


def mapping(name: str, value: object) -> Mapping:
    """Return `value`. Raises ValueError unless it is a mapping."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must be a JSON object, got a value of type {type(value).__name__}.")
    return value
