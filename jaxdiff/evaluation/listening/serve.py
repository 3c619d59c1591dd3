"""How people take a listening test: a small server with one page, made for listeners who are not all friendly.

    GET  /                            the page and its files, from a fixed table
    GET  /test                        its title and its number of screens
    GET  /sounds/NAME.wav             a sound, from a fixed table of blind names
    PUT  /sessions/SESSION            begin, {"listener": pseudonym}; SESSION is 32 random hexadecimal digits
    GET  /sessions/SESSION            texts, the pages in the session's order and what was answered already
    POST /sessions/SESSION/answers    {"page", "answers": {sound: {"value", "seconds", "change"}}}, at every change
    POST /sessions/SESSION/pages      the same and {"seconds", "heard": [sounds]}, when a page is left
    POST /sessions/SESSION/finish     {"choices": {question: choice}}; the answer holds the completion code
    GET  /export.csv                  the ratings in webMUSHRA's form; on this machine only

Whatever is sent twice has the effect of once. On the loopback address requests must be addressed to this machine by its
own name, so that no other web site can send them; elsewhere every request but those for the page's files needs the
token. Bodies are small, requests of a client limited, and everything that is refused is refused in one sentence.
"""

import asyncio
import contextlib
import ipaddress
import json
import re
import secrets
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from .panel import webmushra_csv
from .plan import Page, load_test
from .store import DATABASE, Answer, Closed, Full, Session, Store

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

PAGE = Path(__file__).parent / "page"
_PAGE_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/player.js": ("player.js", "text/javascript; charset=utf-8"),
    "/waveform.js": ("waveform.js", "text/javascript; charset=utf-8"),
    "/saving.js": ("saving.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src "
    "'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}
LARGEST_BODY = 16_384  # bytes
_SLOWEST_BODY = 10.0  # seconds
_BURST, _PER_SECOND = 300, 30  # requests of a client: at once, and again each second
_NEW_BURST, _NEW_PER_SECOND = 50, 0.2  # sessions that it begins
_MOST_CLIENTS = 4096  # whose requests are counted
_LONGEST = 86_400.0  # seconds that an answer may have taken
_LISTENER = re.compile(r"\w[\w .-]{0,39}")
_SESSION = re.compile(r"[0-9a-f]{32}")


class Refused(Exception):
    """A request that is refused, with its status and a sentence for the listener."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status, self.message = status, message


class Limit:
    """How much each client may ask for: `burst` at once, and `per_second` more with time."""

    def __init__(self, burst: float, per_second: float, clock: Callable[[], float] = time.monotonic):
        self._burst, self._per_second, self._clock = burst, per_second, clock
        self._clients: OrderedDict[str, tuple[float, float]] = OrderedDict()  # what is left, and when it was

    def wait(self, client: str) -> float:
        """The seconds that a client has to wait; 0 takes one request off its account."""
        now = self._clock()
        left, then = self._clients.pop(client, (self._burst, now))
        left = min(self._burst, left + (now - then) * self._per_second)
        allowed = left >= 1
        self._clients[client] = (left - 1 if allowed else left, now)
        if len(self._clients) > _MOST_CLIENTS:
            self._clients.popitem(last=False)
        return 0.0 if allowed else (1 - left) / self._per_second


def make_app(
    folder: Path, *, token: str | None = None, on_finished: Callable[[int], None] = lambda finished: None
) -> "Starlette":
    """The web application of a made test.

    Without a token it answers only requests for this machine. `on_finished` is called with the number of finished
    sessions whenever one is finished. Raises DesignError where the folder holds no test.
    """
    from starlette.applications import Starlette
    from starlette.routing import Route

    site = _Site(folder, token, on_finished)
    routes = [
        *(Route(path, site.page_file, methods=["GET"]) for path in _PAGE_FILES),
        Route("/test", site.about, methods=["GET"]),
        Route("/sounds/{name}.wav", site.sound, methods=["GET"]),
        Route("/sessions/{session}", site.begin, methods=["PUT"]),
        Route("/sessions/{session}", site.tell, methods=["GET"]),
        Route("/sessions/{session}/answers", site.answer, methods=["POST"]),
        Route("/sessions/{session}/pages", site.leave, methods=["POST"]),
        Route("/sessions/{session}/finish", site.finish, methods=["POST"]),
        Route("/export.csv", site.export, methods=["GET"]),
    ]
    app = Starlette(
        routes=routes, lifespan=site.open, exception_handlers={Refused: _refusal, 404: _refusal, 405: _refusal}
    )
    app.add_middleware(_Guard, site=site)
    return app


async def _refusal(request: "Request", error: Exception) -> "Response":
    from starlette.responses import JSONResponse

    status = getattr(error, "status", None) or getattr(error, "status_code", 400)
    message = getattr(error, "message", "there is nothing here")
    return JSONResponse({"error": message}, status)


class _Guard:
    """The checks before any request is looked at: address, token and limits; and the headers of every answer."""

    def __init__(self, app: Any, site: "_Site"):
        self._app, self._site = app, site

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        from starlette.requests import Request

        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                there = {name.lower() for name, _ in message["headers"]}
                added = [
                    (k.lower().encode(), v.encode()) for k, v in _HEADERS.items() if k.lower().encode() not in there
                ]
                message["headers"] = [*message["headers"], *added]
            await send(message)

        request = Request(scope, receive)
        try:
            self._site.check(request)
        except Refused as refused:
            answer = await _refusal(request, refused)
            answer.headers["connection"] = "close"  # a body that comes is not read
            await answer(scope, receive, guarded)
            return
        await self._app(scope, receive, guarded)


class _Site:
    """The handlers of one test's requests. SQLite's work takes a millisecond and is done in the server's one thread."""

    def __init__(self, folder: Path, token: str | None, on_finished: Callable[[int], None]):
        self._folder, self._token, self._on_finished = folder, token, on_finished
        self._test = load_test(folder)
        self._files = {path: ((PAGE / name).read_bytes(), kind) for path, (name, kind) in _PAGE_FILES.items()}
        self._requests, self._beginnings = Limit(_BURST, _PER_SECOND), Limit(_NEW_BURST, _NEW_PER_SECOND)
        self._store: Store

    @asynccontextmanager
    async def open(self, app: "Starlette"):
        """Keep the database open while the application runs."""
        self._store = Store(self._folder / DATABASE)
        try:
            yield
        finally:
            self._store.close()

    def check(self, request: "Request") -> None:
        """Raise Refused for a request that is not to be looked at."""
        if wait := self._requests.wait(_client(request)):
            raise Refused(429, f"too many requests at once; try again in {wait:.0f} seconds")
        if self._token is None:
            host, origin = request.headers.get("host", ""), request.headers.get("origin")
            if not _names_this_machine(host):
                raise Refused(403, "this test is for listeners at this machine; open it as localhost")
            if origin is not None and origin.lower() != f"http://{host.lower()}":
                raise Refused(403, "the request comes from another web site; open the page by its own address")
        elif request.url.path not in _PAGE_FILES:
            given = request.headers.get("authorization", "").encode("utf-8", "replace")
            if not secrets.compare_digest(given, f"Bearer {self._token}".encode()):
                raise Refused(401, "the address lacks the right token; open the page by the whole address that you got")

    async def page_file(self, request: "Request") -> "Response":
        from starlette.responses import Response

        content, kind = self._files[request.url.path]
        return Response(content, media_type=kind, headers={"Cache-Control": "no-cache"})

    async def about(self, request: "Request") -> "Response":
        from starlette.responses import JSONResponse

        return JSONResponse({"title": self._test.public["title"], "screens": len(self._test.key["pages"])})

    async def sound(self, request: "Request") -> "Response":
        from starlette.concurrency import run_in_threadpool
        from starlette.responses import Response

        path = self._test.sounds.get(request.path_params["name"])
        if path is None:
            raise Refused(404, "there is no such sound")
        content = await run_in_threadpool(path.read_bytes)
        return Response(content, media_type="audio/wav", headers={"Cache-Control": "private, max-age=86400"})

    async def begin(self, request: "Request") -> "Response":
        session = request.path_params["session"]
        if not _SESSION.fullmatch(session):
            raise Refused(422, "a session's name has 32 hexadecimal digits")
        listener = (await _body(request)).get("listener")
        if not isinstance(listener, str) or not _LISTENER.fullmatch(listener.strip()):
            raise Refused(422, "a pseudonym has 1 to 40 letters, digits, spaces, dots and dashes; begin with a letter")
        if self._store.session(session) is None:
            if wait := self._beginnings.wait(_client(request)):
                raise Refused(429, f"too many sessions begin here; try again in {wait:.0f} seconds")
            try:
                self._store.begin(session, listener.strip())
            except Full:
                raise Refused(503, "this test has all the sessions that it can have; thank you") from None
        return await self.tell(request)

    async def tell(self, request: "Request") -> "Response":
        from starlette.responses import JSONResponse

        session, plan = self._session(request)
        texts = {
            key: self._test.public[key] for key in ("kind", "title", "instructions", "question", "scale", "questions")
        }
        pages = [
            {**page._asdict(), "left": page.page in session.left, "answers": _answers(session, page)} for page in plan
        ]
        texts["traps"] = self._test.public.get("traps", "")  # which tests have that were made since there are traps
        code = self._test.code(session.session) if session.finished else None
        return JSONResponse({**texts, "listener": session.listener, "pages": pages, "code": code})

    async def answer(self, request: "Request") -> "Response":
        session, plan = self._session(request)
        body = await _body(request)
        page = _page(plan, body)
        try:
            self._store.answer(session.session, page.page, self._read(page, body))
        except Closed:
            raise Refused(409, "this page was left already and its ratings stay") from None
        return _done()

    async def leave(self, request: "Request") -> "Response":
        session, plan = self._session(request)
        body = await _body(request)
        page = _page(plan, body)
        earlier = plan[: plan.index(page)]
        if any(before.page not in session.left for before in earlier):
            raise Refused(409, "an earlier page is still to be rated")
        answers = self._read(page, body)
        unrated = [s for s in page.rated if s not in answers and (page.page, s) not in session.answers]
        heard = body.get("heard")
        if not isinstance(heard, list) or not page.heard <= {sound for sound in heard if isinstance(sound, str)}:
            raise Refused(422, "every sound of the page must be heard before it is left")
        if unrated:
            raise Refused(422, "every sound of the page must be rated before it is left")
        self._store.leave(session.session, page.page, answers, _seconds(body))
        return _done()

    async def finish(self, request: "Request") -> "Response":
        from starlette.responses import JSONResponse

        session, plan = self._session(request)
        body = await _body(request)
        if any(page.page not in session.left for page in plan):
            raise Refused(409, "a page is still to be rated")
        choices, questions = body.get("choices"), dict(self._test.public["questions"])
        if not isinstance(choices, Mapping) or set(choices) != set(questions):
            raise Refused(422, "every question must have an answer")
        if any(choice not in questions[question] for question, choice in choices.items()):
            raise Refused(422, "an answer is none of the choices")
        if self._store.finish(session.session, choices):
            self._on_finished(self._store.finished())
        return JSONResponse({"code": self._test.code(session.session)})

    async def export(self, request: "Request") -> "Response":
        from starlette.responses import Response

        forwarded = any(name in request.headers for name in ("forwarded", "x-forwarded-for", "x-real-ip", "via"))
        if self._token is not None or forwarded or not _is_loopback(_client(request)):
            raise Refused(404, "there is nothing here")
        rows = self._test.ratings(self._store.sessions(finished_only=True))
        text = webmushra_csv(rows, self._test.public["title"])
        headers = {"Content-Disposition": 'attachment; filename="ratings.csv"'}
        return Response(text, media_type="text/csv; charset=utf-8", headers=headers)

    def _session(self, request: "Request") -> tuple[Session, list[Page]]:
        """The session that a request names, with its pages."""
        name = request.path_params["session"]
        session = self._store.session(name) if _SESSION.fullmatch(name) else None
        if session is None:
            raise Refused(404, "there is no such session; begin again")
        return session, self._test.plan(session.number)

    def _read(self, page: Page, body: Mapping[str, Any]) -> dict[str, Answer]:
        """The answers of a body; raises Refused where a sound is none of the page's or a value none of the scale's."""
        answers = body.get("answers")
        if not isinstance(answers, Mapping) or not set(answers) <= set(page.rated):
            raise Refused(422, "the answers must be those to sounds of the page")
        read = {}
        for sound, answer in answers.items():
            fields = answer if isinstance(answer, Mapping) else {}
            value, change = fields.get("value"), fields.get("change")
            if type(value) is not int or value not in self._test.values:
                raise Refused(422, "a rating is outside its scale")
            if type(change) is not int or not 0 <= change < 2**53:
                raise Refused(422, "a change has no number")
            read[sound] = Answer(value, _seconds(fields), change)
        return read


def _answers(session: Session, page: Page) -> dict[str, Any]:
    found = {sound: session.answers.get((page.page, sound)) for sound in page.rated}
    return {sound: answer._asdict() for sound, answer in found.items() if answer is not None}


def _page(plan: list[Page], body: Mapping[str, Any]) -> Page:
    page = next((page for page in plan if page.page == body.get("page")), None)
    if page is None:
        raise Refused(422, "there is no such page")
    return page


def _seconds(body: Mapping[str, Any]) -> float:
    seconds = body.get("seconds")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= _LONGEST:
        raise Refused(422, "the seconds must be a number from 0 to a day")
    return float(seconds)


def _done() -> "Response":
    from starlette.responses import JSONResponse

    return JSONResponse({"saved": True})


async def _body(request: "Request") -> Mapping[str, Any]:
    """The JSON object of a request; raises Refused where it is too large, too slow or something else."""
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise Refused(415, "the body must be JSON")
    too_large = Refused(413, f"the body is larger than {LARGEST_BODY} bytes")
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length[:12]) > LARGEST_BODY:
        raise too_large
    content = b""
    try:
        async with asyncio.timeout(_SLOWEST_BODY):
            async for part in request.stream():
                content += part
                if len(content) > LARGEST_BODY:
                    raise too_large
    except TimeoutError:
        raise Refused(408, "the body came too slowly") from None
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        raise Refused(422, "the body is no JSON") from None
    if not isinstance(body, dict):
        raise Refused(422, "the body must be a JSON object")
    return body


def _client(request: "Request") -> str:
    """Whose requests are counted together: an address, or for IPv6 the network of one subscriber."""
    host = request.client.host if request.client else ""
    try:
        address = ipaddress.ip_address(host.split("%")[0])
    except ValueError:
        return host
    if address.version == 6 and not address.is_loopback:
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _names_this_machine(host: str) -> bool:
    """Whether the Host header of a request is a loopback address or localhost, with any port."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    return _is_loopback(name)


# Running ------------------------------------------------------------------------------------------------------------


def make_server(app: "Starlette") -> "uvicorn.Server":
    """The server of the application: it keeps no log of addresses, and believes no header about whom it talks to."""
    import uvicorn

    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="on",
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=1000,
        h11_max_incomplete_event_size=16_384,
        timeout_graceful_shutdown=5,
    )
    return uvicorn.Server(config)


def serve(
    folder: Path,
    host: str = "127.0.0.1",
    port: int = 8008,
    *,
    token: str | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Serve a made test until Ctrl-C, and say its address and the number of finished sessions.

    Anywhere but on the loopback address there is a token: the one given or a new one. Raises ValueError where starlette
    or uvicorn is missing, DesignError where the folder holds no test and OSError where the address is taken.
    """
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"listen serve needs starlette and uvicorn, of which {error.name} is missing; pip install 'jaxdiff[listen]'"
        ) from None
    if token is not None and not re.fullmatch(r"[A-Za-z0-9_-]{16,200}", token):
        raise ValueError("--token: expected 16 to 200 letters, digits, - and _; leave it out to get a random one")
    if not _is_loopback(host) and token is None:
        token = secrets.token_urlsafe(24)

    def tell(finished: int) -> None:
        say(f"{finished} finished session{'' if finished == 1 else 's'}")

    app = make_app(folder, token=token, on_finished=tell)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror}; give another --port or --host", f"{host}:{port}") from None
        name = socket.gethostname() if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
        address = f"http://{name}:{listening.getsockname()[1]}/"
        say(f"{folder}: listen at {address}{'' if token is None else f'#token={token}'}")
        store = Store(folder / DATABASE)
        tell(store.finished())
        store.close()
        with contextlib.suppress(KeyboardInterrupt):  # raised or not, as the Ctrl-C meets asyncio
            make_server(app).run(sockets=[listening])
        say("stopped; every rating is saved")
