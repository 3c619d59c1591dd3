"""Scenes whose contacts are known, drawn at the size at which `jaxdiff watch` looks: small, grey, any rate of pictures.

    scene = draw_scene(np.random.default_rng(seed))      # scene.frames, scene.contacts in seconds, scene.cuts

Actors that strike: a bouncing ball, a ball between walls, a hammer, footsteps, drum sticks, blocks that fall and slide
to a stop, balls that meet, clapping hands. What strikes nothing: things that swing, drift, turn, start and stop
gently, blink and flicker. Then a background, the camera's pan and shake, light that changes, flashes and fades, noise,
the small changes that a coder leaves out, cuts, 24 to 60 pictures per second, repeated and lost ones. Lengths are in
widths of the picture.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from jaxdiff.data.video import HEIGHT, WIDTH, Frame

FLOOR = HEIGHT / WIDTH
RATES = (24, 24000 / 1001, 25, 30, 30000 / 1001, 50, 60)
FINE = 960  # steps per second of what is simulated
LEAST_SPEED = 0.25  # widths per second of a contact


class Shape(NamedTuple):
    """A line from one point [times, 2] to another, `radius` thick, of a grey level; a disc where they are one."""

    begin: np.ndarray
    end: np.ndarray
    radius: float
    level: np.ndarray | float


class Act(NamedTuple):
    """Shapes over time, the farthest first, and when they strike."""

    shapes: list[Shape]
    contacts: list[float]


class Scene(NamedTuple):
    """Pictures, when there is a contact and when a cut, in seconds, and what strikes."""

    frames: list[Frame]
    contacts: np.ndarray
    cuts: np.ndarray
    kind: str


def _points(x: np.ndarray | float, y: np.ndarray | float) -> np.ndarray:
    return np.stack(np.broadcast_arrays(np.asarray(x, np.float32), np.asarray(y, np.float32)), axis=-1)


def _level(rng: np.random.Generator) -> float:
    return float(rng.choice([rng.uniform(0, 50), rng.uniform(200, 255)]))


# What strikes -------------------------------------------------------------------------------------------------------


def ball(t: np.ndarray, rng: np.random.Generator) -> Act:
    """A ball that falls, bounces, meets walls and comes to rest; then it is thrown again."""
    radius, floor = rng.uniform(0.02, 0.07), rng.uniform(0.35, FLOOR - 0.01)
    gravity, bounce = rng.uniform(1.5, 5.0), rng.uniform(0.5, 0.92)
    walls = (0.02 + radius, 0.98 - radius)
    fine = np.arange(0, t[-1] + 2 / FINE, 1 / FINE)
    x, y = rng.uniform(0.1, 0.9), rng.uniform(0, floor - 0.2)
    vx, vy = rng.uniform(-0.7, 0.7) * rng.integers(0, 2), rng.uniform(-0.5, 0.3)
    path, contacts, rest = np.empty((len(fine), 2), np.float32), [], 0.0
    for i, now in enumerate(fine):
        if rest > 0:
            rest -= 1 / FINE
            if rest <= 0:
                vy, vx = -rng.uniform(0.8, 1.6) * np.sqrt(gravity / 3), rng.uniform(-0.6, 0.6)
        else:
            vy += gravity / FINE
            x, y = x + vx / FINE, y + vy / FINE
            if y > floor - radius and vy > 0:
                contacts.append(now)
                y, vy = floor - radius, -bounce * vy
                if -vy < LEAST_SPEED:
                    vx = vy = 0.0
                    rest = rng.uniform(0.4, 1.5)
            if not walls[0] < x < walls[1] and (x - 0.5) * vx > 0:
                vx = -bounce * vx
                if abs(vx) > LEAST_SPEED:
                    contacts.append(now)
        path[i] = x, y
    place = path[np.searchsorted(fine, t).clip(0, len(fine) - 1)]
    ground = Shape(_points(-0.5, floor + 0.03), _points(1.5, floor + 0.03), 0.03, _level(rng))
    shapes = [ground] if rng.random() < 0.6 else []
    return Act([*shapes, Shape(place, place, radius, _level(rng))], contacts)


def between_walls(t: np.ndarray, rng: np.random.Generator) -> Act:
    """A ball without weight between four walls."""
    radius = rng.uniform(0.02, 0.06)
    lows, highs = np.array([0.05, 0.04]) + radius, np.array([0.95, FLOOR - 0.04]) - radius
    angle, speed = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 1.2)
    velocity = speed * np.array([np.cos(angle), np.sin(angle)])
    begin, contacts, place = rng.uniform(lows, highs), [], []
    for axis in (0, 1):
        size = highs[axis] - lows[axis]
        way = (begin[axis] - lows[axis] + velocity[axis] * t) / size
        place.append(lows[axis] + size * (1 - np.abs(way % 2 - 1)))
        if abs(velocity[axis]) > LEAST_SPEED:
            walls = np.arange(np.ceil(min(way[0], way[-1])), np.floor(max(way[0], way[-1])) + 1)
            contacts += list((walls * size - begin[axis] + lows[axis]) / velocity[axis])
    place = _points(*place)
    return Act([Shape(place, place, radius, _level(rng))], contacts)


def _strokes(t: np.ndarray, rng: np.random.Generator, slow: float, fast: float) -> tuple[np.ndarray, list[float]]:
    """How far something is raised, 0 to 1, that strikes at 0 after `slow` to `fast` seconds each, and when it does."""
    raised, contacts, now = np.zeros(len(t), np.float32), [], rng.uniform(-0.5, 0.3)
    even = rng.uniform(fast, slow) if rng.random() < 0.5 else None
    while now < t[-1]:
        length = rng.uniform(fast, slow) if even is None else even
        pause = rng.uniform(0, 0.8) if rng.random() < 0.25 else 0.0
        high = rng.uniform(0.5, 1.0) * min(1.0, length / 0.3)
        turn = rng.uniform(0.45, 0.75)
        part = (t - now - pause) / length
        up = 0.5 - 0.5 * np.cos(np.pi * np.clip(part / turn, 0, 1))
        power = rng.uniform(1.6, 2.4)
        down = 1 - np.clip((part - turn) / (1 - turn), 0, 1) ** power
        inside = (part >= 0) & (part < 1)
        raised[inside] = (high * np.where(part < turn, up, down))[inside]
        now += pause + length
        contacts.append(now)
    return raised, contacts


def hammer(t: np.ndarray, rng: np.random.Generator) -> Act:
    """A hammer that is raised and falls."""
    raised, contacts = _strokes(t, rng, 1.2, 0.35)
    side = rng.choice([-1, 1])
    pivot, length = (0.5 - side * rng.uniform(0.05, 0.3), rng.uniform(0.3, 0.45)), rng.uniform(0.2, 0.4)
    angle = rng.uniform(-0.1, 0.3) - raised * rng.uniform(0.6, 1.4)
    head = _points(pivot[0] + side * length * np.cos(angle), pivot[1] + length * np.sin(angle))
    level, across = _level(rng), rng.uniform(0.03, 0.06)
    off = across * _points(-side * np.sin(angle), np.cos(angle))
    handle = Shape(_points(*pivot) + 0 * head, head, 0.012, _level(rng))
    anvil = head[np.argmin(raised)] + _points(0.0, 0.06)
    shapes = [Shape(anvil[None] + _points(0.0, 0.03), anvil[None] + _points(0.0, 0.2), 0.05, _level(rng))]
    return Act([*shapes, handle, Shape(head - off, head + off, rng.uniform(0.02, 0.035), level)], contacts)


def sticks(t: np.ndarray, rng: np.random.Generator) -> Act:
    """One or two drum sticks."""
    shapes, contacts, level = [], [], _level(rng)
    drum = rng.uniform(0.35, 0.5)
    for side in rng.choice([-1, 1], rng.integers(1, 3), replace=False):
        raised, struck = _strokes(t, rng, 0.8, 0.2)
        hand = 0.5 - side * rng.uniform(0.25, 0.4), drum - rng.uniform(0.02, 0.1)
        length, low = rng.uniform(0.2, 0.32), rng.uniform(0.1, 0.3)
        angle = low - raised * rng.uniform(0.5, 1.1)
        lift = 0.04 * raised
        tip = _points(hand[0] + side * length * np.cos(angle), hand[1] - lift + length * np.sin(angle))
        shapes.append(Shape(_points(hand[0] + 0 * lift, hand[1] - lift), tip, rng.uniform(0.01, 0.022), level))
        contacts += struck
    ground = Shape(_points(0.25, drum + 0.1), _points(0.75, drum + 0.1), 0.06, _level(rng))
    return Act([ground, *shapes], contacts)


def walker(t: np.ndarray, rng: np.random.Generator) -> Act:
    """Somebody who walks or runs across the picture, or on the spot."""
    period, way = rng.uniform(0.5, 1.3), rng.choice([-1, 1])
    stride = rng.uniform(0.1, 0.2)
    scale, ground = stride / 0.15, rng.uniform(0.42, FLOOR - 0.03)
    swing, spot = rng.uniform(0.35, 0.5), rng.random() < 0.4
    speed = stride / ((1 - swing) * period)
    begin = rng.uniform(0.3, 0.7) if spot else 0.5 - way * rng.uniform(0.2, 0.6)
    hip_x = begin + (0 * t if spot else way * speed * t)
    bob = 0.008 * scale * np.cos(4 * np.pi * t / period)
    hip = _points(hip_x, ground - 0.16 * scale + bob)
    legs, contacts, colour = [], [], _level(rng)
    for leg in (0.0, 0.5):
        phase = t / period + leg
        part = phase % 1
        swinging = part < swing
        forward = np.where(swinging, part / swing, 1 - (part - swing) / (1 - swing))
        lift = np.where(swinging, np.sin(np.pi * np.clip(part / swing, 0, 1)) ** 0.9, 0) * rng.uniform(0.025, 0.06)
        foot = _points(hip_x + way * (forward - 0.5) * stride, ground - lift * scale)
        legs.append(Shape(hip, foot, 0.016 * scale, colour))
        legs.append(Shape(foot, foot + _points(way * 0.03 * scale, 0), 0.013 * scale, _level(rng)))
        landings = np.arange(np.floor(phase[0]), np.ceil(phase[-1]) + 1) + swing - leg
        contacts += [
            now for now in landings * period if -0.05 < np.interp(now, t, hip_x) + way * stride / 2 < 1.05
        ]  # fmt: skip
    top = hip - _points(0.0, 0.15 * scale)
    arms = []
    if rng.random() < 0.5:
        angle = rng.uniform(0.3, 0.7) * np.sin(2 * np.pi * t / period)
        hand = top + 0.13 * scale * _points(np.sin(angle), np.cos(angle))
        arms = [Shape(top, hand, 0.012 * scale, colour)]
    body = [
        Shape(hip, top, 0.03 * scale, _level(rng)),
        Shape(top - _points(0, 0.05), top - _points(0, 0.05), 0.03, 200.0),
    ]
    return Act([*legs, *body, *arms], contacts)


def blocks(t: np.ndarray, rng: np.random.Generator) -> Act:
    """Things that fall to the ground, or slide against a wall, and stay."""
    shapes, contacts, now = [], [], rng.uniform(0.0, 0.6)
    gravity = rng.uniform(1.5, 5.0)
    while now < t[-1]:
        radius, gone = rng.uniform(0.02, 0.07), rng.uniform(1.0, 3.0)
        rebound = rng.uniform(0, 0.25) if rng.random() < 0.5 else 0.0
        if rng.random() < 0.6:
            begin, floor = np.array([rng.uniform(0.1, 0.9), -0.1]), rng.uniform(0.25, FLOOR - 0.02) - radius
            length = np.sqrt(2 * (floor + 0.1) / gravity)
            since = np.clip(t - now, 0, None)
            fallen = 0.5 * gravity * np.minimum(since, length) ** 2
            hop = rebound * gravity * length
            after = np.clip(since - length, 0, 2 * hop / gravity)
            place = _points(begin[0], begin[1] + fallen - (hop * after - 0.5 * gravity * after**2))
            struck = [now + length] + [now + length + 2 * hop / gravity] * int(hop > LEAST_SPEED)
        else:
            side, wall = rng.choice([-1, 1]), rng.uniform(0.1, 0.4)
            speed, y = rng.uniform(0.4, 1.2), rng.uniform(0.1, FLOOR - radius)
            length = (0.5 + wall + 0.1) / speed
            since = np.clip(t - now, 0, None)
            back = 0.3 * rebound * speed * np.clip(since - length, 0, 0.3)
            place = _points(0.5 - side * 0.6 + side * (speed * np.minimum(since, length) - back), y)
            struck = [now + length]
        seen = (t >= now) & (t < now + length + gone)
        place = np.where(seen[:, None], place, -9.0).astype(np.float32)
        wide = _points(rng.uniform(0, 0.04), 0)
        shapes.append(Shape(place - wide, place + wide, radius, _level(rng)))
        contacts += struck
        now += rng.uniform(0.4, 1.6)
    return Act(shapes, contacts)


def meeting(t: np.ndarray, rng: np.random.Generator) -> Act:
    """Two balls on threads that meet, the one at rest and the one that swings by turns."""
    period, top, length = rng.uniform(0.6, 1.3), rng.uniform(-0.1, 0.05), rng.uniform(0.25, 0.38)
    radius, high = rng.uniform(0.03, 0.06), rng.uniform(0.35, 0.8)
    phase, middle = t / period + rng.uniform(0, 1), rng.uniform(0.35, 0.65)
    swing = high * np.sin(2 * np.pi * phase)
    shapes, level = [], _level(rng)
    for side in (-1, 1):
        angle = side * np.maximum(side * swing, 0)
        pivot = middle + side * radius
        place = _points(pivot + length * np.sin(angle), top + length * np.cos(angle))
        shapes += [Shape(_points(pivot, top) + 0 * place, place, 0.006, 128.0), Shape(place, place, radius, level)]
    first = np.ceil(2 * phase[0])
    contacts = (np.arange(first, np.floor(2 * phase[-1]) + 1) / 2 - (phase[0] - t[0] / period)) * period
    return Act(shapes, list(contacts))


def clap(t: np.ndarray, rng: np.random.Generator) -> Act:
    """Two hands."""
    raised, contacts = _strokes(t, rng, 1.0, 0.22)
    middle, tilt, wide = (rng.uniform(0.3, 0.7), rng.uniform(0.2, 0.4)), rng.uniform(-0.6, 0.6), rng.uniform(0.08, 0.2)
    across, along = _points(np.cos(tilt), np.sin(tilt)), rng.uniform(0.05, 0.1) * _points(-np.sin(tilt), np.cos(tilt))
    radius, shapes, level = rng.uniform(0.02, 0.035), [], _level(rng)
    for side in (-1, 1):
        hand = _points(*middle) + side * (radius + wide * raised)[:, None] * across
        shapes.append(Shape(hand - along, hand + along, radius, level))
    return Act(shapes, contacts)


STRIKING: dict[str, Callable] = {
    "ball": ball, "walls": between_walls, "hammer": hammer, "sticks": sticks, "footsteps": walker, "blocks": blocks,
    "meeting": meeting, "clap": clap,
}  # fmt: skip


# What strikes nothing -----------------------------------------------------------------------------------------------


def gentle(t: np.ndarray, rng: np.random.Generator) -> Act:
    """Something that swings, drifts, turns, goes from place to place gently, or blinks."""
    x, y, radius, level = rng.uniform(0.1, 0.9), rng.uniform(0.05, FLOOR - 0.05), rng.uniform(0.015, 0.08), _level(rng)
    phase = rng.uniform(0, 2 * np.pi, 2)
    kind = rng.choice(6, p=[0.25, 0.25, 0.15, 0.25, 0.05, 0.05])
    end = None
    shade: np.ndarray | float = level
    if kind == 0:  # an ellipse
        rate, size = rng.uniform(0.2, 1.1), rng.uniform(0.03, 0.2, 2)
        place = _points(
            x + size[0] * np.sin(2 * np.pi * rate * t + phase[0]), y + size[1] * np.sin(2 * np.pi * rate * t + phase[1])
        )
    elif kind == 1:  # straight through
        v = rng.uniform(-0.6, 0.6, 2)
        place = _points((x + v[0] * t + 0.3) % 1.6 - 0.3, y + 0.1 * v[1] * t)
    elif kind == 2:  # a bar that turns
        angle = rng.uniform(-3, 3) * t + phase[0]
        if rng.random() < 0.5:
            angle = rng.uniform(0.3, 1.2) * np.sin(2 * np.pi * rng.uniform(0.2, 0.8) * t + phase[0])
        place, radius = _points(x + 0 * t, y), radius / 3
        end = place + rng.uniform(0.1, 0.3) * _points(np.cos(angle), np.sin(angle))
    elif kind == 3:  # from place to place, with the least jerk
        xs, ys, now = np.full(len(t), x), np.full(len(t), y), rng.uniform(-0.5, 1.0)
        while now < t[-1]:
            length, to = rng.uniform(0.5, 1.6), (rng.uniform(0.1, 0.9), rng.uniform(0.05, FLOOR - 0.05))
            p = np.clip((t - now) / length, 0, 1)
            s = p**3 * (10 - 15 * p + 6 * p**2)
            xs, ys = np.where(p > 0, xs + s * (to[0] - xs), xs), np.where(p > 0, ys + s * (to[1] - ys), ys)
            now += length + rng.uniform(0, 1.0)
        place = _points(xs, ys)
    elif kind == 4:  # a light that blinks or glows
        place = _points(x + 0 * t, y)
        wave = np.sin(2 * np.pi * rng.uniform(0.3, 3) * t + phase[0])
        shade = 128 + 100 * (np.sign(wave) if rng.random() < 0.5 else wave)
    else:  # what appears and is gone
        seen = np.sin(2 * np.pi * rng.uniform(0.1, 0.5) * t + phase[0]) > 0
        place = np.where(seen[:, None], _points(x + 0 * t, y), -9.0)
    return Act([Shape(place, place if end is None else end, radius, shade)], [])


# Pictures -----------------------------------------------------------------------------------------------------------

_X, _Y = ((np.arange(size, dtype=np.float32) + 0.5) / WIDTH for size in (WIDTH, HEIGHT))


def _cover(shape: Shape, camera: np.ndarray) -> np.ndarray:
    """How much of each pixel a shape covers, [times, height, width]."""
    a, b = (np.broadcast_to(p, (len(camera), 2)) + camera for p in (shape.begin, shape.end))
    along = (b - a).astype(np.float32)
    px, py = _X[None, None, :] - a[:, 0, None, None], _Y[None, :, None] - a[:, 1, None, None]
    square = (along**2).sum(-1)[:, None, None] + 1e-12
    dx, dy = along[:, 0, None, None], along[:, 1, None, None]
    share = np.clip((px * dx + py * dy) / square, 0, 1)
    distance = np.sqrt((px - share * dx) ** 2 + (py - share * dy) ** 2)
    return np.clip((shape.radius - distance) * WIDTH + 0.5, 0, 1)


def _background(rng: np.random.Generator) -> np.ndarray:
    """A picture three times as large."""
    base, amount = rng.uniform(85, 165), rng.uniform(0, 24) * (rng.random() < 0.8)
    noise = rng.normal(size=(3 * HEIGHT, 3 * WIDTH))
    texture = sum(ndimage.gaussian_filter(noise, s, mode="wrap") * s for s in (1, 3, 9))
    texture *= amount / texture.std()
    for _ in range(rng.integers(0, 12)):
        y, x = rng.integers(0, 3 * HEIGHT), rng.integers(0, 3 * WIDTH)
        texture[y : y + rng.integers(5, 60), x : x + rng.integers(5, 60)] += rng.uniform(-30, 30)
    slope = rng.uniform(-20, 20) * np.linspace(-1, 1, 3 * HEIGHT)[:, None]
    return (base + texture + slope).astype(np.float32)


def _camera(t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Where the picture's origin lies, [times, 2]: still, panning, or shaken by a hand."""
    place = np.zeros((len(t), 2))
    kind = rng.random()
    if kind > 0.65:
        for axis in (0, 1):
            for _ in range(4):
                rate = rng.uniform(0.3, 6)
                place[:, axis] += rng.normal() * 0.008 / rate**0.7 * np.sin(2 * np.pi * (rate * t + rng.random()))
    if kind > 0.85:
        place += np.outer(t, rng.uniform(-0.1, 0.1, 2) * [1, 0.3])
    return place


def _painted(act: Act, t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pictures in grey levels."""
    camera, back = _camera(t, rng), _background(rng)
    at = WIDTH * np.clip(-camera, -0.5, 0.5) + [WIDTH, HEIGHT]
    whole = np.floor(at).astype(int)
    fx, fy = ((at - whole)[:, axis, None, None].astype(np.float32) for axis in (0, 1))
    rows = np.clip(whole[:, 1, None] + np.arange(HEIGHT + 1), 0, 3 * HEIGHT - 1)
    columns = np.clip(whole[:, 0, None] + np.arange(WIDTH + 1), 0, 3 * WIDTH - 1)
    part = back[rows[:, :, None], columns[:, None, :]]
    part = (1 - fx) * part[:, :, :-1] + fx * part[:, :, 1:]
    pictures = (1 - fy) * part[:, :-1] + fy * part[:, 1:]
    for shape in act.shapes:
        cover = _cover(shape, camera.astype(np.float32))
        level = np.broadcast_to(np.asarray(shape.level, np.float32), len(t))[:, None, None]
        pictures += cover * (level - pictures)
    return pictures


def _lit(pictures: np.ndarray, t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Light that changes: a ramp, a flicker, flashes or a fade."""
    kind = rng.integers(0, 9)
    gain, level = np.ones(len(t)), np.zeros(len(t))
    if kind == 0:
        gain = np.interp(t, np.sort(rng.uniform(0, t[-1], 4)), rng.uniform(0.7, 1.25, 4))
    elif kind == 1:
        gain = 1 + rng.uniform(0.02, 0.12) * np.sin(2 * np.pi * rng.uniform(1, 12) * t)
    elif kind == 2:
        for now in rng.uniform(0, t[-1], rng.integers(1, 4)):
            level += rng.uniform(30, 120) * np.exp(-np.clip(t - now, 0, None) / 0.08) * (t >= now)
    elif kind == 3:
        gain = np.clip((t - rng.uniform(0, 1)) / rng.uniform(0.3, 1.0), 0, 1)
    elif kind == 4:
        gain = 1 + 0.2 * rng.random() * np.sign(np.sin(2 * np.pi * rng.uniform(0.3, 1.5) * t))
    return pictures * gain[:, None, None] + level[:, None, None]


def _shot(t: np.ndarray, kind: str, rng: np.random.Generator) -> tuple[np.ndarray, list[float]]:
    """Pictures at times from 0, in grey levels, and contacts."""
    shutter = rng.uniform(0, 0.6) if rng.random() < 0.4 else 0.0
    parts = np.linspace(-0.25, 0.25, 2) if shutter else np.zeros(1)
    step = np.median(np.diff(t)) if len(t) > 1 else 0.04
    times = (t[:, None] + shutter * step * parts).ravel()
    order = np.argsort(times, kind="stable")
    back = np.argsort(order, kind="stable")
    ascending = times[order]
    acts = [STRIKING[kind](ascending, rng)] if kind in STRIKING else []
    others = [gentle(ascending, rng) for _ in range(rng.choice([0, 0, 0, 1, 1, 2]) if acts else rng.integers(1, 5))]
    front = [other for other in others if rng.random() < 0.15]
    behind = [other for other in others if not any(other is f for f in front)]
    shapes = [shape for act in (*behind, *acts, *front) for shape in act.shapes]
    contacts = [now for act in acts for now in act.contacts]
    pictures = _painted(Act(shapes, contacts), ascending, rng)[back]
    pictures = pictures.reshape(len(t), len(parts), HEIGHT, WIDTH).mean(1)
    if rng.random() < 0.4:
        pictures = ndimage.gaussian_filter(pictures, (0, *[rng.uniform(0.3, 0.9)] * 2))
    return _lit(pictures, t, rng), contacts


def _coded(pictures: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Noise of the sensor, and small changes left out as a coder does; uint8."""
    noise = rng.uniform(0.3, 3.5) if rng.random() < 0.6 else 0.0
    pictures = pictures + noise * rng.normal(size=pictures.shape).astype(np.float32)
    if rng.random() < 0.5:
        least = rng.uniform(1, 3) + noise
        held = pictures[0].copy()
        for i in range(1, len(pictures)):
            held = np.where(np.abs(pictures[i] - held) > least, pictures[i], held)
            pictures[i] = held
    return np.clip(np.round(pictures), 0, 255).astype(np.uint8)


def _times(seconds: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """When pictures are shown, and for each which moment it shows: some are lost, some repeat the one before."""
    rate = float(rng.choice(RATES))
    shown = np.arange(round(seconds * rate)) / rate
    moments, kind = shown.copy(), rng.random()
    if kind < 0.1:
        shown = moments = shown[np.sort(rng.permutation(len(shown))[: round(len(shown) * rng.uniform(0.7, 0.95))])]
    elif kind < 0.2:
        every = rng.choice([2, 1.25] if rate < 40 else [2, 2.5, 3])
        moments = shown[np.floor(np.floor(np.arange(len(shown)) / every) * every + 1e-6).astype(int)]
    return shown, moments


def draw_scene(
    rng: np.random.Generator, kind: str | None = None, *, seconds: float = 4.0, cuts: int | None = None
) -> Scene:
    """A scene of shots of one kind, "none" where nothing strikes."""
    kind = str(rng.choice([*STRIKING, "none", "none"])) if kind is None else kind
    shown, moments = _times(seconds, rng)
    count = int(rng.choice([0, 0, 0, 1, 2])) if cuts is None else cuts
    borders = np.sort(rng.uniform(0.1, 0.9, count)) * seconds
    edges = np.unique(np.concatenate([[0], np.searchsorted(shown, borders), [len(shown)]]))
    parts, contacts = [], []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        begin = rng.uniform(0, 2)  # shots begin in the middle
        pictures, struck = _shot(moments[low:high] - shown[low] + begin, kind, rng)
        parts.append(_coded(pictures, rng))
        step = 1.5 * (shown[high - 1] - shown[low]) / max(1, high - low - 1)
        struck = np.array(struck) - begin + shown[low]
        contacts.append(struck[(struck > shown[low] + step) & (struck < shown[high - 1] - step)])
    frames = [Frame(float(t), picture) for t, picture in zip(shown, np.concatenate(parts), strict=True)]
    merged = np.sort(np.concatenate(contacts))
    keep = np.concatenate([[True], np.diff(merged) > 0.04])[: len(merged)]  # two at once are one sound
    return Scene(frames, merged[keep], shown[edges[1:-1]], kind)
