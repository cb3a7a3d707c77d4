"""Who may ask for what: the guard in front of every request, uploads, and the files of a session."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from fastapi import Request
from fastapi.responses import FileResponse, JSONResponse, Response
from nicegui import app
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from muti_control.studio import texts
from muti_control.studio.sessions import Sessions, UploadError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
COOKIE = "iccr_studio_token"
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; frame-ancestors 'none'; base-uri 'self'"
)
HEADERS = {
    b"content-security-policy": POLICY.encode(),
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
}


class Guard:
    """In front of all requests, those of web sockets too: the token, the address that was asked, and other sites.

    Args:
        token: None: whoever reaches the port is this machine's user; then only its own names are answered, so that no
            site can call itself that.
    """

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self.app, self.token = app, token
        self.pass_ = None if token is None else _digest(token + secrets.token_hex(16))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        refusal = self._refusal(scope, headers)
        if refusal is None:

            async def with_headers(message: Message) -> None:
                if message["type"] == "http.response.start":
                    own = {key.lower() for key, _ in message["headers"]}
                    more = [(key, value) for key, value in HEADERS.items() if key not in own]
                    message = {**message, "headers": [*message["headers"], *more]}
                await send(message)

            return await self.app(scope, receive, with_headers)
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008})
        await refusal(scope, receive, send)

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> Response | None:
        """Return the answer to a request that is not let through."""
        host = headers.get("host", "")
        name = urlsplit(f"//{host}").hostname or ""
        origin = headers.get("origin")
        if origin not in (None, "null") and urlsplit(origin).netloc != host:
            return Response(texts.OTHER_SITE, 403)
        if self.token is None or self.pass_ is None:
            return None if name in LOOPBACK else Response(texts.OTHER_NAME, 403)
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            cookie = None
        if cookie is not None and hmac.compare_digest(cookie.value, self.pass_):
            return None
        said = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if scope["path"] == "/" and hmac.compare_digest(said.encode(), self.token.encode()):
            response = Response(status_code=303, headers={"location": "/"})
            response.set_cookie(COOKIE, self.pass_, httponly=True, samesite="lax")
            return response
        return Response(texts.TOKEN_MISSING, 401)


def add_routes(sessions: Sessions) -> None:
    """Add the routes of uploads and files. Each answers for the session of the caller's cookie alone."""

    @app.put("/studio/upload/{kind}")
    async def upload(kind: str, request: Request) -> Response:
        query = request.query_params
        try:
            index, count = int(query.get("index", "0")), int(query.get("count", "1"))
            size = int(request.headers.get("content-length", "0"))
        except ValueError:
            return _error(400, texts.UPLOAD_WRONG)
        try:
            await sessions.upload(
                identity_of(request.session),
                kind,
                query.get("batch", ""),
                index,
                count,
                query.get("name", ""),
                size,
                request.stream(),
            )
        except UploadError as error:
            return _error(error.status, str(error))
        return JSONResponse({})

    @app.get("/studio/file/{slot}")
    def file(slot: str, request: Request) -> Response:
        state = sessions.states.get(identity_of(request.session))
        offer = None if state is None else state.files.get(slot)
        if offer is None:
            return _error(404, texts.NO_FILE)
        headers = {"cache-control": "private, max-age=3600"}
        if offer.media == "text/html":  # it may have come with a case of somebody else
            headers["content-security-policy"] = (
                "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'"
            )
        if offer.download is not None:
            headers["content-disposition"] = f"attachment; filename*=UTF-8''{quote(offer.download, safe='')}"
        if isinstance(offer.content, bytes):
            return Response(offer.content, media_type=offer.media, headers=headers)
        if not offer.content.is_file():
            return _error(404, texts.NO_FILE)
        return FileResponse(offer.content, media_type=offer.media, headers=headers)


def identity_of(session: Any) -> str:
    """Return the identity in a signed cookie."""
    return str(session.get("id", ""))


def _error(status: int, message: str) -> Response:
    return JSONResponse({"message": message}, status)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
