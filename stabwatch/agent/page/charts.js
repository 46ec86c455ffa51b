// The charts: small multiples over steps, one line per layer in forward order, with synchronised cursors.
/* global uPlot */
import { colourBar, drawHeatmap } from "./heatmap.js";
import { number, short } from "./names.js";

const HEIGHT = 170;
const FEW = 12; // measured points up to which each is drawn
const LOG_FROM = 30; // a linear axis hides the low end when the range is wider than this
const MANY = 12; // onsets: beyond this only the first of each rule is marked
const SEVERITIES = ["critical", "warning", "info"];

function style(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// One colour per layer, from the first (blue) to the last (orange), equally light.
export function layerColour(index, count) {
  const t = count > 1 ? index / (count - 1) : 0;
  return `oklch(${style("--layer-lightness")} 0.13 ${265 - 225 * t})`;
}

function finite(columns, fold, start) {
  let out = start;
  for (const c of columns) for (const v of c) if (v !== null && v !== undefined) out = fold(out, v);
  return out;
}

const MOST_DECADES = 8; // that have a label

function decades(_, splits) {
  const whole = splits.map((v) => (Math.abs(Math.log10(v) - Math.round(Math.log10(v))) < 1e-9 ? v : null));
  const count = whole.filter((v) => v !== null).length;
  const every = Math.ceil(count / MOST_DECADES);
  if (every > 1) return whole.map((v) => (v !== null && Math.round(Math.log10(v)) % every === 0 ? v : null));
  return count > 1 ? whole : splits;
}

// A time of today without its date.
function moment(seconds) {
  const date = new Date(1000 * seconds);
  return date.toDateString() === new Date().toDateString() ? date.toLocaleTimeString() : date.toLocaleString();
}

// Times never go back on an axis, though a clock may.
function ascending(times) {
  let latest = -Infinity;
  return times.map((t) => (latest = Math.max(latest, t)));
}

export class Chart {
  // colour: of a layer; marks: () => [{onset, severity}]; view: {log: "auto"|"log"|"linear", time: whether x is a time, match, zoom: [first, last] in x or null, zoomed}
  constructor(parent, colour, marks, view) {
    this.colour = colour;
    this.marks = marks;
    this.view = view;
    this.map = false;
    this.root = document.createElement("article");
    this.root.className = "card chart";
    const header = document.createElement("header");
    this.title = document.createElement("h3");
    this.scale = document.createElement("span");
    this.scale.className = "scale";
    this.toggle = document.createElement("button");
    this.toggle.type = "button";
    this.toggle.className = "quiet";
    this.toggle.hidden = true;
    this.toggle.onclick = () => { this.map = !this.map; this.update(this.given, this.points); };
    header.append(this.title, this.scale, this.toggle);
    this.readout = document.createElement("p");
    this.readout.className = "readout";
    this.plotRoot = document.createElement("div");
    this.mapRoot = document.createElement("div");
    this.mapRoot.className = "heatmap";
    this.mapRoot.hidden = true;
    this.root.append(header, this.readout, this.plotRoot, this.mapRoot);
    parent.append(this.root);
    this.plot = null;
    this.shape = "";
    this.selected = null;
  }

  // points: {steps, times, columns}
  update(given, points) {
    const { steps, columns } = points;
    [this.given, this.points, this.steps, this.columns] = [given, points, steps, columns];
    this.xs = this.view.time ? ascending(points.times) : steps;
    const match = this.view.match;
    const spec = { ...given, lines: match ? given.lines.filter((l) => !l.layer || l.layer.toLowerCase().includes(match)) : given.lines };
    this.root.hidden = !spec.lines.length;
    if (!spec.lines.length) return;
    this.spec = spec;
    this.toggle.hidden = spec.lines.length < 3;
    this.toggle.textContent = this.map ? "lines" : "heat map";
    this.title.textContent = spec.title;
    this.root.title = spec.help;
    const focus = this.focus(columns);
    const data = [this.xs];
    const series = [{ label: "step" }];
    const bands = [];
    const lines = spec.lines;
    for (const [i, line] of lines.entries()) {
      data.push(columns[line.column]);
      series.push(this.line(line, i));
    }
    // The bracket and the exact values of every layer would clutter the chart: they are drawn for the worst layer.
    const worst = focus >= 0 ? lines[focus] : null;
    if (worst && worst.low !== undefined) {
      data.push(columns[worst.low]);
      series.push({ ...this.line(worst, focus), width: 0, stroke: "transparent" });
      bands.push({ series: [focus + 1, series.length - 1], fill: this.faint(worst) });
    }
    if (worst && worst.exact !== undefined) {
      data.push(columns[worst.exact]);
      series.push({ ...this.line(worst, focus), width: 0, points: { show: true, size: 5, fill: this.colour(worst.layer) } });
    }
    const low = finite(data.slice(1), Math.min, Infinity);
    const high = finite(data.slice(1), Math.max, -Infinity);
    const log = low > 0 && (this.view.log === "log" || (this.view.log === "auto" && high / low > LOG_FROM));
    this.scale.textContent = [["1", "ratio"].includes(spec.unit) ? "" : spec.unit, log ? "log scale" : ""].filter(Boolean).join(", ");
    const shape = JSON.stringify([lines.map((l) => l.layer), focus, bands.length, series.length, log, this.view.time, style("--ink")]);
    this.log = log;
    if (shape !== this.shape) this.build(series, bands, log, data);
    else this.plot.setData(data, !this.view.zoom);
    this.applyZoom();
    this.shape = shape;
    this.worst = focus;
    this.drawMap();
    this.say(null);
  }

  // A chart that the user has added can be taken away again.
  closable(close) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "quiet";
    button.textContent = "remove";
    button.onclick = close;
    this.toggle.after(button);
  }

  // The part of the steps that is shown stays when data comes.
  applyZoom() {
    if (!this.plot || !this.xs?.length) return;
    const [min, max] = this.view.zoom ?? [this.xs[0], this.xs.at(-1)];
    this.settled = true;
    this.plot.setScale("x", { min, max });
    this.settled = false;
    this.drawMap();
  }

  drawMap() {
    const shown = this.map && this.spec.lines.length >= 3;
    this.plotRoot.hidden = shown;
    this.mapRoot.hidden = !shown;
    if (!shown) return;
    const [min, max] = this.view.zoom ?? [-Infinity, Infinity];
    const first = Math.max(0, this.xs.findIndex((x) => x >= min));
    const last = this.xs.findLastIndex((x) => x <= max);
    const lines = this.spec.lines.filter((l) => l.layer);
    const canvas = document.createElement("canvas");
    const { low, high } = drawHeatmap(canvas, lines, this.columns, this.steps, [first, Math.max(first, last)], this.log);
    const axis = document.createElement("div");
    axis.className = "heat-axis";
    const ends = [this.at(first), this.at(Math.max(first, last))].map((t) => { const e = document.createElement("span"); e.textContent = t; return e; });
    axis.append(...ends);
    const point = (e) => {
      const box = canvas.getBoundingClientRect();
      const row = Math.min(lines.length - 1, Math.max(0, Math.floor(((e.clientY - box.top) / box.height) * lines.length)));
      const x = Math.min(1, Math.max(0, (e.clientX - box.left) / box.width));
      const at = first + Math.min(last - first, Math.floor(x * (last - first + 1)));
      const column = this.columns[lines[row].column];
      const k = column.findLastIndex((v, i) => i <= at && v !== null && v !== undefined);
      this.tell(lines[row], k < 0 ? null : column[k], k < 0 ? "" : this.at(k));
    };
    canvas.onpointermove = point;
    canvas.onpointerleave = () => this.say(null);
    this.mapRoot.replaceChildren(canvas, axis, colourBar(low, high, this.log));
  }

  // The line with the worst newest value.
  focus(columns) {
    let best = -1;
    let top = -Infinity;
    for (const [i, line] of this.spec.lines.entries()) {
      const v = columns[line.column].findLast((x) => x !== null && x !== undefined);
      const bad = this.spec.worst === "min" ? -v : v;
      if (v !== undefined && bad > top) [best, top] = [i, bad];
    }
    return best;
  }

  line(line, index) {
    return {
      label: line.layer || this.spec.title,
      stroke: line.layer ? this.colour(line.layer) : style("--accent"),
      width: this.spec.lines.length > 24 ? 1 : 1.5,
      spanGaps: true,
      points: { show: (u, i) => u.data[i].filter((v) => v !== null && v !== undefined).length <= FEW, size: 4 },
      index,
    };
  }

  faint(line) {
    return this.colour(line.layer).replace(")", " / 0.16)");
  }

  build(series, bands, log, data) {
    this.plot?.destroy();
    const axis = {
      stroke: style("--soft"), grid: { stroke: style("--grid"), width: 1 }, ticks: { show: false },
      font: "11px system-ui, sans-serif",
    };
    this.plot = new uPlot(
      {
        width: this.width(), height: HEIGHT, series, bands,
        scales: { x: { time: Boolean(this.view.time) }, y: { distr: log ? 3 : 1 } },
        axes: [
          { ...axis, size: this.view.time ? 40 : 26, gap: 4, grid: { show: false } },
          { ...axis, size: 48, gap: 4, ...(log ? { filter: decades, grid: { ...axis.grid, filter: decades } } : {}), values: (_, splits) => splits.map((v) => (v === null ? "" : number(v))) },
        ],
        legend: { show: false },
        focus: { alpha: 0.18 },
        cursor: {
          sync: { key: "steps", setSeries: false }, focus: { prox: 30 }, drag: { x: true, y: false, setScale: false },
          points: { size: 6, width: 2 }, y: false,
        },
        hooks: {
          draw: [(u) => this.drawMarks(u)],
          setCursor: [(u) => this.say(u)],
          setSelect: [(u) => { if (u.select.width > 0) this.view.zoomed([u.posToVal(u.select.left, "x"), u.posToVal(u.select.left + u.select.width, "x")]); }],
          ready: [(u) => u.over.addEventListener("dblclick", () => this.view.zoomed(null))],
          setSeries: [(u, i) => { this.near = i; this.say(u); }],
        },
      },
      data,
      this.plotRoot,
    );
    this.select(this.selected);
  }

  width() {
    return Math.max(200, this.plotRoot.clientWidth || 300);
  }

  resize() {
    if (this.plot && this.plot.width !== this.width()) this.plot.setSize({ width: this.width(), height: HEIGHT });
  }

  // A point in words: its step, and on an axis of time also when it was.
  at(k) {
    const when = this.view.time ? `, ${moment(this.xs[k])}` : "";
    return `step ${this.steps[k]}${when}`;
  }

  // Where a step is on the axis; null before the first point.
  xOf(step) {
    if (!this.view.time) return step;
    const k = this.steps.findIndex((s) => s >= step);
    return k < 0 ? null : this.xs[k];
  }

  // Vertical marks where a signal left its normal range.
  drawMarks(u) {
    const { left, top, width, height } = u.bbox;
    const seen = new Set();
    const rules = new Set();
    const marks = this.marks();
    this.drawPoints(u, marks);
    for (const mark of [...marks].sort((a, b) => a.onset - b.onset)) {
      const first = !rules.has(mark.rule);
      const gravest = SEVERITIES.find((s) => marks.some((m) => m.rule === mark.rule && m.severity === s));
      rules.add(mark.rule);
      if (seen.has(mark.onset) || (!first && marks.length > MANY)) continue;
      seen.add(mark.onset);
      const onset = this.xOf(mark.onset);
      if (onset === null) continue;
      const x = Math.round(u.valToPos(onset, "x", true)) + 0.5;
      if (x < left || x > left + width) continue;
      const ctx = u.ctx;
      ctx.save();
      ctx.strokeStyle = ctx.fillStyle = style(`--${gravest ?? "soft"}`);
      ctx.lineWidth = devicePixelRatio;
      ctx.globalAlpha = first ? 1 : 0.3;
      ctx.setLineDash([3 * devicePixelRatio, 3 * devicePixelRatio]);
      ctx.beginPath();
      ctx.moveTo(x, top);
      ctx.lineTo(x, top + height);
      ctx.stroke();
      if (!first) { ctx.restore(); continue; }
      const size = 4 * devicePixelRatio;
      ctx.beginPath();
      ctx.moveTo(x - size, top);
      ctx.lineTo(x + size, top);
      ctx.lineTo(x, top + 1.5 * size);
      ctx.fill();
      ctx.restore();
    }
  }

  // A ring on the curve of a layer where one of its alerts began.
  drawPoints(u, marks) {
    const { left, top, width, height } = u.bbox;
    for (const mark of marks) {
      const i = this.spec.lines.findIndex((l) => l.layer === mark.layer && this.spec.signals.includes(mark.signal));
      if (i < 0) continue;
      const k = this.steps.findIndex((s, n) => s >= mark.onset && u.data[i + 1][n] !== null && u.data[i + 1][n] !== undefined);
      if (k < 0) continue;
      const [x, y] = [u.valToPos(u.data[0][k], "x", true), u.valToPos(u.data[i + 1][k], "y", true)];
      if (!(x >= left && x <= left + width && y >= top && y <= top + height)) continue;
      u.ctx.save();
      u.ctx.strokeStyle = style(`--${mark.severity}`);
      u.ctx.lineWidth = 1.5 * devicePixelRatio;
      u.ctx.beginPath();
      u.ctx.arc(x, y, 4 * devicePixelRatio, 0, 2 * Math.PI);
      u.ctx.stroke();
      u.ctx.restore();
    }
  }

  // Under the cursor: the step and the nearest line. Else: the worst layer now.
  say(u) {
    const at = u?.cursor.idx;
    const hovering = at !== null && at !== undefined && u.cursor.left >= 0;
    let i = hovering ? (this.near ?? null) : null;
    if (i === null || i < 1 || i > this.spec.lines.length) i = this.worst + 1;
    const line = this.spec.lines[i - 1];
    this.readout.replaceChildren();
    if (!line || !this.plot) return;
    const values = this.plot.data[i];
    const last = values.findLastIndex((v, k) => v !== null && v !== undefined && (!hovering || k <= at));
    const step = last >= 0 ? this.at(last) : "";
    const old = hovering && last >= 0 && this.steps[last] < this.steps[at];
    const which = line.layer && !hovering && this.spec.lines.length > 1 ? (this.spec.worst === "min" ? "lowest: " : "highest: ") : "";
    this.tell(line, last < 0 ? null : values[last], hovering || last < values.length - 1 ? step : "", which, old);
  }

  // One value in words; old: it is from an earlier step than the one under the cursor.
  tell(line, v, step, which = "", old = false) {
    const swatch = document.createElement("span");
    swatch.className = "swatch";
    swatch.style.background = line.layer ? this.colour(line.layer) : style("--accent");
    const value = document.createElement("b");
    value.className = old ? "stale" : "";
    value.textContent = number(v);
    const layer = document.createElement("span");
    layer.className = "layer";
    layer.title = line.layer;
    layer.textContent = [`${which}${short(line.layer, which ? 20 : 26)}`, step].filter(Boolean).join(", ");
    this.readout.replaceChildren(swatch, value, layer);
  }

  // Bring one layer forward; null: show all equally.
  select(layer) {
    this.selected = layer;
    if (!this.plot) return;
    const i = this.spec.lines.findIndex((l) => l.layer === layer);
    this.plot.setSeries(i >= 0 && layer ? i + 1 : null, { focus: true });
  }
}
