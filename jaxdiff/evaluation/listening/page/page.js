// A session from its first screen to the completion code. Whatever it must remember is on the server; the browser keeps
// the session's random name, so that it goes on where it was when the page is opened again.

import { Player } from "./player.js";
import { Refused, Session, about, sound } from "./saving.js";
import { Waveform } from "./waveform.js";

const KEPT = "jaxdiff-listening-session";
const HEARD = 1; // seconds of a sound that count as heard; in a MOS test all of it must be
const LETTERS = "ABCDEFGHIJKL";
const $ = (id) => document.getElementById(id);

let session = null;
let test = null; // what the server tells: texts, pages, answers
let page = null; // the page that is shown, with what happens on it
let context = null;

// Small things -------------------------------------------------------------------------------------------------------

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") made.className = value;
    else if (name.startsWith("aria-") || name === "for") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

function say(text) {
  $("said").textContent = text;
}

function show(section, focus) {
  for (const id of ["welcome", "trial", "questions", "end"]) $(id).hidden = id !== section;
  $("error").hidden = true;
  $(focus)?.focus();
  window.scrollTo(0, 0);
}

function fail(error) {
  $("error").textContent = error instanceof Refused ? `${error.message}.` : `Something went wrong: ${error.message}`;
  $("error").hidden = false;
}

function entitle(title) {
  document.title = title;
  $("title").textContent = title;
}

function onState(state) {
  const texts = { idle: "", saving: "Saving …", waiting: "No connection, trying again …", saved: "Saved" };
  $("saved").textContent = texts[state];
  $("saved").className = state;
}

function keptName() {
  try {
    return localStorage.getItem(KEPT);
  } catch {
    return null;
  }
}

function keepName(name) {
  try {
    if (name === null) localStorage.removeItem(KEPT);
    else localStorage.setItem(KEPT, name);
  } catch {
    // without storage the session ends with the page
  }
}

// Beginning ----------------------------------------------------------------------------------------------------------

async function open() {
  const { title, screens } = await about();
  entitle(title);
  $("screens").textContent = `There are ${screens} screens, with the training; you can close the page and go on later.`;
  const name = keptName();
  if (name === null) return show("welcome", "listener");
  session = new Session(name, onState);
  try {
    enter(await session.tell());
  } catch (error) {
    if (error.status !== 404) return fail(error);
    keepName(null);
    show("welcome", "listener");
  }
}

$("begin").addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = event.target.querySelector("button");
  button.disabled = true;
  try {
    const bytes = crypto.getRandomValues(new Uint8Array(16));
    const name = keptName() ?? [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
    session = new Session(name, onState);
    const told = await session.begin($("listener").value);
    keepName(name);
    enter(told);
  } catch (error) {
    fail(error);
  } finally {
    button.disabled = false;
  }
});

function enter(told) {
  test = told;
  entitle(test.title);
  $("instruction-text").replaceChildren(
    ...test.instructions.split(/\n\s*\n/).map((text) => element("p", { textContent: text })),
  );
  $("instructions").hidden = !test.instructions;
  $("traps").textContent = test.traps;
  $("traps").hidden = !test.traps;
  $("question").textContent = test.question;
  for (const { answers } of test.pages) {
    for (const { change } of Object.values(answers)) session.change = Math.max(session.change, change);
  }
  goOn();
}

function goOn() {
  const next = test.pages.find((one) => !one.left);
  if (next) turnTo(next).catch(fail);
  else if (test.code) finished(test.code);
  else ask();
}

// A screen -----------------------------------------------------------------------------------------------------------

async function turnTo(next) {
  const counted = test.pages.filter((one) => one.training === next.training);
  const place = `${counted.indexOf(next) + 1} of ${counted.length}`;
  const training = counted.length > 1 ? `Training ${place}` : "Training";
  const before = Object.values(next.answers).map((answer) => answer.seconds);
  const [names, known] = [next.sounds, next.open];
  page = {
    ...next,
    all: known ? [known, ...names] : names,
    heard: new Map(),
    counted: new Set(), // the sounds that were heard for long enough
    answers: { ...next.answers },
    began: performance.now() - 1000 * Math.max(0, ...before),
    player: null,
    leaving: false,
  };
  const rated = Object.keys(page.answers); // before the page was opened again; two sounds are compared when both were heard
  page.counted = new Set(test.kind !== "mushra" && rated.length ? page.all : rated);
  const shown = page;
  $("heading").textContent = next.training ? training : `Screen ${place}`;
  $("training").hidden = !next.training;
  $("instructions").open = next.training && test.pages[0] === next;
  build();
  update();
  show("trial", "heading");
  $("transport").setAttribute("aria-busy", "true");
  const files = await Promise.all(page.all.map((name) => sound(name, () => onState("waiting"))));
  const rate = new DataView(files[0]).getUint32(24, true); // of a WAV file
  if (context?.sampleRate !== rate) {
    await context?.close();
    context = new AudioContext({ sampleRate: rate });
  }
  const buffers = await Promise.all(files.map((file) => context.decodeAudioData(file)));
  if (page !== shown) return;
  page.player = new Player(context, new Map(page.all.map((name, i) => [name, buffers[i]])));
  waveform.show(known && test.kind !== "abx" ? [buffers[0]] : buffers, page.player.duration);
  for (const id of ["loop-start", "loop-end"]) $(id).max = page.player.duration;
  showLoop();
  $("transport").removeAttribute("aria-busy");
  update();
}

// What a sound is called on the screen.
function called(name) {
  if (name === page.open) return test.kind === "abx" ? "X" : "Reference";
  return page.sounds.length > 1 ? LETTERS[page.sounds.indexOf(name)] : "the sound";
}

// The controls of a page; `page.rows` holds those of each sound.
function build() {
  page.rows = new Map();
  $("open").hidden = !page.open;
  $("open-key").hidden = $("open-does").hidden = !page.open;
  if (page.open) {
    const name = called(page.open);
    $("open").textContent = name === "X" ? "Play X" : name;
    $("open").onclick = () => play(page.open);
    $("open-key").firstChild.textContent = name[0];
    $("open-does").textContent = `play ${name === "X" ? "X" : "the reference"}`;
    page.rows.set(page.open, { button: $("open") });
  }
  const mushra = test.kind === "mushra";
  const single = page.sounds.length === 1;
  $("sounds").className = mushra ? "" : "pair";
  $("sounds").hidden = single;
  $("sounds").replaceChildren(...(single ? [] : page.sounds.map((name) => row(name, mushra))));
  if (single) page.rows.set(page.sounds[0], { button: $("play") });
  $("play").hidden = false;
  $("scale").hidden = !mushra;
  if (mushra) {
    const labels = [...test.scale].reverse().map(([, label]) => element("span", { textContent: label }));
    $("scale").replaceChildren(element("div", {}, ...labels));
  }
  $("choices").hidden = mushra;
  for (const part of document.querySelectorAll("dl .several")) part.hidden = single;
  for (const part of document.querySelectorAll("dl .sliders")) part.hidden = !mushra;
  if (!mushra) {
    $("choices-legend").textContent = "Your answer";
    const given = page.answers[page.rated[0]]?.value;
    $("choices").replaceChildren(
      $("choices-legend"),
      ...test.scale.map(([value, label]) => {
        const input = element("input", { type: "radio", name: "choice", value: String(value), checked: value === given });
        input.addEventListener("change", () => rate(page.rated[0], value));
        const text = test.kind === "mos" ? `${value}  ${label}` : label;
        return element("label", { class: "line" }, input, text);
      }),
    );
  }
}

function row(name, mushra) {
  const letter = called(name);
  const button = element("button", { type: "button", class: "signal", textContent: `Play ${letter}` });
  button.addEventListener("click", () => play(name));
  const made = element("li", { class: "row" }, button);
  const controls = { button, row: made };
  if (mushra) {
    const value = page.answers[name]?.value;
    const slider = element("input", { type: "range", min: "0", max: "100", step: "1", value: String(value ?? 0) });
    slider.setAttribute("aria-label", `Rating of sound ${letter}`);
    const keep = () => rate(name, Number(slider.value));
    slider.addEventListener("input", keep);
    slider.addEventListener("pointerup", () => slider.disabled || keep());
    slider.addEventListener("keydown", (event) => event.key === "Enter" && !event.ctrlKey && keep());
    Object.assign(controls, { slider, output: element("output") });
    made.append(element("div", { class: "track" }, slider), controls.output);
  }
  page.rows.set(name, controls);
  return made;
}

// What can be done now, and what is still to be done.
function update() {
  const { player } = page;
  const playing = player?.playing ? player.active : null;
  for (const [name, { button, row, slider, output }] of page.rows) {
    button.disabled = !player;
    if (button !== $("play")) button.setAttribute("aria-pressed", String(playing === name));
    row?.classList.toggle("playing", playing === name);
    if (!slider) continue;
    const value = page.answers[name]?.value;
    slider.disabled = !(playing === name && page.counted.has(name));
    slider.classList.toggle("unrated", value === undefined);
    slider.setAttribute("aria-valuetext", value === undefined ? "not rated" : `${value}, ${band(value)}`);
    output.textContent = value ?? "–";
  }
  $("play").disabled = !player;
  $("play").textContent = playing ? "Pause" : "Play";
  const unheard = page.all.filter((name) => !page.counted.has(name));
  const unrated = page.rated.filter((name) => !(name in page.answers));
  $("choices").disabled = unheard.length > 0;
  $("missing").textContent = player ? missing(unheard, unrated) : "Loading the sounds …";
  $("next").disabled = !player || unheard.length + unrated.length > 0 || page.leaving;
}

function missing(unheard, unrated) {
  const list = (names) => names.map(called).join(", ");
  const parts = [];
  if (unheard.length) parts.push(page.all.length > 1 ? `Still to be heard: ${list(unheard)}.` : "Please hear it to its end.");
  if (unrated.length) parts.push(page.rated.length > 1 ? `Still to be rated: ${list(unrated)}.` : "Your answer is missing.");
  return parts.join(" ");
}

function band(value) {
  return test.scale.find(([least]) => value >= least)[1];
}

function rate(name, value) {
  if (!page.counted.has(name) || page.leaving) return;
  page.answers[name] = session.numbered(value, elapsed());
  session.save(page.page, name, page.answers[name]).catch(fail);
  update();
}

function elapsed() {
  return Math.min(86400, (performance.now() - page.began) / 1000);
}

$("next").addEventListener("click", async () => {
  const left = page;
  if ($("next").disabled) return;
  left.leaving = true;
  left.player.stop();
  update();
  try {
    await session.leave(left.page, left.answers, elapsed(), left.all);
    const told = test.pages.find((one) => one.page === left.page);
    Object.assign(told, { left: true, answers: left.answers });
    goOn();
  } catch (error) {
    left.leaving = false;
    update();
    fail(error);
  }
});

// Playing ------------------------------------------------------------------------------------------------------------

const waveform = new Waveform(
  $("waveform"),
  (start, end) => loop(start, end),
  (position) => {
    page?.player?.seek(position);
    tick();
  },
);

async function play(name) {
  const { player } = page;
  if (!player) return;
  await context.resume();
  if (page.player !== player) return; // another page came
  if (!player.playing || player.active !== name) {
    const wasOnSlider = document.activeElement?.type === "range" && document.activeElement.closest(".row");
    player.play(name);
    say(`${called(name)} plays`);
    update();
    if (wasOnSlider) page.rows.get(name).button.focus();
  }
}

async function pause() {
  const { player } = page;
  if (!player) return;
  if (player.playing) player.stop();
  else return play(player.active ?? page.all[0]);
  update();
}

function loop(start, end) {
  page?.player?.setLoop(start, end);
  showLoop();
}

function showLoop() {
  const { player } = page;
  for (const [id, value] of [["loop-start", player.loop.start], ["loop-end", player.loop.end]]) {
    $(id).value = value;
    $(id).setAttribute("aria-valuetext", `${value.toFixed(2)} seconds`);
  }
  tick();
}

$("play").addEventListener("click", pause);
$("loop-start").addEventListener("input", () => loop(Number($("loop-start").value), page.player.loop.end));
$("loop-end").addEventListener("input", () => {
  const end = Math.max(0.5, Number($("loop-end").value));
  loop(Math.min(page.player.loop.start, end - 0.5), end);
});
$("whole").addEventListener("click", () => loop(0, Infinity));

// Count what is heard, prepare the loop's fades and move the play head.
let last = 0;
function tick() {
  const player = page?.player;
  if (!player) return;
  player.prepare();
  const now = context.currentTime;
  if (player.playing) {
    const heard = (page.heard.get(player.active) ?? 0) + Math.min(0.5, Math.max(0, now - last));
    page.heard.set(player.active, heard);
    const enough = test.kind === "mos" ? player.duration : Math.min(HEARD, player.duration);
    // An answer's seconds are of another clock than the sound's, and the report leaves out who took less than it lasts.
    if (heard >= enough - 0.05 && elapsed() >= enough && !page.counted.has(player.active)) {
      page.counted.add(player.active);
      update();
      if (player.active !== page.open) say(`${called(player.active)} can be rated now`);
    }
  }
  last = now;
  const at = player.position();
  $("clock").textContent = `${at.toFixed(1)} of ${player.duration.toFixed(1)} s`;
  waveform.draw(player.loop, at);
}
setInterval(tick, 50);

// Keys ---------------------------------------------------------------------------------------------------------------

document.addEventListener("keydown", (event) => {
  if ($("trial").hidden || !page?.player || event.altKey || event.metaKey) return;
  if (event.ctrlKey) {
    if (event.key === "Enter") $("next").click();
    return;
  }
  const within = event.target;
  const moves = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 10, PageDown: -10 }[event.key];
  if (moves && within.tagName !== "INPUT" && test.kind === "mushra" && page.player.playing) {
    const controls = page.rows.get(page.player.active);
    if (!controls.slider || controls.slider.disabled) return;
    event.preventDefault();
    controls.slider.value = String(Number(controls.slider.value) + moves);
    rate(page.player.active, Number(controls.slider.value));
    return;
  }
  if (!$("keys").checked || (within.tagName === "INPUT" && within.type === "text")) return;
  const pressed = event.key.toUpperCase();
  const known = page.open && pressed === called(page.open)[0];
  const letter = page.sounds.length > 1 ? LETTERS.indexOf(pressed) : -1;
  if (known) play(page.open);
  else if (letter >= 0 && letter < page.sounds.length) play(page.sounds[letter]);
  else if (event.key === "[") loop(page.player.position(), page.player.loop.end);
  else if (event.key === "]") loop(Math.min(page.player.loop.start, page.player.position() - 0.5), page.player.position());
  else if (event.key === "\\") loop(0, Infinity);
  else if (event.key === " " && !["BUTTON", "SUMMARY"].includes(within.tagName) && within.type !== "checkbox" && within.type !== "radio") pause();
  else return;
  event.preventDefault();
});

window.addEventListener("beforeunload", (event) => {
  if (session?.unsaved) event.preventDefault();
});

// The end ------------------------------------------------------------------------------------------------------------

function ask() {
  if (!test.questions.length) return finish({}).catch(fail);
  const fields = test.questions.map(([question, choices], i) =>
    element(
      "fieldset",
      { class: "choose" },
      element("legend", { textContent: question }),
      ...choices.map((choice) =>
        element(
          "label",
          { class: "line" },
          element("input", { type: "radio", name: `question-${i}`, value: choice, required: true }),
          choice,
        ),
      ),
    ),
  );
  $("ask").replaceChildren(...fields, element("button", { class: "main", textContent: "Finish" }));
  show("questions", "questions-heading");
}

$("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  const given = new FormData(event.target);
  const button = event.target.querySelector("button");
  button.disabled = true;
  try {
    await finish(Object.fromEntries(test.questions.map(([question], i) => [question, given.get(`question-${i}`)])));
  } catch (error) {
    button.disabled = false;
    fail(error);
  }
});

async function finish(choices) {
  const { code } = await session.finish(choices);
  finished(code);
}

function finished(code) {
  page = null;
  $("code").textContent = code;
  show("end", "end-heading");
}

$("again").addEventListener("click", () => {
  keepName(null);
  location.reload();
});

open().catch(fail);
