// What changed since a step: alerts, announced changes, and the values that moved most.
import { grouped, number, some } from "./names.js";

const MOST = 8;
const MOVED = 0.1; // share of itself by which a value must have moved to be told

function at(column, steps, step) {
  for (let i = steps.length - 1; i >= 0; i -= 1) {
    if (steps[i] <= step && column[i] !== null && column[i] !== undefined) return column[i];
  }
  return null;
}

function moved(before, now) {
  if (before === null || now === null) return 0;
  if (before === now) return 0;
  if (before * now <= 0) return Infinity;
  return Math.abs(Math.log(now / before));
}

// Lines of text, the most important first. state: of the page; points: {steps, columns}.
export function changesSince(step, state, points) {
  const lines = [];
  const fired = new Map();
  for (const m of state.marks.filter((a) => a.step > step)) fired.set(m.rule, [...(fired.get(m.rule) ?? []), m]);
  const active = new Set(state.alerts.map((a) => JSON.stringify([a.rule, a.layer, a.signal])));
  for (const group of fired.values()) {
    const where = some(grouped(group.map((m) => m.layer).filter(Boolean)), 3);
    const on = group.some((m) => active.has(JSON.stringify([m.rule, m.layer, m.signal])));
    lines.push({ severity: group[0].severity, text: [group[0].summary.replace(/\.$/, ""), where].filter(Boolean).join(", "), note: `since step ${Math.min(...group.map((m) => m.onset))}${on ? "" : ", over by now"}` });
  }
  for (const n of state.notices) {
    const found = /^Step (\d+): (.*)$/.exec(n.what);
    if (found && Number(found[1]) > step) lines.push({ severity: "info", text: `${found[2]}: ${n.why}`, note: `at step ${found[1]}` });
  }
  const values = [];
  for (const chart of state.charts) {
    const found = new Map(); // layers that moved in the same way are one line
    for (const line of chart.lines) {
      const column = points.columns[line.column];
      const [before, now] = [at(column, points.steps, step), at(column, points.steps, Infinity)];
      const by = moved(before, now);
      if (by >= MOVED) found.set(line.layer, { by, before, now });
    }
    if (!found.size) continue;
    const [layer, worst] = [...found].sort((a, b) => b[1].by - a[1].by)[0];
    const others = found.size > 1 ? ` (most of ${found.size} layers)` : "";
    values.push({ by: worst.by, text: `${chart.title}${layer ? ` of ${layer}${others}` : ""}`, note: `${number(worst.before)} → ${number(worst.now)}` });
  }
  values.sort((a, b) => b.by - a.by);
  return [...lines, ...values.slice(0, MOST)];
}

// The step of the last look at this run, kept by the browser; null where there was none.
export class LastLook {
  constructor(run, created) {
    this.name = `stabwatch look ${run} ${created}`;
    this.step = null;
    try {
      const known = localStorage.getItem(this.name);
      this.step = known === null ? null : Number(known);
    } catch { /* storage is not allowed */ }
  }

  // Kept at every answer: what a page writes while it is left may come after the next one reads.
  at(step) {
    if (step === null || step === undefined) return;
    try { localStorage.setItem(this.name, String(step)); } catch { /* the same */ }
  }
}
