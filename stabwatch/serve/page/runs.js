// The list of runs: rows come in increments, and are filtered, sorted and grouped here. All text is set as text.
const PERIOD = 2000;
const PAGE = 100; // rows that are shown at first, and more at a time
const COLUMNS = [
  ["name", "Run"], ["state", "State"], ["step", "Step"], ["loss", "Loss"], ["spark", ""], ["severity", "Verdict"], ["host", "Host, owner"], ["created", "Age"],
];
const RANK = { critical: 0, warning: 1, "": 3 };
const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const rows = new Map();
const sparks = new Map(); // id -> [step, values]
const values = new Map(); // setting -> { id: value }, of those that are shown or filtered by
let settings = {}; // setting -> number of different values
const chosen = new Set(new URLSearchParams(location.search).get("runs")?.split(",").filter(Boolean) ?? []);
let version = "";
let sort = ["recent", 1];
let shown = PAGE;
let groups = [];
let failures = 0;
let status = null;
let drawn = "";

function el(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children.filter((c) => c !== null && c !== undefined && c !== ""));
  return node;
}

function number(v) {
  if (v === null || v === undefined) return "–";
  const a = Math.abs(v);
  if (a !== 0 && (a < 1e-3 || a >= 1e6)) return v.toExponential(2).replace("e+", "e");
  return a >= 1000 ? Math.round(v).toString() : String(Number(v.toPrecision(4)));
}

function ago(seconds) {
  if (seconds < 90) return `${Math.max(0, Math.round(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} days`;
}

function curve(values) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 120 26");
  svg.setAttribute("aria-hidden", "true");
  const finite = values.filter((v) => v !== null);
  const low = Math.min(...finite);
  const height = Math.max(...finite) - low || 1;
  let d = "";
  let pen = "M";
  values.forEach((v, i) => {
    if (v === null) { pen = "M"; return; }
    d += `${pen}${((i / Math.max(1, values.length - 1)) * 118 + 1).toFixed(1)} ${(24 - ((v - low) / height) * 22).toFixed(1)}`;
    pen = "L";
  });
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", d);
  svg.append(path);
  return svg;
}

// The values of a setting sort and compare as numbers where they are numbers.
function typed(text) {
  return text === undefined ? null : text !== "" && Number.isFinite(Number(text)) ? Number(text) : text;
}

function full(name) {
  if (name in settings) return name;
  return Object.keys(settings).filter((s) => s.toLowerCase().endsWith(`.${name}`)).sort((a, b) => a.length - b.length)[0] ?? null;
}

// The value of a setting of a run; null while it is not known or where the run has none.
function valueOf(row, name) {
  const known = name && values.get(name);
  if (name && !known) values.set(name, null); // asked for with the next round
  return known ? typed(known[row.id]) : null;
}

const TERM = /^([^=<>!]+)(!=|=|<|>)(.*)$/;
const FIELDS = { tag: "tags", tags: "tags", run: "name", incident: "first" };

function matches(row, name, sign, text) {
  const field = FIELDS[name] ?? name;
  const setting = field in row ? null : full(name);
  if (setting === null && !(field in row)) return sign === "!=";
  const found = [setting ? valueOf(row, setting) : row[field]].flat().filter((v) => v !== null);
  const wanted = typed(text);
  if (sign === "<" || sign === ">") return found.some((v) => typeof v === typeof wanted && (sign === "<" ? v < wanted : v > wanted));
  const same = found.some((v) => v === wanted || String(v).toLowerCase() === text);
  return sign === "=" ? same : !same;
}

function recency(row) {
  return (row.state === "running" ? 1e12 : 0) + (row.time ?? row.created ?? 0);
}

function key(row, column) {
  if (column === "recent") return -recency(row);
  if (column === "severity") return [RANK[row.severity] ?? 2, row.first, -recency(row)];
  if (column === "host") return `${row.host} ${row.owner}`;
  if (column === "created") return -(row.created ?? 0);
  if (column === "setting") return valueOf(row, $("setting").value);
  return row[column];
}

function compare(a, b) {
  if (Array.isArray(a)) {
    for (let i = 0; i < a.length; i += 1) { const c = compare(a[i], b[i]); if (c) return c; }
    return 0;
  }
  if (a === b) return 0;
  if (a === null || a === undefined) return 1;
  if (b === null || b === undefined) return -1;
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return a < b ? -1 : 1;
}

function wanted() {
  const asked = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const terms = asked.map((w) => w.match(TERM)).filter(Boolean);
  const words = asked.filter((w) => !TERM.test(w));
  const [state, health] = [$("state").value, $("health").value];
  const bad = (r) => r.severity !== "";
  const tests = { "": () => true, bad, active: (r) => r.active > 0, calm: (r) => r.judged && !bad(r), unjudged: (r) => !r.judged && !bad(r) };
  const found = [...rows.values()].filter((r) => {
    if ((state && r.state !== state) || !tests[health](r)) return false;
    if (!terms.every(([, name, sign, text]) => matches(r, name, sign, text))) return false;
    const text = [r.name, r.called, r.notes, r.folder, r.host, r.owner, r.model, r.verdict, r.first, r.state, ...r.tags].join(" ").toLowerCase();
    return words.every((w) => text.includes(w));
  });
  const [column, way] = sort;
  return found.map((r) => [key(r, column), r]).sort((a, b) => way * compare(a[0], b[0])).map(([, r]) => r);
}

// The groups that a run is in: one of each tag, or one.
function groupsOf(row, by) {
  if (by === "tags") return row.tags.length ? row.tags : ["no tag"];
  if (by === "parent") return [row.folder.includes("/") ? row.folder.slice(0, row.folder.lastIndexOf("/")) : "the folder itself"];
  if (by === "first") return [row.first || (row.judged ? "No incident" : "Not judged")];
  if (by === "setting") {
    const value = valueOf(row, $("setting").value);
    return [value === null ? "not set" : `${shortOf($("setting").value)} = ${value}`];
  }
  return [row[by] || "not known"];
}

function shortOf(setting) {
  return setting.slice(setting.lastIndexOf(".") + 1);
}

function columns() {
  const setting = $("setting").value;
  return setting ? [...COLUMNS.slice(0, 4), ["setting", shortOf(setting)], ...COLUMNS.slice(4)] : COLUMNS;
}

function stateCell(row) {
  const dot = el("span", `dot ${row.state === "running" ? "good" : ["killed", "exception", "unreadable"].includes(row.state) ? "critical" : ""}`);
  const since = row.state === "running" && row.time ? status.now - row.time : 0;
  const cell = el("td", "state-cell", dot, row.state, since > 60 ? el("small", "", `no record for ${ago(since)}`) : "");
  if (row.end) cell.title = row.end;
  return cell;
}

function line(row) {
  const box = el("input");
  box.type = "checkbox";
  box.checked = chosen.has(row.id);
  box.setAttribute("aria-label", `Compare ${row.name}`);
  box.onchange = () => { if (box.checked) chosen.add(row.id); else chosen.delete(row.id); showChosen(); };
  const link = el("a", "", row.called || row.name);
  link.href = `runs/${encodeURIComponent(row.id)}/`;
  const where = row.folder === (row.called || row.name) ? "" : row.folder;
  const count = row.parameters ?? 0;
  const size = count >= 1e6 ? `${number(count / 1e6)} M parameters` : count ? `${count.toLocaleString("en")} parameters` : "";
  const about = [row.model, size, row.world > 1 ? `${row.world} ranks` : ""].filter(Boolean).join(", ");
  const spark = el("td", "spark", sparks.get(row.id)?.[1].some((v) => v !== null) ? curve(sparks.get(row.id)[1]) : "");
  const verdict = el("td", "verdict-cell", el("span", `dot ${row.severity || (row.judged && row.step !== null ? "good" : "")}`), row.verdict);
  const loss = el("td", `number${row.loss_broken ? " broken" : ""}`, row.loss_broken ? "not finite" : number(row.loss));
  loss.dataset.title = "loss";
  const step = el("td", "number", row.step === null ? "–" : String(row.step));
  step.dataset.title = "step";
  const setting = $("setting").value;
  const chosenValue = valueOf(row, setting);
  const value = setting ? el("td", "number setting", chosenValue === null ? "–" : String(chosenValue)) : null;
  if (value) value.dataset.title = shortOf(setting);
  const started = row.created ? ago(status.now - row.created) : "–";
  const begun = el("td", "number", started);
  if (row.created) begun.title = new Date(row.created * 1000).toLocaleString();
  begun.dataset.title = "age";
  const name = el("td", "name", link, el("small", "", [where, about].filter(Boolean).join(" · ")), ...row.tags.map((t) => el("span", "tag", t)));
  if (row.notes) name.title = row.notes;
  return el("tr", "", el("td", "pick", box), name, stateCell(row), step, loss, value, spark, verdict, el("td", "who", row.host, el("small", "", row.owner)), begun);
}

function heading() {
  const cells = columns().map(([column, title]) => {
    const button = el("button", "", title);
    button.type = "button";
    button.onclick = () => { sort = sort[0] === column ? [column, -sort[1]] : [column, 1]; draw(true); };
    const cell = el("th", ["step", "loss", "created", "setting"].includes(column) ? "number" : column === "name" ? "name" : column === "state" ? "state-cell" : column === "spark" ? "spark" : column === "host" ? "who" : "", title ? button : "");
    if (column === "setting") cell.title = $("setting").value;
    if (sort[0] === column) cell.setAttribute("aria-sort", sort[1] > 0 ? "ascending" : "descending");
    return cell;
  });
  return el("thead", "", el("tr", "", el("th", "pick"), ...cells));
}

function groupLine(name, mine) {
  const cluster = $("group").value === "first" ? groups.find((g) => g.first === mine[0].first && g.first) : null;
  const shared = cluster?.shared.map((s) => `${s.name} = ${s.value} (${Math.round(100 * s.here)} % here, ${Math.round(100 * s.elsewhere)} % of the others)`) ?? [];
  const cell = el("th", "", cluster?.title ?? name, el("small", "", `${mine.length} ${mine.length === 1 ? "run" : "runs"}`),
    shared.length ? el("small", "", `have in common: ${shared.join("; ")}`) : "");
  cell.colSpan = columns().length + 1;
  return el("tr", "group", cell);
}

function draw(force = false) {
  const found = wanted();
  const by = $("group").value;
  const visible = found.slice(0, shown);
  const setting = $("setting").value;
  const now = JSON.stringify([visible.map((r) => [r.id, r.v, sparks.get(r.id)?.[0]]), found.length, by, groups.length, sort, setting, setting && visible.map((r) => valueOf(r, setting))]);
  if (!force && now === drawn) return;
  drawn = now;
  const body = el("tbody");
  if (by) {
    const members = new Map();
    for (const r of found) for (const g of groupsOf(r, by)) members.set(g, [...(members.get(g) ?? []), r]);
    let left = shown;
    for (const [name, mine] of [...members].sort((a, b) => b[1].length - a[1].length)) {
      if (left <= 0) break;
      body.append(groupLine(name, mine), ...mine.slice(0, left).map(line));
      left -= mine.length;
    }
  } else body.append(...visible.map(line));
  const focused = document.activeElement?.closest?.("#list") ? document.activeElement.getAttribute("aria-label") ?? document.activeElement.getAttribute("href") : null;
  const table = el("table", "", heading(), body);
  $("list").replaceChildren(el("div", "card", table));
  if (focused) [...table.querySelectorAll("input, a")].find((n) => [n.getAttribute("aria-label"), n.getAttribute("href")].includes(focused))?.focus({ preventScroll: true });
  $("list").hidden = !found.length;
  $("empty").hidden = found.length > 0;
  $("empty").textContent = rows.size ? "No run matches the filter." : status?.complete ? "There is no run below this folder yet." : "Looking for runs …";
  $("more").hidden = found.length <= shown;
  $("more").textContent = `Show ${Math.min(PAGE, found.length - shown)} more of ${found.length - shown}`;
}

function showChosen() {
  const ready = chosen.size >= 2 && chosen.size <= 8;
  $("compare").setAttribute("aria-disabled", String(!ready));
  $("compare").classList.toggle("ready", ready);
  $("compare").textContent = chosen.size > 8 ? "Compare at most 8" : chosen.size ? `Compare ${chosen.size}` : "Compare";
  if (ready) $("compare").href = `compare?runs=${[...chosen].map(encodeURIComponent).join(",")}`;
  else $("compare").removeAttribute("href");
}

function showCounts() {
  const counts = new Map();
  for (const r of rows.values()) counts.set(r.state, (counts.get(r.state) ?? 0) + 1);
  const states = [...counts].sort((a, b) => (b[0] === "running") - (a[0] === "running") || b[1] - a[1]);
  const active = [...rows.values()].filter((r) => r.active > 0).length;
  const parts = states.map(([s, n]) => `${n} ${s}`);
  if (active) parts.push(`${active} with an active alert`);
  if (status.unread) parts.push(`${status.unread} still to be read`);
  $("counts").textContent = parts.join(" · ");
  const options = ["", ...states.map(([s]) => s)];
  if ([...$("state").options].map((o) => o.value).join() !== options.join()) {
    const kept = $("state").value;
    $("state").replaceChildren(...options.map((s) => { const o = el("option", "", s || "all"); o.value = s; return o; }));
    $("state").value = options.includes(kept) ? kept : "";
  }
}

// Which settings there are, and the values of those that are shown or filtered by.
async function askSettings() {
  settings = await ask("api/settings.json");
  const names = Object.keys(settings);
  const differ = names.filter((n) => settings[n] > 1);
  const kept = $("setting").value || start.get("setting") || "";
  const offered = ["", ...differ, ...names.filter((n) => settings[n] === 1 && n === kept)];
  if ([...$("setting").options].map((o) => o.value).join() !== offered.join()) {
    $("setting").replaceChildren(...offered.map((n) => { const o = el("option", "", n || "none"); o.value = n; return o; }));
    $("setting").value = offered.includes(kept) ? kept : "";
  }
  for (const name of [...values.keys()]) {
    if (settings[name] || name === $("setting").value) values.set(name, await ask(`api/settings.json?name=${encodeURIComponent(name)}`));
  }
}

async function ask(address) {
  const answer = await fetch(address, { signal: AbortSignal.timeout(15000) });
  if (!answer.ok) throw new Error(answer.statusText);
  return answer.json();
}

async function poll() {
  try {
    status = await ask(`api/runs.json?since=${version}`);
    if (status.whole) rows.clear();
    for (const row of status.rows) rows.set(row.id, row);
    for (const id of status.gone) rows.delete(id);
    version = status.version;
    failures = 0;
    showCounts();
    draw();
    if (status.rows.length || [...values.values()].includes(null)) {
      await askSettings();
      draw();
    }
    const stale = wanted().slice(0, shown).filter((r) => r.step !== null && sparks.get(r.id)?.[0] !== r.step && !(r.state === "running" && sparks.has(r.id) && Math.random() > 0.2)).slice(0, 100);
    if (stale.length) {
      const found = await ask(`api/sparks.json?ids=${stale.map((r) => encodeURIComponent(r.id)).join(",")}`);
      for (const r of stale) if (found[r.id]) sparks.set(r.id, [r.step, found[r.id]]);
      draw();
    }
    if ($("group").value === "first") groups = await ask("api/clusters.json");
  } catch (error) {
    failures += 1;
    if (!(error instanceof TypeError) && error.name !== "TimeoutError") console.error(error);
  }
  const problem = failures >= 3 ? "The service does not answer." : status?.problem ?? "";
  $("gone").hidden = !problem;
  $("gone").textContent = problem;
  document.body.classList.toggle("away", failures >= 3);
}

function remember() {
  const q = new URLSearchParams();
  for (const id of ["search", "state", "health", "group", "setting"]) if ($(id).value) q.set(id, $(id).value);
  history.replaceState(null, "", q.size ? `?${q}` : location.pathname);
  shown = PAGE;
  draw(true);
}

const start = new URLSearchParams(location.search);
$("search").value = start.get("search") ?? "";
$("health").value = start.get("health") ?? "";
$("group").value = start.get("group") ?? "";
for (const id of ["search", "state", "health", "group", "setting"]) $(id).oninput = () => { remember(); poll(); };
$("controls").onsubmit = (e) => e.preventDefault();
$("more").onclick = () => { shown += PAGE; draw(true); poll(); };
document.addEventListener("keydown", (e) => {
  if (e.key === "/" && document.activeElement !== $("search")) { e.preventDefault(); $("search").focus(); }
  if (e.key === "Escape" && document.activeElement === $("search")) { $("search").value = ""; remember(); }
});
showChosen();
for (;;) {
  if (!document.hidden) await poll();
  await new Promise((resolve) => setTimeout(resolve, PERIOD));
}
