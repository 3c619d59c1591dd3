// How sounds are played: all sounds of a screen run together, sample by sample, and one of them is let through.
//
// A switch fades the old sound out and then the new one in, each by 5 ms of a raised cosine; the two never overlap. A
// loop has the same fades at its ends. All times are whole samples, so that a sound is played as it is in its file.

export const FADE = 0.005; // seconds
export const SHORTEST_LOOP = 0.5; // seconds
const LEAD = 0.03; // seconds in which all sources of a screen are made, so that they begin together
const POINTS = 257; // of a fade

const rising = Float32Array.from({ length: POINTS }, (_, i) => 0.5 - 0.5 * Math.cos((Math.PI * i) / (POINTS - 1)));
const falling = rising.slice().reverse();
const dip = Float32Array.from([...falling, ...rising.slice(1)]);

export class Player {
  // `buffers` is a Map from names to AudioBuffers of one length and one rate, which is the context's.
  constructor(context, buffers) {
    this.context = context;
    this.buffers = buffers;
    this.duration = Math.min(...[...buffers.values()].map((buffer) => buffer.duration));
    this.loop = { start: 0, end: this.duration };
    this.active = null; // the sound that is let through, or was when it stopped
    this.run = null; // what plays: sources with gains, when and where it began
    this.resting = 0; // the position in seconds while nothing plays
    this.free = 0; // the time from which another fade can begin
  }

  get playing() {
    return this.run !== null;
  }

  // The position in seconds at a time of the context.
  position(time = this.context.currentTime) {
    if (!this.run) return this.resting;
    const { began, offset, start, end } = this.run;
    const at = offset + Math.max(0, time - began);
    return at < end ? at : start + ((at - start) % (end - start));
  }

  // Let a sound through, at once or at a time of the context; what plays goes on at the same place.
  play(name, time = this.context.currentTime + LEAD) {
    const at = this.#onSample(Math.max(time, this.free));
    if (!this.run) {
      this.#start(name, at, this.resting);
    } else if (name !== this.active) {
      this.run.gains.get(this.active).gain.setValueCurveAtTime(falling, at, FADE);
      this.run.gains.get(name).gain.setValueCurveAtTime(rising, at + FADE, FADE);
      this.free = at + 2 * FADE + 0.001;
    }
    this.active = name;
  }

  stop(time = this.context.currentTime + LEAD) {
    if (!this.run) return;
    const at = this.#onSample(Math.max(time, this.free));
    this.run.gains.get(this.active).gain.setValueCurveAtTime(falling, at, FADE);
    for (const source of this.run.sources) source.stop(at + FADE);
    this.resting = this.position(at + FADE);
    this.run = null;
    this.free = at + FADE + 0.001;
  }

  // Play from another position in seconds, or begin there.
  seek(position, time = this.context.currentTime + LEAD) {
    const playing = this.playing;
    this.stop(time);
    this.resting = Math.min(Math.max(position, this.loop.start), this.loop.end - 4 * FADE);
    if (playing) this.play(this.active, time);
  }

  // Repeat the part from `start` to `end` in seconds, which is widened where it is shorter than a loop can be.
  setLoop(start, end, time = this.context.currentTime + LEAD) {
    const shortest = Math.min(SHORTEST_LOOP, this.duration);
    const first = this.#onSample(Math.min(Math.max(0, start), this.duration - shortest));
    const last = Math.min(this.duration, this.#onSample(Math.max(end, first + shortest)));
    if (first === this.loop.start && last === this.loop.end) return;
    const now = this.position(time);
    this.loop = { start: first, end: last };
    this.seek(now < first || now >= last ? first : now, time);
  }

  // Prepare the fades of the loop's ends up to a time of the context; call it at least once a second.
  prepare(until = this.context.currentTime + 2) {
    const run = this.run;
    if (!run) return;
    for (; run.wrap < until; run.wrap += run.end - run.start) {
      run.ends.gain.setValueCurveAtTime(dip, run.wrap - FADE, 2 * FADE);
    }
  }

  #start(name, at, offset) {
    const { start, end } = this.loop;
    const inside = offset >= start && offset < end - 4 * FADE ? this.#onSample(offset) : start;
    const ends = this.context.createGain();
    ends.connect(this.context.destination);
    const gains = new Map();
    const sources = [];
    for (const [key, buffer] of this.buffers) {
      const source = this.context.createBufferSource();
      const gain = this.context.createGain();
      Object.assign(source, { buffer, loop: true, loopStart: start, loopEnd: end });
      gain.gain.value = 0;
      source.connect(gain).connect(ends);
      source.start(at, inside);
      gains.set(key, gain);
      sources.push(source);
    }
    sources[0].onended = () => ends.disconnect();
    gains.get(name).gain.setValueCurveAtTime(rising, at, FADE);
    this.run = { began: at, offset: inside, start, end, ends, gains, sources, wrap: at + end - inside };
    this.free = at + FADE + 0.001;
    this.prepare(at + 2);
  }

  #onSample(seconds) {
    return Math.ceil(seconds * this.context.sampleRate - 1e-6) / this.context.sampleRate;
  }
}
