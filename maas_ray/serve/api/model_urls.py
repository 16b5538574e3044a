"""A model's own URL, `/models/NAME`: below it is the same API, with this model and its adapters alone.

HAProxy puts `/v2` before such a path, because `/v2/models/NAME` leads to the model's own replicas if it is `direct`. It
knows no model: the name is passed on in the request's scope.
"""

import re

from maas_ray.serve.api.incoming import Receive, Scope
from maas_ray.serve.api.middleware import App, Send

_OWN_URL = re.compile(r"(?:/v2)?/models/([^/]+)(/v[12](?:/.*)?)", re.DOTALL)


class ModelUrls:
    """Wraps an ASGI application, which finds the name in `scope["model"]`. Empty: the path is nobody's own URL."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            found = _OWN_URL.fullmatch(scope["path"])
            name, path = found.groups() if found else ("", scope["path"])
            scope = {**scope, "path": path, "model": name}
        await self._app(scope, receive, send)
