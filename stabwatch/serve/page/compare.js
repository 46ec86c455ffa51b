// Comparison of runs: what differs, where they part, and their curves over each other. All text is set as text.
/* global uPlot */
const $ = (id) => document.getElementById(id);
const HUES = [190, 40, 290, 130, 10, 240, 80, 330];
const HEIGHT = 190;
const plots = [];
let found = null;

function el(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children.filter((c) => c !== null && c !== undefined && c !== ""));
  return node;
}

function style(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function colour(i) {
  return `oklch(${style("--layer-lightness")} 0.13 ${HUES[i % HUES.length]})`;
}

function number(v) {
  if (v === null || v === undefined) return "–";
  const a = Math.abs(v);
  if (a !== 0 && (a < 1e-3 || a >= 1e6)) return v.toExponential(2).replace("e+", "e");
  return a >= 1000 ? Math.round(v).toString() : String(Number(v.toPrecision(4)));
}

function showRuns() {
  $("runs").replaceChildren(...found.runs.map((name, i) => {
    const swatch = el("span", "swatch");
    swatch.style.background = colour(i);
    const link = el("a", "", name);
    link.href = `runs/${encodeURIComponent(found.ids[i])}/`;
    return el("li", "", swatch, link, i === 0 ? " (the reference)" : "", el("div", "hint", found.verdicts[i] ?? ""));
  }));
}

function showApart() {
  const lines = found.pairs.map((pair) => {
    const first = pair.diverged[0];
    if (!first) return `${pair.run}: no signal diverges, of ${pair.compared} compared.`;
    const where = first.layer ? `${first.signal} of ${first.layer}` : first.signal;
    const others = pair.together > 1 ? ` ${pair.together - 1} more diverge within a few steps of it: which was first is not certain.` : "";
    return `${pair.run}: ${where} parts first, from step ${first.divergence.step}.${others} ${pair.diverged.length} of ${pair.compared} series diverge.`;
  });
  $("apart-text").replaceChildren(...lines.map((text) => el("p", "", text)));
  $("apart").hidden = !lines.length;
}

function showDifferences() {
  $("differences").hidden = !found.differences.length;
  const head = el("thead", "", el("tr", "", ...["", ...found.runs].map((t) => el("th", "", t))));
  const rows = found.differences.map((d) => el("tr", "", el("td", "soft", d.name), ...d.values.map((v) => el("td", "", v === null ? "–" : String(v)))));
  $("table").replaceChildren(head, el("tbody", "", ...rows));
}

function joined(lines) {
  const steps = [...new Set(lines.flatMap(([s]) => s))].sort((a, b) => a - b);
  const at = new Map(steps.map((s, i) => [s, i]));
  return [steps, ...lines.map(([s, values]) => {
    const column = new Array(steps.length).fill(undefined);
    s.forEach((step, i) => { column[at.get(step)] = values[i]; });
    return column;
  })];
}

function plot(curve) {
  const root = el("article", "card chart");
  const readout = el("p", "readout");
  const target = el("div");
  root.append(el("header", "", el("h3", "", curve.layer ? `${curve.signal}, ${curve.layer}` : curve.signal)), readout, target);
  $("charts").append(root);
  const data = joined(curve.lines);
  const low = Math.min(...data.slice(1).flat().filter((v) => v !== null && v !== undefined));
  const axis = { stroke: style("--soft"), grid: { stroke: style("--grid"), width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
  const say = (u) => {
    const i = u.cursor.idx;
    readout.replaceChildren();
    if (i === null || i === undefined || u.cursor.left < 0) return;
    readout.append(`step ${u.data[0][i]}`);
    for (let s = 1; s < u.data.length; s += 1) {
      const k = u.data[s].findLastIndex((v, j) => v !== null && v !== undefined && j <= i);
      const swatch = el("span", "swatch");
      swatch.style.background = colour(s - 1);
      readout.append(swatch, el("b", "", k < 0 ? "–" : number(u.data[s][k])));
    }
  };
  plots.push(new uPlot({
    width: Math.max(200, target.clientWidth || 300), height: HEIGHT,
    series: [{}, ...curve.lines.map((_, i) => ({ stroke: colour(i), width: 1.5, spanGaps: true, points: { show: false } }))],
    scales: { x: { time: false }, y: { distr: $("log").checked && low > 0 ? 3 : 1 } },
    axes: [{ ...axis, size: 26, gap: 4, grid: { show: false } }, { ...axis, size: 52, gap: 4, values: (_, splits) => splits.map((v) => (v === null ? "" : number(v))) }],
    legend: { show: false }, cursor: { sync: { key: "steps" }, y: false, drag: { x: true, y: false } }, hooks: { setCursor: [say] },
  }, data, target));
}

function showCurves() {
  for (const p of plots.splice(0)) p.destroy();
  $("charts").replaceChildren();
  $("curves").hidden = !found.curves.length;
  const first = ["loss", "gradient_norm_before_clip", "gradient_norm"];
  const tells = (c) => c.lines.some(([, values]) => values.some((v) => v)); // one that is 0 in all runs shows nothing
  const order = (c) => (c.layer ? 50 : first.includes(c.signal) ? first.indexOf(c.signal) : 100);
  found.curves.filter(tells).sort((a, b) => order(a) - order(b)).forEach(plot);
}

async function load() {
  const runs = new URLSearchParams(location.search).get("runs") ?? "";
  for (;;) {
    let answer;
    try {
      const got = await fetch(`api/compare.json?runs=${encodeURIComponent(runs)}`);
      if (!got.ok) throw new Error(got.statusText);
      answer = await got.json();
    } catch (error) {
      $("status").textContent = `The service does not answer (${error.message}).`;
      return;
    }
    if (answer.error) { $("status").textContent = answer.error; return; }
    if (!answer.pending) { found = answer; break; }
    $("status").textContent = "The logs are still being read …";
  }
  $("status").hidden = true;
  showRuns();
  showApart();
  showDifferences();
  showCurves();
}

$("log").onchange = showCurves;
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { if (found) { showRuns(); showCurves(); } });
new ResizeObserver(() => { for (const p of plots) p.setSize({ width: Math.max(200, p.root.parentNode.clientWidth), height: HEIGHT }); }).observe($("charts"));
load();
