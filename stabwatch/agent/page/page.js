// The live page: polls the agent each second. Names come from user code, so they are set as text, never as markup.
import { Chart, layerColour } from "./charts.js";
import { changesSince, LastLook } from "./changes.js";
import { counted, grouped, number, short, some } from "./names.js";

const PERIOD = 1000;
const STALE = 100; // steps after which a value is shown as old
const AWAY_AFTER = 3; // failed requests in a row
const $ = (id) => document.getElementById(id);
const charts = new Map();
const points = { steps: [], times: [], columns: [] };
const added = new Map(); // signal -> its chart, its points, how much of the log is read
let look = null; // the last look at this run
let since = null; // the step that changes are told from
let cursor = "";
let layers = [];
let marks = [];
let selected = null;
let failures = 0;
let lastAnswer = 0;
let last = null;
let shown = "";
let polling = false;
const view = { log: "auto", time: false, match: "", zoom: null, zoomed: (range) => { view.zoom = range; for (const c of everyChart()) c.applyZoom(); $("unzoom").hidden = !range; } };
const toggled = new Set(); // causes that the user opened or closed

function el(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children.filter((c) => c !== null && c !== undefined && c !== ""));
  return node;
}

// Text in which `this` is code.
function prose(text) {
  return text.split("`").map((part, i) => (i % 2 ? el("code", "", part) : part));
}

function ago(seconds) {
  if (seconds < 90) return `${Math.max(0, Math.round(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${(seconds / 3600).toFixed(1)} h` : `${Math.round(seconds / 86400)} days`;
}

function colour(layer) {
  return layerColour(Math.max(0, layers.indexOf(layer)), layers.length);
}

function showHeader({ run, progress, now, above }) {
  $("above").hidden = !above;
  const called = run.called || run.name;
  document.title = `${called} · stabwatch`;
  $("name").textContent = called;
  $("state").className = `state ${run.state}`;
  const sinceStep = progress.time ? now - progress.time : 0;
  const limit = Math.max(20, 10 * (progress.step_seconds ?? 0));
  const stalled = run.state === "running" && sinceStep > limit ? `, no step for ${ago(sinceStep)}` : "";
  if (stalled) $("state").classList.add("stalled");
  $("state").textContent = run.state + stalled + (run.end ? `: ${run.end}` : "");
  const pace = progress.step_seconds;
  const items = [
    ["step", progress.step ?? "–"],
    ["loss", progress.loss_broken ? "not finite" : number(progress.loss)],
    ["pace", pace ? (pace < 1 ? `${number(1 / pace)} steps/s` : `${number(pace)} s/step`) : "–"],
    ["overhead", progress.overhead_ratio === null ? "–" : `${number(100 * progress.overhead_ratio)} %`],
    ["learning rate", number(progress.learning_rate)],
    ["model", [run.model, counted(run.parameters)].filter(Boolean).join(", ") || "–"],
    [run.state === "running" ? "running for" : "ran for", run.state === "running" ? ago(now - run.created) : run.ended === null ? "not known" : ago(run.ended - run.created)],
  ];
  $("facts").replaceChildren(...items.map(([k, v]) => el("div", "", el("dt", "", k), el("dd", "", String(v)))));
  $("footer").textContent = `${called === run.name ? "" : `${run.name} · `}stabwatch on ${run.host}`;
}

function list(title, items) {
  if (!items?.length) return null;
  return el("div", "", el("h4", "", title), el("ul", "", ...items.map((text) => el("li", "", ...prose(text)))));
}

function showDiagnosis({ diagnosis, alerts, marks: fired }) {
  const rank = ["info", "warning", "critical"];
  const worst = Math.max(fired.length ? 0 : -1, ...alerts.map((a) => rank.indexOf(a.severity)));
  $("diagnosis").className = `card diagnosis ${rank[worst] ?? ""}`;
  const causes = diagnosis.causes.map((cause, place) => {
    const since = `since step ${cause.since_step}`;
    const sure = cause.confidence === "certain" ? "certain" : `a ${cause.confidence} cause`;
    const head = el("summary", "", el("h3", "", cause.title),
      el("span", "where", [some(grouped(cause.layers), 6), since, sure].filter(Boolean).join(", ")));
    const page = cause.runbook_url ? el("a", "runbook", "Runbook") : null;
    if (page) page.href = `runbooks/${encodeURIComponent(cause.name)}`;
    const references = cause.references.length ? el("p", "references", cause.references.join(" · ")) : null;
    const block = el("details", "cause", head,
      el("div", "columns", list("Why", cause.evidence), list("What to do", cause.remedy)), page, references);
    // By default the first cause is open and the others are closed.
    block.open = (place === 0) !== toggled.has(cause.name);
    block.ontoggle = () => { if (block.open === (place === 0)) toggled.delete(cause.name); else toggled.add(cause.name); };
    return block;
  });
  $("diagnosis").replaceChildren(el("p", "verdict", diagnosis.verdict), ...causes);
}

function showAlerts({ alerts }) {
  $("alerts").hidden = !alerts.length;
  const groups = new Map();
  for (const a of alerts) groups.set(a.rule, [...(groups.get(a.rule) ?? []), a]);
  $("alerts").replaceChildren(
    el("div", "heading", el("h2", "", alerts.length === 1 ? "1 alert is active" : `${alerts.length} alerts are active`)),
    ...[...groups.values()].map((group) => {
      const [a, ...others] = group.sort((x, y) => x.onset - y.onset);
      const also = others.length ? el("small", "", `Also at ${some(grouped(others.map((o) => o.layer || "the run")), 6)}, since step ${others[0].onset}${others.at(-1).onset > others[0].onset ? ` to ${others.at(-1).onset}` : ""}`) : null;
      return el("div", `alert ${a.severity}`, el("span", "severity", a.severity),
        el("span", "text", a.summary, el("small", "", a.description), also), el("span", "when", `since step ${a.onset}`));
    }),
  );
}

// Alerts that are over, the newest first.
function showHistory({ alerts, marks: fired }) {
  const active = new Set(alerts.map((a) => JSON.stringify([a.rule, a.layer, a.signal])));
  const over = fired.filter((m) => !active.has(JSON.stringify([m.rule, m.layer, m.signal])));
  $("history").hidden = !over.length;
  const groups = new Map();
  for (const m of over) groups.set(m.rule, [...(groups.get(m.rule) ?? []), m]);
  $("history-title").textContent = over.length === 1 ? "1 alert is over" : `${over.length} alerts are over`;
  $("history-list").replaceChildren(...[...groups.values()].reverse().map((g) => {
    const layersOf = grouped(g.map((m) => m.layer).filter(Boolean));
    const from = Math.min(...g.map((m) => m.onset));
    const to = Math.max(...g.map((m) => m.onset));
    const where = [some(layersOf, 6), from === to ? `began at step ${from}` : `began at steps ${from} to ${to}`].filter(Boolean).join(", ");
    return el("li", "", el("span", `severity ${g[0].severity}`, g[0].severity), el("span", "", g[0].summary, el("small", "soft", ` ${where}`)));
  }));
}

function showTable({ table, alerts, progress }) {
  $("layers").hidden = !table.rows.length;
  const broken = table.rows.some((row) => row.nonfinite);
  const severity = new Map(alerts.map((a) => [a.layer, a.severity]));
  const head = el("thead", "", el("tr", "", ...["Layer", ...table.columns, ...(broken ? ["Non-finite"] : [])].map((t) => el("th", "", t))));
  const worst = new Map(alerts.map((a) => [a.layer, 1]));
  const found = table.rows.filter((row) => !view.match || row.layer.toLowerCase().includes(view.match));
  const order = $("worst-first").checked ? [...found].sort((a, b) => (worst.get(b.layer) ?? 0) - (worst.get(a.layer) ?? 0) || size(b) - size(a)) : found;
  const rows = order.map((row) => {
    const swatch = el("span", "swatch");
    swatch.style.background = colour(row.layer);
    const name = el("td", severity.get(row.layer) ?? "", swatch, short(row.layer, innerWidth < 600 ? 18 : 28));
    name.title = row.layer;
    const cells = row.cells.map((cell) => {
      if (!cell) return el("td", "soft", "–");
      const head_ = cell.head === null ? "" : `, head ${cell.head}`;
      const worst = cell.worst === null ? "" : `${number(cell.worst)} at ${cell.step}${head_}`;
      const old = progress.step - cell.at > STALE;
      return el("td", old ? "stale" : "", cell.last === null ? "not finite" : number(cell.last), old ? el("small", "", `at step ${cell.at}`) : "", el("small", "", worst));
    });
    if (broken) cells.push(el("td", row.nonfinite ? "broken" : "soft", row.nonfinite ? number(row.nonfinite) : "–"));
    const tr = el("tr", row.layer === selected ? "selected" : "", name, ...cells);
    tr.tabIndex = 0;
    tr.onclick = () => select(row.layer);
    tr.onkeydown = (e) => { if (e.key === "Enter") select(row.layer); };
    return tr;
  });
  const focused = [...$("table").querySelectorAll("tbody tr")].indexOf(document.activeElement);
  $("table").replaceChildren(head, el("tbody", "", ...rows));
  rows[focused]?.focus({ preventScroll: true });
}

// What worst-first orders by: the first column that a layer has.
function size(row) {
  return row.cells.find((c) => c)?.worst ?? -Infinity;
}

function select(layer) {
  selected = selected === layer ? null : layer;
  for (const chart of everyChart()) chart.select(selected);
  if (last) showTable(last);
}

function showNotices({ notices }) {
  $("notices").hidden = !notices.length;
  $("notice-list").replaceChildren(...notices.map((n) => el("li", "", el("span", "", n.what), el("span", "soft", n.why ? ` (${n.why})` : ""))));
}

function take({ points: more }) {
  const start = more.from * more.per_bucket;
  points.steps = [...points.steps.slice(0, start), ...more.steps];
  points.times = [...points.times.slice(0, start), ...more.times];
  points.columns = more.values.map((tail, i) => [...(points.columns[i] ?? []).slice(0, start), ...tail]);
  cursor = `${more.epoch}.${more.next}`;
}

function everyChart() {
  return [...[...added.values()].map((a) => a.chart), ...charts.values()];
}

// A signal that is not among the charts: as a heat map of layers over steps, in front of them.
function add(signal) {
  if (added.has(signal)) return;
  const chart = new Chart($("charts"), colour, () => marks, view);
  chart.map = true;
  chart.closable(() => { chart.root.remove(); added.delete(signal); offerSignals(last); });
  $("charts").prepend(chart.root);
  added.set(signal, { chart, share: 0, step: null });
  askAdded();
}

async function askAdded() {
  for (const [signal, mine] of added) {
    if (mine.asking || (mine.share >= 1 && mine.step === last?.progress.step)) continue;
    mine.asking = true;
    try {
      const step = last?.progress.step;
      const answer = await fetch(`api/signal.json?name=${encodeURIComponent(signal)}`, { signal: AbortSignal.timeout(15000) });
      if (answer.ok) {
        const found = await answer.json();
        mine.share = found.share;
        mine.step = step;
        mine.spec = found.chart;
        mine.points = { steps: found.points.steps, times: found.points.times, columns: found.points.values };
        if (added.has(signal)) mine.chart.update(mine.spec, mine.points);
      }
    } catch { /* the next round asks again */ }
    mine.asking = false;
  }
}

function offerSignals(state) {
  const offered = ["", ...state.signals.filter((s) => !added.has(s))];
  if ([...$("add").options].map((o) => o.value).join() === offered.join()) return;
  $("add").replaceChildren(...offered.map((s) => { const o = el("option", "", s ? s.replaceAll("_", " ") : "any signal"); o.value = s; return o; }));
}

function showChanges(state) {
  const step = state.progress.step;
  look ??= new LastLook(state.run.name, state.run.created);
  if (since === null && look.step !== null && look.step < step) { since = look.step; $("since").value = String(since); }
  look.at(step);
  $("changes").hidden = step === null || step === undefined;
  if (since === null) { $("changes-list").replaceChildren(); $("changes-none").hidden = true; return; }
  const found = changesSince(since, state, points);
  $("changes-list").replaceChildren(...found.map((line) => el("li", "", el("span", `severity ${line.severity ?? ""}`, line.severity ?? ""), el("span", "", line.text, el("small", "soft", ` ${line.note}`)))));
  $("changes-none").hidden = found.length > 0;
}

function showCharts(state) {
  $("charts-section").hidden = !state.charts.length;
  for (const spec of state.charts) {
    if (!charts.has(spec.title)) charts.set(spec.title, new Chart($("charts"), colour, () => marks, view));
    charts.get(spec.title).update(spec, points);
  }
  for (const mine of added.values()) if (mine.spec) mine.chart.update(mine.spec, mine.points);
  offerSignals(state);
  $("legend").hidden = layers.length < 2;
  if ($("ramp").childElementCount !== Math.min(24, layers.length)) {
    const count = Math.min(24, layers.length);
    $("ramp").replaceChildren(...Array.from({ length: count }, (_, i) => {
      const part = el("span");
      part.style.background = layerColour(i, count);
      return part;
    }));
  }
}

function show(state) {
  last = state;
  marks = state.marks;
  layers = state.layers;
  take(state);
  showHeader(state);
  const now = JSON.stringify([state.diagnosis, state.alerts, state.notices, state.progress.step, state.table, layers]);
  if (now === shown) return;
  shown = now;
  showDiagnosis(state);
  showAlerts(state);
  showHistory(state);
  showCharts(state);
  showChanges(state);
  showTable(state);
  showNotices(state);
}

function away() {
  const gone = failures >= AWAY_AFTER;
  document.body.classList.toggle("away", gone);
  $("gone").hidden = !gone;
  if (!gone) return;
  const ended = last && last.run.state !== "running";
  const why = ended ? `The run has ended (${last.run.state}), and its agent too.` : "The agent does not answer.";
  $("gone").textContent = lastAnswer ? `${why} The data is ${ago((Date.now() - lastAnswer) / 1000)} old.` : why;
}

async function poll() {
  if (polling) return;
  polling = true;
  try {
    const answer = await fetch(`api/state.json?since=${cursor}`, { signal: AbortSignal.timeout(10000) });
    if (!answer.ok) throw new Error(answer.statusText);
    const state = await answer.json();
    failures = 0;
    lastAnswer = Date.now();
    show(state);
    askAdded();
  } catch (error) {
    failures += 1;
    if (!(error instanceof TypeError) && error.name !== "TimeoutError") console.error(error);
  }
  polling = false;
  away();
}

async function run() {
  for (;;) {
    if (!document.hidden) await poll();
    await new Promise((resolve) => setTimeout(resolve, PERIOD));
  }
}

$("axis").onchange = () => { view.log = $("axis").value; if (last) showCharts(last); };
$("x").onchange = () => { view.time = $("x").value === "time"; view.zoomed(null); if (last) showCharts(last); };
$("add").onchange = () => { if ($("add").value) add($("add").value); offerSignals(last); };
$("since").oninput = () => { const text = $("since").value.trim(); since = /^\d+$/.test(text) ? Number(text) : null; if (last) showChanges(last); };
$("find").oninput = () => { view.match = $("find").value.trim().toLowerCase(); if (last) { showCharts(last); showTable(last); } };
$("worst-first").onchange = () => { if (last) showTable(last); };
$("unzoom").onclick = () => view.zoomed(null);
document.addEventListener("keydown", (e) => {
  if (e.target.matches("input, select")) { if (e.key === "Escape") { $("find").value = ""; $("find").oninput(); e.target.blur(); } return; }
  if (e.key === "/") { e.preventDefault(); $("find").focus(); }
  if (e.key === "Escape") { view.zoomed(null); if (selected) select(selected); }
});
document.addEventListener("visibilitychange", () => { if (!document.hidden) poll(); });
new ResizeObserver(() => { for (const chart of everyChart()) chart.resize(); }).observe($("charts"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { shown = ""; if (last) poll(); });
run();
