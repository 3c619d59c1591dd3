"""A written video in a real browser: both tracks play, it is as long as its source, and a click is heard in its place.
Chromium is driven as in `test_listening_browser.py`; without it the test is skipped."""

import functools
import http.server
import threading

import numpy as np
import pytest
from test_foley_command import EVEN, clicks, write_video
from test_listening_browser import CHROMIUM, Browser

from jaxdiff.data.soundtrack import video_seconds, write_track

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")]

PLAY = """(async () => {
  const video = document.createElement('video');
  video.muted = true; video.src = %r; document.body.append(video);
  await new Promise((go, stop) => { video.oncanplay = go; video.onerror = () => stop(video.error.message); });
  await video.play();
  const tracks = video.captureStream().getTracks().map(track => track.kind).sort();
  await new Promise(go => { video.onended = go; });
  const file = await (await fetch(video.src)).arrayBuffer();
  const sound = await new OfflineAudioContext(2, 48000, 48000).decodeAudioData(file);
  const samples = sound.getChannelData(0);
  return { duration: video.duration, tracks, pictures: video.getVideoPlaybackQuality().totalVideoFrames,
           bytes: video.webkitAudioDecodedByteCount, first: samples.findIndex(x => Math.abs(x) > 0.2) / 48000 };
})()"""


@pytest.mark.parametrize("end", [".mp4", ".webm"])
def test_a_browser_plays_both_tracks(tmp_path, end):
    codec = "libx264" if end == ".mp4" else "libvpx-vp9"
    source = write_video(tmp_path / f"source{end}", EVEN + 0.3, codec=codec)
    write_track(source, tmp_path / f"out{end}", clicks(2, [0.6]))
    (tmp_path / "index.html").write_text("<!doctype html><title>video</title>")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = Browser(tmp_path / "profile")
        try:
            browser.send("Page.navigate", url=f"http://127.0.0.1:{server.server_port}/index.html")
            browser.wait("document.title === 'video' && document.body !== null")
            found = browser.ask(PLAY % f"out{end}")
        finally:
            browser.close()
            server.shutdown()
    assert found["tracks"] == ["audio", "video"] and found["bytes"] > 0 and found["pictures"] > 0, found
    assert found["duration"] == pytest.approx(video_seconds(tmp_path / f"out{end}"), abs=0.045), found
    assert np.abs(found["first"] - 0.6) < 0.025, found
