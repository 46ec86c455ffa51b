// draw.mjs DASHBOARDS PROMETHEUS FROM TO OUT: asks every query, bundles page.jsx and takes pictures of it with Chromium.
import { build } from 'esbuild';
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';

const [, , boards, url, from, to, out] = process.argv;
const dark = process.env.LIGHT !== '1', only = (process.env.ONLY ?? '').split(',').filter(Boolean);
const span = to - from, step = Math.max(1, Math.ceil(span / 150)), PART = 36, CELL = 40;
const variables = { $__rate_interval: '4s', $__range: `${span}s`, $run: process.env.RUN ?? '.*', $layer: '.*' };

async function answer(target) {
  const expr = Object.entries(variables).reduce((text, [name, value]) => text.replaceAll(name, value), target.expr);
  const asked = target.instant ? `query?time=${to}` : `query_range?start=${from}&end=${to}&step=${step}`;
  const got = await (await fetch(`${url}/api/v1/${asked}&query=${encodeURIComponent(expr)}`)).json();
  if (got.status !== 'success') throw new Error(`${expr}: ${got.error}`);
  return got.data.resultType === 'scalar' ? [{ metric: {}, value: got.data.result }] : got.data.result;
}

const fixed = ['--headless', '--no-sandbox', '--disable-gpu', '--hide-scrollbars', '--allow-file-access-from-files', '--virtual-time-budget=8000'];
const chromium = (...args) => execFileSync('chromium', [...fixed, ...args], { stdio: ['ignore', 'pipe', 'ignore'], maxBuffer: 1 << 28 }).toString();

await build({
  entryPoints: ['page.jsx'], bundle: true, minify: true, outfile: path.join(out, 'page.js'), format: 'iife', jsx: 'automatic', logLevel: 'error',
  define: { 'process.env.NODE_ENV': '"production"', global: 'window' }, loader: { '.svg': 'dataurl', '.woff2': 'dataurl', '.ttf': 'empty' },
});
const all = [];
for (const file of fs.readdirSync(boards)) {
  const dashboard = JSON.parse(fs.readFileSync(path.join(boards, file)));
  if (only.length && !only.includes(dashboard.uid)) continue;
  const answers = {};
  for (const panel of dashboard.panels) if (panel.type !== 'row') answers[panel.id] = await Promise.all(panel.targets.map(answer));
  const name = path.join(out, dashboard.uid);
  fs.writeFileSync(`${name}.js`, `window.BOARD=${JSON.stringify({ dashboard, answers, from: +from, to: +to, step, dark })}`);
  fs.writeFileSync(
    `${name}.html`,
    `<!doctype html><link rel=stylesheet href=page.css><body style="margin:8px;background:${dark ? '#111217' : '#f4f5f5'}"><div id=root></div><script src="${dashboard.uid}.js"></script><script src="page.js"></script>`,
  );
  const rows = Math.max(...dashboard.panels.map((panel) => panel.gridPos.y + panel.gridPos.h));
  for (let y = 0; y < rows; y += PART) {
    const where = `file://${name}.html?y=${y},${y + PART}`;
    chromium(`--window-size=1616,${(PART + 9) * CELL}`, `--screenshot=${name}-${String(y).padStart(3, '0')}.png`, where);
    const found = chromium('--window-size=1616,2000', '--dump-dom', where).match(/id="report">([^<]*)</);
    if (!found) throw new Error(`${where} was not drawn`);
    all.push(...JSON.parse(found[1]).map((panel) => ({ board: dashboard.uid, ...panel })));
  }
}
fs.writeFileSync(path.join(out, 'report.json'), JSON.stringify(all, null, 1));
for (const type of new Set(all.map((panel) => panel.type))) {
  const these = all.filter((panel) => panel.type === type), count = (test) => these.filter(test).length;
  console.log(`${type}: ${these.length} panels, ${count((p) => p.points > 0 && !p.error)} drawn, ${count((p) => !p.points)} without data, ${count((p) => p.error)} failed`);
}
for (const panel of all) if (panel.error || !panel.points) console.log(`${panel.board}: ${panel.title}: ${panel.error ?? 'no data'}`);
