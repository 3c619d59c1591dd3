// How the excerpt is shown: one outline for all sounds of a screen, the loop and the play head, on a canvas.

export class Waveform {
  // `buffers` are the sounds whose common outline is drawn; `onLoop(start, end)` and `onSeek(position)` take seconds.
  constructor(canvas, onLoop, onSeek) {
    this.canvas = canvas;
    this.buffers = [];
    this.duration = 1;
    this.columns = null; // the outline at the canvas's width
    let from = null;
    const place = (event) => {
      const box = canvas.getBoundingClientRect();
      return Math.min(1, Math.max(0, (event.clientX - box.left) / box.width)) * this.duration;
    };
    const width = (a, b) => (Math.abs(a - b) / this.duration) * canvas.clientWidth;
    canvas.addEventListener("pointerdown", (event) => {
      from = place(event);
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointerup", (event) => {
      if (from === null) return;
      const to = place(event);
      if (width(from, to) < 6) onSeek(to);
      else onLoop(Math.min(from, to), Math.max(from, to));
      from = null;
    });
    canvas.addEventListener("pointercancel", () => (from = null));
    new ResizeObserver(() => (this.columns = null)).observe(canvas);
  }

  show(buffers, duration) {
    this.buffers = buffers;
    this.duration = duration;
    this.columns = null;
  }

  draw(loop, position) {
    const { canvas } = this;
    const scale = window.devicePixelRatio || 1;
    const width = Math.round(canvas.clientWidth * scale);
    const height = Math.round(canvas.clientHeight * scale);
    if (!width || !height) return;
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const [bar, step] = [Math.round(2 * scale), Math.round(3 * scale)]; // whole pixels, so that all bars look alike
    this.columns ??= outline(this.buffers, Math.max(1, Math.ceil(width / step)));
    const style = getComputedStyle(canvas);
    const colour = (name) => style.getPropertyValue(name).trim();
    const at = (seconds) => (seconds / this.duration) * width;
    const paper = canvas.getContext("2d");
    paper.clearRect(0, 0, width, height);
    paper.fillStyle = colour("--wash");
    paper.fillRect(at(loop.start), 0, at(loop.end) - at(loop.start), height);
    const loudest = Math.max(...this.columns, 1e-4);
    this.columns.forEach((peak, i) => {
      const x = i * step;
      const inside = x >= at(loop.start) && x < at(loop.end);
      const tall = Math.max(scale, (0.92 * height * peak) / loudest);
      paper.fillStyle = colour(inside ? "--accent" : "--line");
      paper.fillRect(x, (height - tall) / 2, bar, tall);
    });
    paper.fillStyle = colour("--text");
    paper.fillRect(Math.min(at(position), width - 2 * scale), 0, 2 * scale, height);
  }
}

// The largest magnitude of any of the buffers in each of `count` equal parts.
function outline(buffers, count) {
  const peaks = new Array(count).fill(0);
  for (const buffer of buffers) {
    for (let channel = 0; channel < buffer.numberOfChannels; channel++) {
      const samples = buffer.getChannelData(channel);
      for (let i = 0; i < count; i++) {
        const end = Math.floor(((i + 1) * samples.length) / count);
        for (let k = Math.floor((i * samples.length) / count); k < end; k++) {
          peaks[i] = Math.max(peaks[i], Math.abs(samples[k]));
        }
      }
    }
  }
  return peaks;
}
