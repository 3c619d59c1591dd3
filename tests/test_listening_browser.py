"""The listening page in a real browser: a whole session is played, rated, reloaded and finished, and what is played is
the file, sample by sample. Chromium is driven by its DevTools protocol; without Chromium the tests are skipped."""

import base64
import contextlib
import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from jaxdiff.evaluation.listening.design import parse_design
from jaxdiff.evaluation.listening.make import make_test
from jaxdiff.evaluation.listening.panel import screen
from jaxdiff.evaluation.listening.plan import load_test
from jaxdiff.evaluation.listening.store import DATABASE, Store

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
client = pytest.importorskip("websockets.sync.client")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chromium-headless-shell"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")]
SHOTS = os.environ.get("JAXDIFF_SHOTS")  # a folder for screenshots, where they are wanted
DESKTOP, PHONE = (1100, 900), (390, 844)


class Refused(Exception):
    """What the browser answers to a request that it cannot fulfil."""


class Browser:
    """One page of headless Chromium."""

    def __init__(self, folder: Path):
        command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
        command += ["--disable-dev-shm-usage", "--no-first-run", "--mute-audio", f"--user-data-dir={folder}"]
        self._process = subprocess.Popen([*command, "about:blank"], stderr=subprocess.PIPE, text=True)
        lines = self._process.stderr
        assert lines is not None
        address = next(found[1] for line in lines if (found := re.search(r"listening on (ws://\S+)", line)))
        threading.Thread(target=lines.read, daemon=True).start()  # so that it never blocks
        self._open = contextlib.ExitStack()
        self._socket = self._open.enter_context(client.connect(address, max_size=2**26, open_timeout=60))
        self._numbers = itertools.count(1)
        self._attached = None
        self.complaints = []  # what the page's console says of errors
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._attached = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")
        self.size(DESKTOP)

    def send(self, method: str, **parameters):
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        self._socket.send(json.dumps(message | ({"sessionId": self._attached} if self._attached else {})))
        while True:
            answer = json.loads(self._socket.recv(timeout=120))
            if answer.get("method") == "Runtime.exceptionThrown":
                self.complaints.append(answer["params"]["exceptionDetails"])
            if answer.get("method") == "Log.entryAdded" and answer["params"]["entry"]["level"] == "error":
                self.complaints.append(answer["params"]["entry"])
            if answer.get("method") == "Page.javascriptDialogOpening":
                self.complaints.append(answer["params"])
            if answer.get("id") == number:
                if "error" in answer:
                    raise Refused(answer["error"])
                return answer["result"]

    def ask(self, expression: str):
        """The value of a JavaScript expression, of a promise when it is kept."""
        found = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, expression: str, seconds: float = 120.0):
        """Until an expression is true; a page that is being left while it is asked cannot say so yet."""

        def true() -> bool:
            try:
                return bool(self.ask(expression))
            except Refused as error:
                if "navigated" in str(error) or "context" in str(error):
                    return False
                raise

        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, (
                f"{expression} never came true; the page says {self.ask('document.body.innerText')}"
            )
            time.sleep(0.05)

    def size(self, size: tuple[int, int]) -> None:
        phone = size == PHONE
        self.send(
            "Emulation.setDeviceMetricsOverride", width=size[0], height=size[1], deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )  # fmt: skip

    def place(self, selector: str, share: float = 0.5) -> tuple[float, float]:
        """Where an element is on the screen, at a share of its width, after it was scrolled there."""
        box = self.ask(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            " e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect();"
            " return [b.x, b.y, b.width, b.height]; })()"
        )
        return box[0] + share * box[2], box[1] + box[3] / 2

    def click(self, selector: str, share: float = 0.5) -> None:
        x, y = self.place(selector, share)
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def drag(self, selector: str, start: float, end: float) -> None:
        for kind, share in (("mousePressed", start), ("mouseMoved", end), ("mouseReleased", end)):
            x, y = self.place(selector, share)
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str, text: str = "", modifiers: int = 0) -> None:
        code = {"ArrowUp": 38, "ArrowDown": 40, "PageUp": 33, "PageDown": 34, "Enter": 13, " ": 32}.get(key, 0)
        shared = {"key": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **shared)
        self.send("Input.dispatchKeyEvent", type="keyUp", **shared)

    def type(self, text: str) -> None:
        self.send("Input.insertText", text=text)

    def shoot(self, name: str) -> None:
        """A picture of the page in both sizes, where pictures are wanted."""
        if SHOTS is None:
            return
        for kind, size in (("phone", PHONE), ("desktop", DESKTOP)):
            self.size(size)
            time.sleep(0.3)
            picture = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True)
            Path(SHOTS, f"{name}-{kind}.png").write_bytes(base64.b64decode(picture["data"]))

    def close(self) -> None:
        self._open.close()
        self._process.terminate()
        self._process.wait(30)


@pytest.fixture
def browser(tmp_path):
    opened = Browser(tmp_path / "profile")
    yield opened
    opened.close()


def sounds(folder: Path, files: int, seconds: float, rate: int = 16_000) -> dict[str, Path]:
    """Folders of a reference and two systems that add noise to it."""
    rng, t = np.random.default_rng(3), np.arange(round(seconds * rate)) / rate
    folders = {name: folder / name for name in ("clean", "ours", "theirs")}
    for k in range(files):
        y = sum(np.sin(2 * np.pi * 220 * h * (1 + k / 5) * t + h) / h for h in range(1, 15))
        y = 0.1 * y * (0.3 + np.abs(np.sin((2 + k) * t)))
        for noise, inside in zip((0, 0.002, 0.02), folders.values(), strict=True):
            inside.mkdir(exist_ok=True)
            soundfile.write(inside / f"take {k}.wav", y + noise * rng.standard_normal(len(y)), rate)
    return folders


class Served:
    """A made test and its real server, which can go away and come again."""

    def __init__(self, folder: Path):
        self.folder, self.port = folder, 0
        self.come()

    def come(self) -> None:
        from jaxdiff.evaluation.listening.serve import make_app, make_server

        self._socket = socket.create_server(("127.0.0.1", self.port))
        self.port = self._socket.getsockname()[1]
        self._server = make_server(make_app(self.folder))
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)

    def go(self) -> None:
        self._server.should_exit = True
        self._thread.join(30)
        self._socket.close()


@pytest.fixture
def serve(tmp_path):
    """A function that makes a test and serves it."""
    running = []

    def start(seconds: float = 2.0, **options) -> Served:
        folders = sounds(tmp_path, files=2, seconds=seconds)
        tree = {
            "kind": "mushra",
            "reference": str(folders["clean"]),
            "systems": {name: str(folders[name]) for name in ("ours", "theirs")},
            "excerpts": {"count": "1", "seconds": "60"},
            "seed": "5",
            "title": "Which noise is heard",
            "instructions": "Play the reference first, then each sound.\n\nRate how near each comes to the reference.",
            "questions": {"What did you listen with?": ["headphones", "earphones", "loudspeakers"]},
        }
        make_test(parse_design(tree | options), tmp_path / "test")
        running.append(Served(tmp_path / "test"))
        return running[0]

    yield start
    for served in running:
        served.go()


def hear(browser: Browser, selector: str) -> None:
    """Play a sound until it counts as heard."""
    before = browser.ask("document.getElementById('missing').textContent")
    browser.click(selector)
    browser.wait(f"document.getElementById('missing').textContent !== {json.dumps(before)}")


def leave(browser: Browser) -> None:
    """Go on from a page, when its ratings are saved."""
    heading = browser.ask("document.getElementById('heading').textContent")
    browser.click("#next")
    changed = f"document.getElementById('heading').textContent !== {json.dumps(heading)}"
    browser.wait(f"{changed} || document.getElementById('trial').hidden")


def open_page(browser: Browser, served: Served) -> None:
    browser.send("Page.navigate", url=f"http://127.0.0.1:{served.port}/")
    browser.wait("document.getElementById('welcome')?.hidden === false")


def begin(browser: Browser, served: Served, listener: str) -> None:
    open_page(browser, served)
    browser.click("#listener")
    browser.type(listener)


def test_a_mushra_session_is_rated_reloaded_and_finished(serve, browser):
    served = serve()
    folder = served.folder
    test = load_test(folder)
    begin(browser, served, "Ada 7")
    browser.shoot("1-welcome")
    browser.click("#begin button")
    expected = {}
    plan = test.plan(0)
    assert len(plan) == 3
    for number, page in enumerate(plan):
        browser.wait("!document.getElementById('trial').hidden && !document.getElementById('play').disabled")
        if number == 0:
            browser.shoot("2-training")
        hear(browser, "#open")
        for place, sound in enumerate(page.sounds):
            row = f"#sounds li:nth-child({place + 1})"
            assert browser.ask(f"document.querySelector('{row} input').disabled"), "rated before it was heard"
            if place == 3:
                browser.press("d", "d")  # by the keyboard alone: play, and 2 x 10 + 3 higher
                browser.wait(f"!document.querySelector('{row} input').disabled")
                for key in ["PageUp", "PageUp", "ArrowUp", "ArrowUp", "ArrowUp"]:
                    browser.press(key)
                value = 23
            else:
                hear(browser, f"{row} button")
                value = 17 * (place + 1) + number
                width = browser.ask(f"document.querySelector('{row} input').clientWidth")
                browser.click(f"{row} input", (8 + value / 100 * (width - 16)) / width)  # half a thumb from its end
            shown = browser.ask(f"document.querySelector('{row} output').textContent")
            assert abs(int(shown) - value) <= (0 if place == 3 else 1)
            expected[page.page, sound] = int(shown)
            assert browser.ask("[...document.querySelectorAll('.row input')].filter(e => !e.disabled).length") == 1
            assert browser.ask("document.getElementById('next').disabled") == (place < len(page.sounds) - 1)
            if (number, place) == (1, 2):
                browser.shoot("3-rating")
                browser.wait("document.getElementById('saved').textContent === 'Saved'")
                browser.ask("(window.old = true)")
                browser.send("Page.reload")
                browser.wait("!window.old && document.getElementById('play')?.disabled === false")
                assert browser.ask("document.getElementById('heading').textContent") == "Screen 1 of 2"
                restored = browser.ask("[...document.querySelectorAll('.row output')].map(e => e.textContent)")
                assert restored == [*(str(expected[page.page, s]) for s in page.sounds[:3]), *"–" * (len(restored) - 3)]
                hear(browser, "#open")
        leave(browser)
    browser.wait("!document.getElementById('questions').hidden")
    browser.click("#ask input")
    browser.shoot("4-questions")
    browser.click("#ask button")
    browser.wait("!document.getElementById('end').hidden")
    browser.shoot("5-end")
    store = Store(folder / DATABASE)
    (session,) = store.sessions(finished_only=True)
    store.close()
    assert {key: answer.value for key, answer in session.answers.items()} == expected
    assert session.left.keys() == {page.page for page in plan}
    assert session.listener == "Ada 7"
    assert session.choices == {"What did you listen with?": "headphones"}
    assert browser.ask("document.getElementById('code').textContent") == test.code(session.session)
    assert all(0 < answer.seconds < 600 for answer in session.answers.values())
    rated = [page for page in test.key["pages"] if not page["training"]]
    scores = {(r.page, r.system): r.score for r in test.ratings([session])}
    assert scores == {(p["page"], system): expected[p["page"], s] for p in rated for s, system in p["sounds"].items()}
    assert not browser.complaints


def compared(page, key) -> int:
    """The value for the second sound when "ours" is better than the reference by 2, and "theirs" worse by 1."""
    system = next(name for name in key["sounds"].values() if name != "reference")
    better = 2 if system == "ours" else -1
    return better if key["sounds"][page.sounds[1]] == system else -better


# What each kind is told: the true answer of an ABX page, and that "ours" is the better of every pair.
GIVEN = {
    "mos": lambda page, key: key.get("expected", 2 + (key["sounds"][page.sounds[0]] == "ours")),
    "cmos": compared,
    "abx": lambda page, key: int(key["sounds"][page.sounds[1]] == key["open"][page.open]),
    "preference": lambda page, key: 1 if key["sounds"][page.sounds[1]] == "ours" else -1,
}
SCORES = {
    "mos": {("ours", 3), ("theirs", 2), ("reference", 2)},
    "cmos": {("ours>reference", 2), ("theirs>reference", -1)},
    "abx": {("ours>reference", 1), ("theirs>reference", 1)},
    "preference": {("ours>theirs", 1)},
}


@pytest.mark.parametrize("kind", GIVEN)
def test_a_session_of_every_other_kind_is_finished(kind, serve, browser):
    served = serve(kind=kind, seconds=0.6, questions={})
    folder = served.folder
    test = load_test(folder)
    keys = {page["page"]: page for page in test.key["pages"]}
    begin(browser, served, kind)
    browser.press("Enter", "\r")
    for number, page in enumerate(test.plan(0)):
        browser.wait("!document.getElementById('trial').hidden && !document.getElementById('play').disabled")
        assert browser.ask("document.getElementById('choices').disabled")
        told = browser.ask(
            "document.getElementById('traps').checkVisibility() && document.getElementById('traps').innerText"
        )
        assert "count them" in told if kind == "mos" else not told
        if page.open:
            hear(browser, "#open")
        for place in range(len(page.sounds)):
            hear(browser, f"#sounds li:nth-child({place + 1}) button" if len(page.sounds) > 1 else "#play")
        if number == 1:
            browser.shoot(f"6-{kind}")
        browser.click(f"#choices input[value='{GIVEN[kind](page, keys[page.page])}']")
        leave(browser)
    browser.wait("!document.getElementById('end').hidden")
    store = Store(folder / DATABASE)
    ratings = test.ratings(store.sessions(finished_only=True))
    store.close()
    assert len(ratings) == sum(not page.training for page in test.plan(0))
    known = [r for r in ratings if r.item in test.expected]
    assert sorted(r.system for r in known) == (["gold", "trap"] if kind == "mos" else [])
    assert screen(ratings, kind, expected=test.expected, durations=test.seconds).excluded == {}
    ratings = [r for r in ratings if r not in known]
    assert {(r.system, int(r.score)) for r in ratings} <= SCORES[kind]
    assert {r.system for r in ratings} == {system for system, _ in SCORES[kind]}
    assert not browser.complaints


RENDER = """(async () => {
  const { Player } = await import("/player.js");
  const context = new OfflineAudioContext(1, RATE * 3, RATE);
  const buffers = new Map();
  for (const [name, level] of [["a", 1], ["b", -0.5]]) {
    const buffer = context.createBuffer(1, RATE, RATE);
    buffer.getChannelData(0).forEach((_, i, samples) => (samples[i] = level * (i + 1) / RATE));
    buffers.set(name, buffer);
  }
  const player = new Player(context, buffers);
  PLAY
  player.prepare(3);
  const rendered = await context.startRendering();
  const bytes = [...new Uint8Array(rendered.getChannelData(0).buffer)];
  return btoa(bytes.map((byte) => String.fromCharCode(byte)).join(""));
})()"""


def rendered(browser: Browser, play: str, rate: int = 8000) -> np.ndarray:
    """What a player with the ramps a (up to 1) and b (down to -0.5) of one second plays in three."""
    code = RENDER.replace("PLAY", play).replace("RATE", str(rate))
    return np.frombuffer(base64.b64decode(browser.ask(code)), np.float32)


def test_a_rating_arrives_when_the_server_was_away(serve, browser):
    served = serve()
    begin(browser, served, "patient")
    browser.press("Enter", "\r")
    browser.wait("!document.getElementById('trial').hidden && !document.getElementById('play').disabled")
    hear(browser, "#sounds li:nth-child(2) button")
    served.go()
    for _ in range(3):
        browser.press("PageUp")
    browser.wait("document.getElementById('saved').textContent.startsWith('No connection')")
    browser.shoot("9-away")
    browser.press("ArrowUp")
    served.come()
    browser.wait("document.getElementById('saved').textContent === 'Saved'")
    page = load_test(served.folder).plan(0)[0]
    store = Store(served.folder / DATABASE)
    (session,) = store.sessions()
    store.close()
    assert {key: answer.value for key, answer in session.answers.items()} == {(page.page, page.sounds[1]): 31}


def test_a_part_is_looped_and_the_keys_work(serve, browser):
    served = serve()
    begin(browser, served, "keys")
    browser.press("Enter", "\r")
    browser.wait("!document.getElementById('trial').hidden && !document.getElementById('play').disabled")
    browser.drag("#waveform", 0.25, 0.75)  # of 2 s
    browser.click(".loop summary")
    loop = "[...document.querySelectorAll('.loop input')].map(e => e.getAttribute('aria-valuetext'))"
    first, last = (float(text.removesuffix(" seconds")) for text in browser.ask(loop))
    np.testing.assert_allclose([first, last], [0.5, 1.5], atol=0.02)
    browser.click("h2")
    browser.press("c", "c")
    browser.wait("document.querySelector('#sounds li:nth-child(3)').classList.contains('playing')")
    clock = "parseFloat(document.getElementById('clock').textContent)"
    seen = [(time.sleep(0.05), browser.ask(clock))[1] for _ in range(40)]  # in 2 s the loop of 1 s comes round
    assert 0.5 <= min(seen) < 0.8 and 1.2 < max(seen) <= 1.5
    assert any(after < before for before, after in itertools.pairwise(seen))
    browser.shoot("7-loop")
    browser.press("\\", "\\")
    browser.wait(f"{loop}[1] === '2.00 seconds' && {loop}[0] === '0.00 seconds'")
    browser.press(" ", " ")
    browser.wait("document.getElementById('play').textContent === 'Play'")
    browser.press("r", "r")
    browser.wait("document.getElementById('open').getAttribute('aria-pressed') === 'true'")
    browser.click("#keyboard summary")
    browser.click("#keys")
    browser.press("a", "a")
    time.sleep(0.2)
    assert browser.ask("document.getElementById('open').getAttribute('aria-pressed')") == "true"  # single keys are off
    browser.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    browser.shoot("8-dark")
    nameless = (
        "[...document.querySelectorAll('#trial input, #trial button')].filter(e => e.offsetParent && "
        "!(e.textContent.trim() || e.getAttribute('aria-label') || e.labels?.length)).length"
    )
    assert browser.ask(nameless) == 0, "a control has no name for a screen reader"
    assert not browser.complaints


def test_a_switch_is_exact_to_the_sample_and_never_a_cross_fade(serve, browser):
    served = serve(seconds=0.6)
    open_page(browser, served)
    rate, fade = 8000, 40
    y = rendered(browser, "player.play('a', 0); player.play('b', 0.3);")
    ramp = (np.arange(len(y)) % rate + 1) / rate
    curve = 0.5 - 0.5 * np.cos(np.pi * np.arange(fade) / fade)
    np.testing.assert_allclose(y[fade:2400], ramp[fade:2400], atol=0, rtol=1e-7)  # the file, sample by sample
    np.testing.assert_allclose(y[:fade], curve * ramp[:fade], atol=1e-4)
    np.testing.assert_allclose(y[2400 : 2400 + fade], curve[::-1] * ramp[2400 : 2400 + fade], atol=2e-2)
    np.testing.assert_allclose(y[2440 : 2440 + fade], -0.5 * curve * ramp[2440 : 2440 + fade], atol=1e-4)
    np.testing.assert_allclose(y[2480:7960], -0.5 * ramp[2480:7960], rtol=1e-7)
    around = slice(7960, 8040)  # the excerpt begins again, with both fades
    dip = np.abs(np.cos(np.pi * np.arange(-40, 40) / 80)) ** 2
    np.testing.assert_allclose(y[around], -0.5 * (1 - dip) * ramp[around], atol=2e-4)
    np.testing.assert_allclose(y[8040:15960], -0.5 * ramp[8040:15960], rtol=1e-7)
    y = rendered(browser, "player.setLoop(0.25, 0.3); player.play('b', 0.1); player.stop(2);")
    assert not y[:800].any() and not y[16040:].any()
    at = np.arange(800, 16000)
    inside = 2000 + (at - 800) % 4000  # 50 ms were asked for, a loop has at least 500
    clear = ((at - 800) % 4000 >= fade) & ((at - 800) % 4000 < 4000 - fade)
    np.testing.assert_allclose(y[at][clear], -0.5 * ((inside + 1) / rate)[clear], rtol=1e-7)
