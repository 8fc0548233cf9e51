
"use strict";
// Shows what content.py gives out: asked from the server, or lying in the page. Text goes in as text, never as HTML.
const find = (id) => document.getElementById(id);
const inPage = JSON.parse(find("data").textContent);
const PAGE_ROWS = 50, BATCH_STEPS = 64, COLOURS = 8, SVG = "http://www.w3.org/2000/svg";
const NUMBER_COLUMNS = new Set(["episode_return", "num_steps", "seed"]);
const HEADS = [["episode_id", "episode"], ["task_id", "task"], ["episode_return", "return"], ["num_steps", "steps"], ["terminated", "end"], ["agent_id", "agent"], ["seed", "seed"], ["success", "success"]];

function make(tag, facts = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(facts)) {
    if (name in node) node[name] = value; else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}
function draw(tag, facts) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(facts)) node.setAttribute(name, value);
  return node;
}
// A field's name for people: "observation", "observation mission", "action", "reward", "exploratory".
const called = (path) => path === "rewards" ? "reward" : path.replace(/^step_columns\//, "").replace(/^(observation|action)s\/(.*)$/, (all, group, name) => name === group ? group : `${group} ${name}`);
const shown = (value) => value === null || value === undefined ? "–" : typeof value === "number" && !Number.isInteger(value) ? String(Number(value.toPrecision(5))) : String(value);
const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
const brief = (value) => Number.isInteger(value) && Math.abs(value) < 1e5 ? String(value) : String(Number(value.toPrecision(3)));
const round = (value) => typeof value === "number" && !Number.isInteger(value) && Math.abs(value) >= 0.01 ? value.toFixed(2) : shown(value);
const ending = (row) => row.terminated && row.truncated ? "both" : row.terminated ? "terminated" : "truncated";
function told(node, sentence) { node.textContent = sentence; node.hidden = !sentence; }

// --- where answers come from ---------------------------------------------------------------------------------------

const token = new URLSearchParams(location.search).get("token") || "";
const address = (name, asked) => `/api/${name}?${new URLSearchParams({...asked, token})}`;
const server = {
  async ask(name, asked = {}) {
    let response;
    try { response = await fetch(address(name, asked)); } catch { throw new Error("the server does not answer: was it stopped?"); }
    const answer = await response.json();
    if (!response.ok) throw new Error(answer.error);
    return answer;
  },
  frame: (id, path, step) => ({url: address("frame", {id, path, step}), step}),
};
const file = {
  async ask(name, asked = {}) {
    const kept = asked.id && inPage.episodes[asked.id];
    if (name === "summary") return inPage.summary;
    if (name === "episodes") return filePage(asked);
    if (name === "series") return kept.series[asked.path];
    if (name === "steps") return kept.steps[Math.floor(asked.start / BATCH_STEPS)] || {start: asked.start, count: 0, fields: {}};
    if (name === "tokens") return kept.tokens[asked.step] || {message: `This file has the tokens of the first ${kept.tokens.length} steps only.`};
    return kept[name];
  },
  frame(id, path, step) {
    const frames = inPage.episodes[id].frames[path];
    const place = Math.floor(step / frames.every);
    return {url: frames.urls[place], damaged: frames.damaged[place], step: place * frames.every};
  },
};
function filePage({task, lowest, highest, sort, offset, limit}) {
  let rows = inPage.rows.filter((row) => (!task || row.task_id === task)
    && !(lowest !== "" && row.episode_return < Number(lowest)) && !(highest !== "" && row.episode_return > Number(highest)));
  if (sort) {
    const name = sort.replace(/^-/, ""), sign = sort.startsWith("-") ? -1 : 1;
    const order = (a, b) => a === b ? 0 : a === null ? 1 : b === null ? -1 : a < b ? -sign : sign;
    rows = [...rows].sort((a, b) => order(a[name], b[name]));
  }
  return {total: rows.length, offset, rows: rows.slice(offset, offset + limit)};
}
const source = inPage ? file : server;

// --- the table -----------------------------------------------------------------------------------------------------

const list = {sort: "", offset: 0, total: 0, rows: [], asked: 0};

async function loadList(offset) {
  const number = ++list.asked;
  const asked = {task: find("task").value, lowest: find("lowest").value, highest: find("highest").value, where: find("where").value, sort: list.sort, offset, limit: PAGE_ROWS};
  let answer;
  try { answer = await source.ask("episodes", asked); } catch (problem) {
    if (number === list.asked) told(find("list-problem"), problem.message);
    return;
  }
  if (number !== list.asked) return;
  told(find("list-problem"), "");
  Object.assign(list, {offset: answer.offset, total: answer.total, rows: answer.rows});
  find("rows").replaceChildren(...answer.rows.map(tableRow));
  // One task alone needs no column: its name is above.
  find("table-box").classList.toggle("one-task", Boolean(asked.task));
  find("table-box").scrollTop = 0;
  markRow();
  find("page-facts").textContent = answer.total ? `${(offset + 1).toLocaleString("en")}–${(offset + answer.rows.length).toLocaleString("en")} of ${plural(answer.total, "episode")}` : "no episodes";
  find("page-back").disabled = offset === 0;
  find("page-on").disabled = offset + answer.rows.length >= answer.total;
}
function tableRow(row) {
  const open = make("button", {type: "button", "aria-label": `Open episode ${row.episode_id}`, title: row.episode_id}, row.episode_id.slice(0, 8));
  const texts = [row.task_id, round(row.episode_return), row.num_steps, row.damaged ? "damaged" : ending(row), row.agent_id, shown(row.seed), row.success === null ? "–" : row.success ? "yes" : "no"];
  const line = make("tr", {className: row.damaged ? "damaged" : "", title: row.damaged}, make("td", {}, open));
  texts.forEach((text, place) => line.append(make("td", {className: NUMBER_COLUMNS.has(HEADS[place + 1][0]) ? "number" : "", title: text}, String(text))));
  line.addEventListener("click", () => openEpisode(row.episode_id));
  return line;
}
function drawHeads() {
  find("heads").replaceChildren(...HEADS.map(([name, title]) => {
    const down = list.sort === `-${name}`, up = list.sort === name;
    const arrow = make("span", {className: "arrow", "aria-hidden": "true"}, down ? "↓" : up ? "↑" : "");
    const head = make("th", {scope: "col", className: NUMBER_COLUMNS.has(name) ? "number" : ""}, make("button", {type: "button", onclick: () => sortBy(name, down, up)}, title, arrow));
    if (down || up) head.setAttribute("aria-sort", down ? "descending" : "ascending");
    return head;
  }));
}
async function sortBy(name, down, up) {
  // Numbers begin with the largest, texts with A; the third click goes back to the store's order.
  const first = NUMBER_COLUMNS.has(name) || name === "success" ? `-${name}` : name;
  const second = first === name ? `-${name}` : name;
  list.sort = !down && !up ? first : list.sort === first ? second : "";
  drawHeads();
  find("heads").children[HEADS.findIndex(([column]) => column === name)].firstChild.focus();
  await loadList(0);
}
function markRow() {
  [...find("rows").children].forEach((line, place) => {
    if (list.rows[place].episode_id === now.id) { line.setAttribute("aria-current", "true"); line.scrollIntoView({block: "nearest"}); }
    else line.removeAttribute("aria-current");
  });
}
async function neighbour(direction) {
  let place = list.rows.findIndex((row) => row.episode_id === now.id) + direction;
  if (place < 0 && list.offset > 0) { await loadList(Math.max(0, list.offset - PAGE_ROWS)); place = list.rows.length - 1; }
  else if (place >= list.rows.length && list.offset + list.rows.length < list.total) { await loadList(list.offset + PAGE_ROWS); place = 0; }
  if (list.rows[place]) await openEpisode(list.rows[place].episode_id);
}

// --- an episode ----------------------------------------------------------------------------------------------------

const now = {id: "", facts: null, step: 0, batches: new Map(), timer: 0, texts: []};

async function openEpisode(id) {
  if (id === now.id) return;
  stop();
  Object.assign(now, {id, facts: null, step: 0, batches: new Map(), texts: []});
  markRow();
  let facts;
  try { facts = await source.ask("episode", {id}); } catch (problem) {
    if (now.id === id) { find("nothing").hidden = false; find("chosen").hidden = true; find("nothing").textContent = problem.message; }
    return;
  }
  if (now.id !== id) return;
  now.facts = facts;
  find("nothing").hidden = true;
  find("chosen").hidden = false;
  find("episode-title").textContent = facts.task_id;
  find("episode-facts").textContent = `episode ${facts.episode_id.slice(0, 12)} · return ${shown(facts.episode_return)} · ${plural(facts.num_steps, "step")} · ${facts.terminated && facts.truncated ? "terminated and truncated" : ending(facts)}${facts.success === null ? "" : facts.success ? " · success" : " · no success"} · ${facts.agent_id || "unknown agent"}`;
  told(find("episode-damage"), facts.damaged && `This episode is damaged: ${facts.damaged}`);
  for (const part of ["stage", "texts", "tokens", "origin"]) find(part).hidden = Boolean(facts.damaged);
  find("provenance").replaceChildren(...[["id", facts.episode_id], ["content hash", facts.content_hash], ...facts.provenance].flatMap(([name, text]) => [make("dt", {}, name.replaceAll("_", " ")), make("dd", {}, text)]));
  find("scrubber").max = facts.num_steps;
  find("episode").scrollTop = 0;
  if (facts.damaged) return;
  drawPictures();
  await Promise.all([showStep(0), drawPlots(id), drawTexts(id)]);
}
function drawPictures() {
  const fields = now.facts.fields.filter((field) => field.kind === "picture");
  find("pictures").replaceChildren(...fields.map((field) => {
    const image = make("img", {alt: "", draggable: false});
    const note = make("figcaption", {}, "");
    image.addEventListener("error", () => pictureFailed(field, image, note));
    return make("figure", {"data-path": field.path}, image, note);
  }));
}
async function pictureFailed(field, image, note) {
  if (!image.getAttribute("src")) return;
  image.hidden = true;
  let sentence = "this picture is not there";
  if (!inPage) {
    const response = await fetch(image.src).catch(() => null);
    if (response && !response.ok) sentence = (await response.json()).error;
  }
  note.className = "problem";
  note.textContent = `${field.path}: ${sentence}`;
}
function showPictures() {
  for (const figure of find("pictures").children) {
    const path = figure.dataset.path, field = now.facts.fields.find((one) => one.path === path);
    const [image, note] = figure.children;
    if (now.step >= field.rows) continue;
    const frame = source.frame(now.id, path, now.step);
    image.hidden = !frame.url;
    if (image.getAttribute("src") !== frame.url) image.src = frame.url;
    image.alt = `${path} at step ${frame.step}`;
    note.className = frame.damaged ? "problem" : "";
    note.textContent = frame.damaged || `${path.replace("observations/", "")}, ${field.shape.map((side) => side < 0 ? "any" : side).join(" × ")}${field.apart ? `, ${plural(field.shape[2], "channel")} side by side` : ""}${frame.step === now.step ? "" : `, of step ${frame.step} (this file has some only)`}`;
    if (!inPage && now.timer) for (let ahead = 1; ahead <= 3; ahead++) if (now.step + ahead < field.rows) new Image().src = source.frame(now.id, path, now.step + ahead).url;
  }
}
async function showStep(step) {
  if (!now.facts || now.facts.damaged) return;
  const id = now.id;
  now.step = step = Math.max(0, Math.min(step, now.facts.num_steps));
  const end = step === now.facts.num_steps;
  find("scrubber").value = step;
  find("scrubber").setAttribute("aria-valuetext", `step ${step} of ${now.facts.num_steps}`);
  find("step-facts").textContent = end ? `After the last step: ${ending(now.facts)}` : `Step ${step} of ${now.facts.num_steps}`;
  showPictures();
  for (const line of document.querySelectorAll("line.now")) { line.setAttribute("x1", step); line.setAttribute("x2", step); }
  markText();
  const first = Math.floor(step / BATCH_STEPS) * BATCH_STEPS;
  if (!now.batches.has(first)) now.batches.set(first, source.ask("steps", {id, start: first, count: BATCH_STEPS}).catch((problem) => ({fields: {}, problem: problem.message})));
  const batch = await now.batches.get(first);
  if (now.id !== id || now.step !== step) return;
  showValues(batch, step - first);
  if (!now.timer) await showTokens();
}
function showValues(batch, place) {
  const rows = Object.entries(batch.fields).map(([path, field]) => {
    const facts = now.facts.fields.find((one) => one.path === path);
    let shownValue = "–";
    if (field.damaged) shownValue = field.damaged;
    else if (field.texts) { if (field.texts[place] !== undefined) shownValue = field.texts[place]; }
    else if (field.values[place]) shownValue = field.elements === 1 ? shown(field.values[place][0]) : numbers(field.values[place], facts.shape, field.elements);
    return make("tr", {}, make("th", {scope: "row"}, called(path)), make("td", {className: field.damaged ? "problem" : ""}, shownValue));
  });
  if (batch.problem) rows.push(make("tr", {}, make("td", {className: "problem", colSpan: 2}, batch.problem)));
  find("values").tBodies[0].replaceChildren(...rows);
}
function numbers(values, shape, elements) {
  // A small grid as it lies; anything else as a list with its places.
  const grid = shape.length === 2 && shape[1] <= 16 && elements === values.length;
  const box = make("div", {className: grid ? "grid" : "numbers"});
  if (grid) box.style.gridTemplateColumns = `repeat(${shape[1]}, 1fr)`;
  const high = Math.max(...values.map(Number), 1);
  values.forEach((value, place) => {
    const cell = make("span", {}, ...(grid ? [] : [make("small", {}, String(place))]), shown(value));
    if (grid) cell.style.setProperty("--share", `${Math.max(0, Math.round(Number(value) / high * 60))}%`);
    box.append(cell);
  });
  if (elements > values.length) box.append(make("span", {}, `… ${elements} numbers in all`));
  return box;
}
async function showTokens() {
  const id = now.id, step = now.step, [head, body] = find("token-box").firstChild.children;
  if (!find("tokens").open) return;
  let answer = {message: "After the last step there are none."};
  if (step < now.facts.num_steps) answer = await source.ask("tokens", {id, step}).catch((problem) => ({message: problem.message}));
  if (now.id !== id || now.step !== step) return;
  const rows = answer.rows || [];
  find("token-facts").textContent = answer.message || `What the network gets at step ${step}${answer.left_out ? `, without the last ${answer.left_out}` : ""}; coloured rows are targets of the training`;
  find("token-box").hidden = !rows.length;
  if (!rows.length) return;
  head.replaceChildren(make("tr", {}, ...Object.keys(rows[0]).map((name) => make("th", {scope: "col"}, name))));
  body.replaceChildren(...rows.map((row) => make("tr", {className: row.target ? "target" : ""}, ...Object.values(row).map((value) => make("td", {}, String(value))))));
}

// --- texts ---------------------------------------------------------------------------------------------------------

async function drawTexts(id) {
  find("texts").hidden = !now.facts.fields.some((field) => field.kind === "text");
  if (find("texts").hidden) return;
  const answer = await source.ask("texts", {id}).catch((problem) => ({entries: [], damaged: {text: problem.message}}));
  if (now.id !== id) return;
  now.texts = answer.entries;
  const items = answer.entries.map((entry) => {
    const action = entry.path.startsWith("actions/");
    const when = entry.first === entry.last ? `step ${entry.first}` : `steps ${entry.first} to ${entry.last}`;
    return make("li", {className: action ? "action" : "", onclick: () => seek(entry.first)}, make("small", {}, `${called(entry.path)} · ${when}`), make("div", {}, entry.text || "(empty)"));
  });
  if (answer.left_out) items.push(make("li", {className: "muted"}, "… later texts are left out here; each step shows its own"));
  for (const [path, sentence] of Object.entries(answer.damaged)) items.push(make("li", {className: "problem"}, `${path}: ${sentence}`));
  find("said").replaceChildren(...items);
  markText();
}
function markText() {
  let latest = null;
  now.texts.forEach((entry, place) => {
    const item = find("said").children[place], current = entry.first <= now.step && now.step <= entry.last;
    item.classList.toggle("now", current);
    if (current) latest = item;
  });
  if (latest) find("said").scrollTop = latest.offsetTop - find("said").clientHeight / 2;
}

// --- plots ---------------------------------------------------------------------------------------------------------

async function drawPlots(id) {
  // A grid of kinds as lines says nothing; its values are shown at each step.
  const size = (field) => field.shape.reduce((product, side) => product * side, 1);
  const fields = now.facts.fields.filter((field) => field.kind === "numbers" && size(field) > 0 && !(field.modality === "discrete" && size(field) > 12));
  const rank = (field) => field.path === "rewards" ? 0 : field.path.startsWith("actions/") ? 1 : field.path.startsWith("observations/") ? 2 : 3;
  fields.sort((a, b) => rank(a) - rank(b));
  const box = find("plots");
  box.replaceChildren();
  for (const field of fields) {
    const answer = await source.ask("series", {id, path: field.path}).catch((problem) => ({damaged: problem.message}));
    if (now.id !== id) return;
    box.append(plot(field, answer));
  }
}
function plot(field, answer) {
  const title = make("h3", {}, called(field.path));
  const card = make("figure", {className: field.dtype === "b1" ? "plot small" : "plot"}, title);
  if (answer.damaged) { card.append(make("p", {className: "problem"}, answer.damaged)); return card; }
  const {low, high, lines, steps} = answer;
  if (low === high) { title.append(make("span", {}, low === null ? "  not a number at any step" : `  ${shown(low)} at every step`)); return card; }
  if (lines.length < answer.elements) title.append(make("span", {}, `  ${lines.length} of ${answer.elements} numbers${answer.considered === answer.elements ? ", those that vary most" : `, of the first ${answer.considered} those that vary most`}`));
  const last = now.facts.num_steps, span = high - low, 
    // An action holds until the next, and so is a reward drawn; observations are moments.
    stepped = !field.path.startsWith("observations/") || field.modality === "discrete";
  const svg = draw("svg", {viewBox: `0 0 ${last} 1`, preserveAspectRatio: "none", role: "img", "aria-label": `${title.textContent} over the steps, from ${shown(low)} to ${shown(high)}`});
  for (const y of [0, 1]) svg.append(draw("line", {x1: 0, x2: last, y1: y, y2: y}));
  if (low < 0 && high > 0) svg.append(draw("line", {x1: 0, x2: last, y1: high / span, y2: high / span}));
  lines.forEach((line, place) => {
    const points = [];
    line.values.forEach((value, row) => {
      if (value === null) return;
      const y = (1 - (value - low) / span).toFixed(4);
      if (stepped && points.length) points.push(`${steps[row]},${points.at(-1).split(",")[1]}`);
      points.push(`${steps[row]},${y}`);
    });
    if (stepped && points.length && steps.at(-1) < last) points.push(`${last},${points.at(-1).split(",")[1]}`);
    const curve = draw("polyline", {points: points.join(" ")});
    curve.style.stroke = `var(--c${place % COLOURS})`;
    if (place >= COLOURS) curve.style.strokeDasharray = "5 3";
    svg.append(curve);
  });
  svg.append(draw("line", {class: "now", x1: now.step, x2: now.step, y1: 0, y2: 1}));
  const area = make("div", {className: "area"}, svg, make("span", {className: "y high"}, brief(high)), make("span", {className: "y low"}, brief(low)));
  const at = (event) => { const box = area.getBoundingClientRect(); seek(Math.round((event.clientX - box.left) / box.width * last)); };
  area.addEventListener("pointerdown", (event) => { area.setPointerCapture(event.pointerId); at(event); });
  area.addEventListener("pointermove", (event) => { if (event.buttons & 1) at(event); });
  card.append(area);
  if (lines.length > 1) card.append(make("div", {className: "legend"}, ...lines.map((line, place) => {
    const mark = make("i");
    mark.style.color = `var(--c${place % COLOURS})`;
    if (place >= COLOURS) mark.style.borderTopStyle = "dashed";
    return make("span", {}, mark, `[${line.index.join(", ")}]`);
  })));
  return card;
}

// --- playing and keys ----------------------------------------------------------------------------------------------

function seek(step) { stop(); return showStep(step); }
function stop() {
  if (!now.timer) return;
  clearInterval(now.timer);
  now.timer = 0;
  find("play").textContent = "Play";
  if (now.facts) showTokens();
}
function play() {
  if (now.timer) { stop(); return; }
  if (!now.facts || now.facts.damaged) return;
  if (now.step >= now.facts.num_steps) now.step = -1;
  find("play").textContent = "Stop";
  now.timer = setInterval(() => { if (now.step >= now.facts.num_steps) stop(); else showStep(now.step + 1); }, 1000 / Number(find("speed").value));
}
const KEYS = {
  ArrowLeft: (event) => seek(now.step - (event.shiftKey ? 10 : 1)), ArrowRight: (event) => seek(now.step + (event.shiftKey ? 10 : 1)),
  Home: () => seek(0), End: () => seek(Infinity), ArrowUp: () => neighbour(-1), ArrowDown: () => neighbour(1),
  " ": play, "/": () => find("where").focus(), "?": () => find("help").showModal(),
};
document.addEventListener("keydown", (event) => {
  const at = document.activeElement, act = KEYS[event.key];
  if (event.key === "Escape" && at instanceof HTMLInputElement) { at.blur(); return; }
  if (!act || event.ctrlKey || event.metaKey || event.altKey || find("help").open) return;
  if (at instanceof HTMLSelectElement || (at instanceof HTMLInputElement && at.type !== "range")) return;
  if (event.key === " " && (at instanceof HTMLButtonElement || at.tagName === "SUMMARY")) return;
  event.preventDefault();
  act(event);
});
for (const [id, act] of Object.entries({
  "open-help": () => find("help").showModal(), "play": play, "step-first": () => seek(0), "step-last": () => seek(Infinity),
  "step-back": () => seek(now.step - 1), "step-on": () => seek(now.step + 1),
  "page-back": () => loadList(Math.max(0, list.offset - PAGE_ROWS)), "page-on": () => loadList(list.offset + PAGE_ROWS),
})) find(id).addEventListener("click", act);
find("scrubber").addEventListener("input", () => seek(Number(find("scrubber").value)));
find("speed").addEventListener("change", () => { if (now.timer) { stop(); play(); } });
find("tokens").addEventListener("toggle", () => { if (now.facts && !now.facts.damaged) showTokens(); });
find("filters").addEventListener("submit", (event) => { event.preventDefault(); loadList(0); });
let typed = 0;
find("filters").addEventListener("input", () => { clearTimeout(typed); typed = setTimeout(() => loadList(0), 250); });

async function begin() {
  const facts = await source.ask("summary");
  const name = facts.store.split("/").filter(Boolean).at(-1) || facts.store;
  document.title = `${name}: episodes`;
  find("store-name").textContent = facts.store;
  find("store-facts").textContent = [plural(facts.episodes, "episode"), plural(facts.tasks.length, "task"), ...(facts.version ? [`version ${facts.version}`] : []), ...(facts.quarantined ? [`${facts.quarantined} quarantined`] : []), ...(inPage ? [inPage.made] : [])].join(" · ");
  find("notices").replaceChildren(...facts.damage.map((sentence) => make("p", {className: "problem"}, `Left out: ${sentence}`)), ...(inPage ? inPage.left_out : []).map((sentence) => make("p", {className: "problem"}, sentence)));
  find("task").replaceChildren(make("option", {value: ""}, "all tasks"), ...facts.tasks.map((task) => make("option", {value: task.task_id}, `${task.task_id} (${task.episodes.toLocaleString("en")})`)));
  find("where-label").hidden = Boolean(inPage);
  drawHeads();
  await loadList(0);
  if (list.rows.length) await openEpisode(list.rows[0].episode_id);
}
begin().catch((problem) => find("notices").append(make("p", {className: "problem"}, problem.message)));
