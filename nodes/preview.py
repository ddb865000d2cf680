"""The route by which the canvas switches moving previews off and on for itself."""

from __future__ import annotations

from ..ultragen_core.host import moving_preview
from .questions import add_question, mapping


def choose(asked: object) -> dict:
    """Send a client loops while it samples, or ComfyUI's still pictures alone.

    asked: {"client_id": id of a websocket, "moving": bool}. Raises ValueError for anything else.
    """
    asked = mapping("The request", asked)
    client, moving = asked.get("client_id"), asked.get("moving")
    if not isinstance(client, str) or not isinstance(moving, bool):
        raise ValueError(f"Expected client_id as text and moving as true or false, got {client!r} and {moving!r}.")
    moving_preview.decline(client, declined=not moving)
    return {"moving": moving}


def add_route() -> None:
    """Add POST /ultragen/preview, for the setting on the canvas."""
    add_question("/ultragen/preview", choose)
