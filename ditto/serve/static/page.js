// The page of `ditto serve`. What models, texts and servers say becomes text nodes and attributes, never markup.
"use strict";

const $ = (id) => document.getElementById(id);
const SVG = $("mark").namespaceURI; // what makes an element of a drawing
let key = ""; // of the daemon, where it has one: in this variable alone
let models = [];
let asking = null; // what ends the question under way
let pictures = []; // drawn again when the colours change

// Elements ------------------------------------------------------------------------------------------

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}
const el = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
const percent = (fraction) => `${(100 * fraction).toFixed(3)}%`;
const count = (n) => n.toLocaleString("en-US");
const seconds = (s) => `${s >= 0.995 || s === 0 ? s.toFixed(2) : s.toFixed(3)} s`;

function size(n) {
  for (const unit of ["B", "kB", "MB"]) {
    if (n < 999.5) return unit === "B" ? `${n} B` : `${n.toFixed(1)} ${unit}`;
    n /= 1000;
  }
  return `${n.toFixed(2)} GB`;
}

function notice(title, lines, bad, button) {
  const box = el("div", { class: bad ? "notice bad" : "notice" }, el("b", {}, title));
  box.append(...lines.map((line) => el("p", {}, line)));
  if (button) box.append(button);
  $("notices").append(box);
}

// The daemon ----------------------------------------------------------------------------------------

async function call(path, options = {}) {
  const headers = { ...options.headers };
  if (key) headers.Authorization = `Bearer ${key}`;
  const reply = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
  if (reply.status === 401) {
    $("key").hidden = false;
    $("key-wrong").textContent = key ? "The daemon did not take this key." : "";
    $("key-text").focus();
  }
  return reply;
}

async function failureOf(reply) {
  const said = await reply.json().catch(() => ({}));
  return said.failed ?? { code: `HTTP ${reply.status}`, message: said.error ?? reply.statusText, todo:
    reply.status === 401 ? "Give the daemon's key above." : "See what the daemon printed where it was started." };
}

const GONE = { code: "NO DAEMON", message: "The daemon does not answer.", todo: "Start it: ditto serve." };

async function load() {
  const chosen = $("model").value;
  $("notices").replaceChildren();
  try {
    const reply = await call("page/models");
    if (!reply.ok) return failed(await failureOf(reply));
    const said = await reply.json();
    $("key").hidden = true;
    $("version").textContent = `ditto ${said.version}. Nothing on this page is loaded from elsewhere. The servers get shares of ` +
      "what you type, and nothing else of it.";
    models = said.models;
  } catch {
    return failed(GONE);
  }
  $("model").replaceChildren(...models.map((model) => el("option", { value: model.name }, model.name)));
  if (models.some((model) => model.name === chosen)) $("model").value = chosen;
  $("model").disabled = $("go").disabled = !models.length;
  choose();
}

function choose() {
  const model = models.find((one) => one.name === $("model").value);
  if (!model) {
    $("about").textContent = "No model is shared with this client. Share one: ditto model share NAME, then reload.";
    return;
  }
  const labels = model.labels.join(", ");
  const does = { vector: "gives a vector for a text", labels: `labels a text: ${labels}`, text: "continues a text",
    tokens: `labels every token: ${labels}`, span: "finds a span of a text" };
  const what = model.labels.length === 1 ? "gives a number for a text" : does[model.kind] ?? model.kind;
  const shown = what.length > 160 ? `${what.slice(0, 160)}…` : what;
  $("about").textContent = `${model.architecture}; ${shown}. Up to ${count(model.max_length)} tokens, preset ` +
    `${model.preset}, owned by ${model.owner}.`;
  const writes = model.kind === "text";
  $("writing").hidden = !writes;
  $("second-part").hidden = writes;
  $("text-label").textContent = writes ? "Prompt" : model.kind === "span" ? "Question" : "Text";
  $("second-label").textContent = model.kind === "vector" ? "Compare with (optional)" :
    model.kind === "span" ? "Text to find it in" : "Second text of a pair (optional)";
}

// Asking --------------------------------------------------------------------------------------------

async function ask() {
  if (asking || $("go").disabled) return;
  const model = models.find((one) => one.name === $("model").value);
  const question = { model: model.name, text: $("text").value };
  if (model.kind === "text") {
    question.tokens = Number($("tokens").value);
    question.temperature = Number($("temperature").value);
  } else {
    question.second = $("second").value.trim() ? $("second").value : "";
  }
  asking = new AbortController();
  const job = { began: performance.now(), layers: 0, done: 0, prompt: question.text, stopped: false };
  begin(job);
  const clock = setInterval(() => { $("elapsed").textContent = passed(job); }, 100);
  try {
    const reply = await call("page/ask", { method: "POST", headers: { "Content-Type": "application/json" },
      body: JSON.stringify(question), signal: asking.signal });
    if (!reply.ok) failed(await failureOf(reply));
    else for await (const said of events(reply.body)) ON[said.event]?.(said, job);
  } catch (error) {
    if (error.name === "AbortError") notice("Stopped", ["The job ends. Nothing of it stays at the servers."], false);
    else failed(GONE);
  } finally {
    clearInterval(clock);
    asking = null;
    $("running").hidden = $("stop").hidden = true;
    $("go").hidden = false;
    $("answer").setAttribute("aria-busy", "false");
  }
}

const passed = (job) => `${((performance.now() - job.began) / 1000).toFixed(1)} s`;

function begin(job) {
  for (const id of ["cost", "rounds", "seen", "facts"]) $(id).hidden = true;
  $("answer").replaceChildren();
  $("answer").setAttribute("aria-busy", "true");
  $("notices").replaceChildren();
  $("progress").replaceChildren();
  $("progress").setAttribute("aria-valuenow", "0");
  $("doing").textContent = "Sending the question";
  $("elapsed").textContent = passed(job);
  $("running").hidden = $("stop").hidden = false;
  $("go").hidden = true;
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    const pieces = (held + part.value).split("\n\n");
    held = pieces.pop();
    for (const piece of pieces) yield JSON.parse(piece.slice("data: ".length));
  }
}

const ON = {
  waiting: (said) => { $("doing").textContent = `Waiting: ${said.ahead} asked here before`; },
  queued: (said) => { $("doing").textContent = `Waiting: ${said.position + 1} in the coordinator's queue`; },
  accepted: (said, job) => {
    job.layers = said.layers.length;
    $("progress").replaceChildren(...said.layers.map(() => el("i")));
    $("progress").setAttribute("aria-valuemax", job.layers);
    $("doing").textContent = "Shares are with both parties";
  },
  layer: (said, job) => {
    const bar = $("progress").children[said.layer];
    if (bar) bar.className = said.phase === "online" ? "done" : "offline";
    if (said.phase !== "online") return;
    job.done = Math.min(said.layer + 1, job.layers);
    $("progress").setAttribute("aria-valuenow", job.done);
    const which = said.layer < job.layers ? ` (${job.done} of ${job.layers})` : "";
    $("doing").textContent = `Computed on shares: ${said.name}${which}`;
  },
  token: (said, job) => {
    if (!job.text) {
      job.text = el("span");
      $("answer").replaceChildren(el("p", { class: "written" }, el("span", { class: "prompt" }, job.prompt), job.text));
    }
    job.text.append(said.text);
  },
  answer: (said, job) => {
    $("answer").replaceChildren(...ANSWER[said.kind](said, job));
    if (said.in_range === false) notice("This answer may be wrong", [
      `Values left their calibrated range in ${said.out_of_range_layers.slice(0, 6).join(", ")}.`,
      "Calibrate the model on texts like this one, and share it again: ditto model import DIR --calibrate FILE.",
    ], false);
  },
  cost: (said) => { drawCost(said); drawRounds(said.timeline, said.online.rounds); },
  seen: (said) => drawSeen(said),
  failed: (said) => failed(said),
};

function failed(said) {
  const lines = [said.message, said.todo];
  let button = null;
  if (said.retry_s !== null && said.retry_s !== undefined) {
    button = el("button", { type: "button", disabled: "" }, `Ask again, in ${Math.ceil(said.retry_s)} s`);
    setTimeout(() => { button.disabled = false; button.textContent = "Ask again"; }, 1000 * said.retry_s);
    button.addEventListener("click", ask);
  }
  notice(said.code, lines, true, button);
}

// Answers -------------------------------------------------------------------------------------------

const ANSWER = {
  labels: (said) => {
    const shares = (one) => `${(100 * one.probability).toFixed(1)} %`;
    const rows = said.labels.map((one) => el("li", {}, el("b", {}, one.label),
      svg("svg", { "aria-hidden": "true" }, svg("rect", { width: percent(one.probability), height: "100%" })),
      el("span", {}, shares(one))));
    const more = rows.splice(8), bars = (some) => el("ul", { class: "bars" }, ...some);
    const shown = [el("p", { class: "big" }, said.chosen.join(", ") || "no label"), bars(rows)];
    if (more.length) shown.push(el("details", {}, el("summary", {}, `${more.length} more`), bars(more)));
    return shown;
  },
  scores: (said) => said.scores.flatMap(([label, score]) =>
    [el("p", { class: "big" }, score.toFixed(4)), el("p", { class: "soft" }, label)]),
  vector: (said) => {
    const strips = said.vectors.map((vector, i) => el("figure", { class: "strip" }, strip(vector),
      el("figcaption", {}, `${said.vectors.length > 1 ? `Text ${i + 1}: ` : ""}${vector.length} numbers, `
        + `${vector.slice(0, 3).map((x) => x.toFixed(4)).join(", ")}, …`)));
    const legend = el("p", { class: "soft" }, "Blue: above zero, orange: below; the stronger the larger.");
    const near = said.cosine === null ? [] : [el("p", { class: "big" }, `cosine ${said.cosine.toFixed(4)}`)];
    return [...near, ...strips, legend];
  },
  tokens: (said) => [el("ul", { class: "chips" }, ...said.tokens.map((one) =>
    el("li", {}, `${one.token} `, el("b", {}, one.label))))],
  span: (said) => [el("p", { class: "big" }, said.text || "no span"),
    el("p", { class: "soft" }, `tokens ${said.first} to ${said.last}`)],
  text: (said, job) => [el("p", { class: "written" }, el("span", { class: "prompt" }, job.prompt), said.text),
    el("p", { class: "soft" }, `${said.tokens_per_second.toFixed(2)} tokens a second after the first`)],
};

function strip(vector) {
  const most = Math.max(...vector.map(Math.abs), 1e-9);
  const cells = vector.map((value, i) => svg("rect", { class: value < 0 ? "minus" : "plus", x: i, width: 1.02,
    height: 1, "fill-opacity": (Math.abs(value) / most).toFixed(2) }));
  return svg("svg", { viewBox: `0 0 ${vector.length} 1`, preserveAspectRatio: "none", role: "img",
    "aria-label": `a vector of ${vector.length} numbers as colours` }, ...cells);
}

// What it cost --------------------------------------------------------------------------------------

function drawCost(said) {
  $("facts").textContent = "Computed on shares: the text and this answer are on this machine only."
    + (said.in_range ? " Every value stayed in its calibrated range." : "");
  $("facts").hidden = false;
  const cards = [
    [seconds(said.online.seconds), "online"], [count(said.online.rounds), "rounds"],
    [size(said.online.bytes_sent[0]), "sent by party 0"], [size(said.online.bytes_sent[1]), "sent by party 1"],
    [seconds(said.offline.seconds), "offline"],
    [size(said.offline.bytes_to_party[0] + said.offline.bytes_to_party[1]), "from the dealer to both"],
    [seconds(said.wall_seconds), "in all, as this machine saw it"],
  ];
  const card = ([value, name]) => el("div", {}, el("dt", {}, name), el("dd", {}, value));
  $("figures").replaceChildren(...cards.map(card));
  $("cost").hidden = false;
}

function drawRounds(timeline, all) {
  if (!timeline) return;
  const rounds = timeline.rows.reduce((sum, row) => sum + row.rounds, 0);
  const which = rounds < all ? `The prompt's ${count(rounds)} of all ${count(all)} rounds` : `${count(rounds)} rounds`;
  $("rounds-said").textContent = `${which}, in ${seconds(timeline.seconds)}, as party ${timeline.party} saw them, which `
    + "was online longer. In each round both parties send masked values and wait for the other's. Point at a bar for "
    + "its figures.";
  const block = ([at, wide], colour, y, height) =>
    svg("rect", { class: colour, x: percent(at), y, width: percent(wide), height });
  const rows = timeline.rows.flatMap((row) => {
    const online = `${row.name}, online: computing ${seconds(row.computing)}, waiting ${seconds(row.waiting)}, `
      + `${count(row.rounds)} rounds, ${size(row.bytes)} sent`;
    const offline = `${row.name}, offline: ${seconds(row.offline_seconds)}`;
    return [el("span", { title: row.name }, row.name), svg("svg", {},
      svg("g", {}, svg("title", {}, offline), block(row.offline, "offline", 3, 5)),
      svg("g", {}, svg("title", {}, online), block(row.online, "waiting", 9, 11),
        ...row.busy.map((span) => block(span, "compute", 9, 11))))];
  });
  const axis = svg("svg", { class: "axis" }, ...timeline.ticks.map(([at, anchor, moment]) => svg("g", {},
    svg("line", { x1: percent(at), x2: percent(at), y1: 0, y2: 4 }),
    svg("text", { x: percent(at), y: 15, "text-anchor": anchor }, `${Number(moment.toPrecision(6))} s`))));
  $("gantt").replaceChildren(...rows, el("span"), axis);
  const heads = ["layer", "offline s", "computing s", "waiting s", "rounds", "sent"];
  const table = [el("tr", {}, ...heads.map((head) => el("th", { scope: "col" }, head)))];
  for (const row of timeline.rows) {
    const cells = [row.name, row.offline_seconds.toFixed(3), row.computing.toFixed(3), row.waiting.toFixed(3),
      count(row.rounds), size(row.bytes)];
    table.push(el("tr", {}, ...cells.map((cell) => el("td", {}, cell))));
  }
  $("layers").replaceChildren(...table);
  $("rounds").hidden = false;
}

// What each server saw ------------------------------------------------------------------------------

function drawSeen(said) {
  pictures = [];
  $("servers").replaceChildren(partyZero(said), partyOne(said), coordinator(said.told), dealer());
  drawTogether(said);
  $("caveat").textContent = "That bytes look like noise shows that nothing went out in the clear; it proves no more. "
    + "Why each share alone is independent of the text is argued in docs/security.md. Party 0 and party 1 together could "
    + "add their shares up: that they, and the dealer, do not join is what privacy rests on. What the parties send each "
    + "other later are values under fresh masks; those bytes are not here, only their number.";
  $("seen").hidden = false;
}

function partyZero({ party0, stages, input, together }) {
  const each = stages > 1 ? `, one for each of the ${stages} stages; the first` : "";
  const children = [el("p", {}, `A fresh random seed of 16 bytes${each}:`), el("div", { class: "hex" }, party0.seed),
    el("p", { class: "soft" }, "It was drawn at random, whatever the text says. All else in these messages is public: "
      + "the job's name and terms.")];
  if (together) children.push(
    el("p", {}, `Its share is what the seed expands to there, ${count(input.numbers)} numbers mod 2^${input.bits}. The `
      + "first bytes, which were not sent:"), hex(together.expanded, "party 0's share"));
  return server("Party 0", `${count(party0.bytes)} bytes, ${party0.messages} messages`, ...children);
}

function partyOne({ party1, input }) {
  const { total, entropy } = party1.shares;
  return server("Party 1", `${count(party1.bytes)} bytes, ${party1.messages} messages`,
    el("p", {}, `Its share: the input less party 0's share, ${count(input.numbers)} numbers mod 2^${input.bits}. The `
      + "first bytes:"), hex(party1.first, "party 1's share"),
    histogram(party1.shares, `All ${count(total)} bytes by value, 0 to 255: ${entropy.toFixed(4)} bits of entropy a byte. `
      + `As many uniform bytes have ${uniform(total).toFixed(4)} on average.`));
}

function coordinator(told) {
  const writes = told.new_tokens > 1 ? `, at most ${told.new_tokens} new tokens` : "";
  return server("Coordinator", "nothing of the text",
    el("p", {}, `What all four servers are told: the model ${told.model} of ${told.owner}, ${told.texts} `
      + `text${told.texts > 1 ? "s" : ""} padded to ${told.tokens} tokens${writes}, and when.`),
    el("p", { class: "soft" }, "It steps the job and adds up rounds, bytes and seconds. It gets no share."));
}

function dealer() {
  return server("Dealer", "nothing of the text",
    el("p", {}, "This machine has no connection to the dealer, so it sent it nothing."),
    el("p", { class: "soft" }, "The dealer knows the model's public description, and deals the same kind of correlated "
      + "randomness whatever the text says."));
}

function server(name, got, ...children) {
  return el("article", { class: "panel server" }, el("h3", {}, name, el("span", {}, got)), ...children);
}

const hex = (text, whose) =>
  el("div", { class: "hex", tabindex: "0", role: "group", "aria-label": `first bytes of ${whose}` }, text);

// Expected entropy of n bytes drawn uniformly: 8 less (256 - 1) / (2 n ln 2), to first order (Miller and Madow)
const uniform = (n) => Math.max(0, 8 - 255 / (2 * n * Math.LN2));

function histogram(bytes, caption) {
  const most = Math.max(...bytes.counts, 1);
  const bars = bytes.counts.map((n, value) => `M${value} 60v${(-56 * n / most).toFixed(2)}h1V60z`).join("");
  const drawing = svg("svg", { class: "histogram", viewBox: "0 0 256 60", preserveAspectRatio: "none", role: "img",
    "aria-label": `histogram of ${count(bytes.total)} bytes` }, svg("path", { d: bars }));
  return el("figure", {}, drawing, el("figcaption", {}, caption));
}

function drawTogether(said) {
  const both = said.together, input = said.input;
  if (!both) {
    $("together-said").textContent = "This input is too large to be kept here and added up again.";
    $("together").replaceChildren();
    return;
  }
  const many = Math.min(input.numbers, both.grey[0].length / 2);
  const some = `${count(both.nonzero)} of the ${count(input.numbers)} numbers are ${both.ones ? "1" : "not 0"}.`;
  const meaning = both.ones ? `Each token of the padded text is a row of ${count(input.shape.at(-1))} numbers, all 0 `
    + `but for few: the word's place in the vocabulary. ${some}` : some;
  $("together-said").textContent = "Only here, where the question was asked, are both shares. Below they are added up "
    + `again, from the bytes that went out. ${meaning}`;
  const where = `numbers ${count(both.start)} to ${count(both.start + many - 1)}`;
  const parts = [["", "party 0's share"], ["+", "party 1's share"], ["=", "their sum: the input"]];
  const sum = el("div", { class: "sum" }, ...parts.flatMap(([sign, name], i) => [el("b", {}, sign),
    el("figure", {}, picture(both.grey[i], i === 2, `${where} of ${name} as grey values`),
      el("figcaption", {}, `${name}, ${where}`))]));
  const heads = ["number", "party 0", "party 1", `sum mod 2^${input.bits}`];
  const table = el("table", { class: "numbers" }, el("caption", {}, "The same as numbers, around one that is not 0"),
    el("tr", {}, ...heads.map((head) => el("th", { scope: "col" }, head))));
  for (const row of both.numbers)
    table.append(el("tr", row[0] === String(both.place) ? { class: "here" } : {},
      ...row.map((n) => el("td", {}, count(BigInt(n))))));
  $("together").replaceChildren(sum, el("div", {}, el("div", { class: "wide" }, table),
    histogram(both.sum, "The input's own bytes, which nobody was sent: "
      + `${(Math.floor(10000 * both.sum.counts[0] / both.sum.total) / 100).toFixed(2)} % are 0, `
      + `${both.sum.entropy.toFixed(4)} bits of entropy a byte.`)));
  pictures.forEach((draw) => draw());
}

function picture(hex, sparse, label) {
  const n = hex.length / 2, wide = Math.min(128, n);
  const canvas = el("canvas", { width: wide, height: Math.ceil(n / wide), role: "img", "aria-label": label });
  pictures.push(() => {
    const style = getComputedStyle(document.documentElement);
    const [from, to] = ["--field", sparse ? "--offline" : "--ink"].map((name) => colour(style.getPropertyValue(name)));
    const context = canvas.getContext("2d"), image = context.createImageData(canvas.width, canvas.height);
    for (let i = 0; i < n; i++) {
      const share = parseInt(hex.slice(2 * i, 2 * i + 2), 16) / 255;
      for (let c = 0; c < 3; c++) image.data[4 * i + c] = from[c] + share * (to[c] - from[c]);
      image.data[4 * i + 3] = 255;
    }
    context.putImageData(image, 0, 0);
  });
  return canvas;
}

function colour(text) {
  const digits = text.trim().slice(1);
  const full = digits.length === 3 ? [...digits].map((d) => d + d).join("") : digits;
  return [0, 2, 4].map((at) => parseInt(full.slice(at, at + 2), 16));
}

// Begin ---------------------------------------------------------------------------------------------

const stop = () => asking?.abort();
$("ask").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
$("ask").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) ask();
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") stop(); });
$("stop").addEventListener("click", stop);
$("model").addEventListener("change", choose);
$("again").addEventListener("click", load);
$("key").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key-text").value.trim();
  $("key-text").value = "";
  load();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => pictures.forEach((draw) => draw()));
load();
