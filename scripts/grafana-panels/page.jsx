// The panels of one dashboard, drawn by Grafana's own packages @grafana/data and @grafana/ui (Apache-2.0).
// A heat map is the one thing that neither has: its cells are drawn here, from Grafana's join, axes and colours.
import * as React from 'react';
import { createRoot } from 'react-dom/client';
import { interpolateOranges } from 'd3-scale-chromatic';
import {
  applyFieldOverrides, createTheme, dateTime, displayNameOverrideProcessor, EventBusSrv, FieldColorModeId, FieldType, cacheFieldDisplayNames,
  getFieldDisplayValues, identityOverrideProcessor, numberOverrideProcessor, outerJoinDataFrames,
  standardFieldConfigEditorRegistry, standardTransformers, standardTransformersRegistry, thresholdsOverrideProcessor,
  toDataFrame, transformDataFrame, unitOverrideProcessor, valueMappingsOverrideProcessor, formattedValueToString, ThemeContext,
} from '@grafana/data';
import { BigValue, GlobalStyles, PanelChrome, PanelContextProvider, TimeSeries, UPlotChart, UPlotConfigBuilder, VizLayout } from '@grafana/ui';
import { TableNG } from '@grafana/ui/unstable';
import { lastValueFrom } from 'rxjs';

const { dashboard, answers, from, to, step, dark } = window.BOARD;
const CELL = 40, GAP = 8, WIDTH = 1600;
const theme = createTheme({ colors: { mode: dark ? 'dark' : 'light' } });
const range = { from: dateTime(from * 1000), to: dateTime(to * 1000), raw: { from: dateTime(from * 1000), to: dateTime(to * 1000) } };
const report = [];

for (const panel of dashboard.panels) if (panel.type === 'stat') // what Grafana fills in where a panel has none
  panel.fieldConfig.defaults = { color: { mode: 'thresholds' }, thresholds: { mode: 'absolute', steps: [{ value: -Infinity, color: 'green' }, { value: 80, color: 'red' }] }, ...panel.fieldConfig.defaults };
const property = (path, process, name = path) => ({ id: path, path, name, description: '', process, override: () => null, editor: () => null, shouldApply: () => true });
standardFieldConfigEditorRegistry.setInit(() => [
  property('unit', unitOverrideProcessor), property('min', numberOverrideProcessor), property('max', numberOverrideProcessor),
  property('decimals', numberOverrideProcessor), property('displayName', displayNameOverrideProcessor),
  property('color', identityOverrideProcessor), property('noValue', identityOverrideProcessor),
  property('thresholds', thresholdsOverrideProcessor), property('mappings', valueMappingsOverrideProcessor),
]);
standardTransformersRegistry.setInit(() => [
  { id: 'organize', aliasIds: [], name: 'Organize', description: '', transformation: async () => standardTransformers.organizeFieldsTransformer, editor: () => null },
]);

const legend = (target, labels) => {
  const format = target.legendFormat;
  if (!format || format === '__auto') {
    const { __name__ = '', ...rest } = labels;
    const inside = Object.entries(rest).map(([k, v]) => `${k}="${v}"`).join(', ');
    return inside ? `${__name__}{${inside}}` : __name__ || 'Value';
  }
  return format.replace(/\{\{\s*(.+?)\s*\}\}/g, (_, name) => labels[name] ?? '');
};
const number = (text) => (text === '+Inf' ? Infinity : text === '-Inf' ? -Infinity : Number(text));

/** What Grafana's Prometheus data source makes of an answer: a frame for each series, or a table. */
function frames(panel) {
  return panel.targets.flatMap((target, i) => {
    const result = answers[panel.id][i];
    if (target.format === 'table') return [table(target.refId, result)];
    return result.map(({ metric, values, value }) => {
      const points = values ?? [value], name = legend(target, metric);
      // a range query has a row at each step, with null where a series has none
      return toDataFrame({
        refId: target.refId, name, meta: { type: 'timeseries-multi' },
        fields: [
          { name: 'Time', type: FieldType.time, values: points.map((p) => p[0] * 1000), config: { interval: step * 1000 } },
          { name: 'Value', type: FieldType.number, labels: metric, values: points.map((p) => number(p[1])), config: { displayNameFromDS: name } },
        ],
      });
    });
  });
}

function table(refId, result) {
  const names = [...new Set(result.flatMap((r) => Object.keys(r.metric).sort()))];
  return toDataFrame({
    refId,
    fields: [
      { name: 'Time', type: FieldType.time, values: result.map((r) => r.value[0] * 1000) },
      ...names.map((name) => ({ name, type: FieldType.string, values: result.map((r) => r.metric[name] ?? ''), config: { filterable: true } })),
      { name: 'Value', type: FieldType.number, values: result.map((r) => number(r.value[1])) },
    ],
  });
}

function configured(panel, data) {
  const made = applyFieldOverrides({
    data, fieldConfig: panel.fieldConfig, replaceVariables: (text) => text, theme, timeZone: 'utc',
  });
  const custom = { ...panel.fieldConfig.defaults.custom };
  if (panel.type === 'timeseries' || panel.type === 'table')
    for (const frame of made) for (const field of frame.fields) {
      field.config.custom = { ...custom, ...field.config.custom };
      if (panel.type === 'timeseries') field.config.color ??= { mode: FieldColorModeId.PaletteClassic };
    }
  cacheFieldDisplayNames(made);
  return made;
}

function Heat({ panel, data, width, height }) {
  const joined = data.length > 1 ? outerJoinDataFrames({ frames: data, keepDisplayNames: true }) : data[0];
  const [time, ...rows] = joined.fields;
  const names = rows.map((f) => f.state?.displayName ?? f.config.displayNameFromDS ?? f.name);
  const { le = -Infinity, ge = Infinity } = panel.options.filterValues ?? {};
  const shown = (v) => v != null && v > le && v < ge;
  const all = rows.flatMap((f) => [...f.values].filter(shown)).filter(Number.isFinite);
  const least = all.reduce((a, b) => Math.min(a, b), Infinity), most = all.reduce((a, b) => Math.max(a, b), -Infinity);
  const steps = panel.options.color.steps ?? 64;
  let palette = Array.from({ length: steps }, (_, i) => interpolateOranges(i / (steps - 1)));
  if (dark) palette.reverse();
  if (panel.options.color.reverse) palette.reverse();
  const builder = new UPlotConfigBuilder('utc');
  builder.setMode?.(1);
  builder.addScale({ scaleKey: 'x', isTime: true, orientation: 0, direction: 1, range: [from * 1000, to * 1000] });
  builder.addAxis({ scaleKey: 'x', isTime: true, placement: 'bottom', timeZone: 'utc', theme });
  builder.addScale({ scaleKey: 'y', orientation: 1, direction: panel.options.yAxis?.reverse ? -1 : 1, range: [-0.5, rows.length - 0.5] });
  builder.addAxis({
    scaleKey: 'y', theme, placement: 'left', size: panel.options.yAxis?.axisWidth ?? null,
    splits: (u) => { let s = names.map((_, i) => i); while (s.length > 3 && (u.height - 15) / s.length < 10) s = s.filter((_, i) => i % 2 === 0); return s; },
    values: (_, splits) => splits.map((i) => names[i] ?? ''),
  });
  builder.addSeries({ scaleKey: 'y', theme, pathBuilder: () => null, pxAlign: false, show: true, colorMode: null });
  builder.addHook('draw', (u) => {
    const across = (time.values[1] ?? time.values[0] + step * 1000) - time.values[0];
    const w = Math.max(1, Math.abs(u.valToPos(time.values[0] + across, 'x', true) - u.valToPos(time.values[0], 'x', true)) - 1);
    const h = Math.max(1, Math.abs(u.valToPos(1, 'y', true) - u.valToPos(0, 'y', true)) - 1);
    rows.forEach((f, r) => f.values.forEach((v, i) => {
      if (!shown(v)) return;
      const at = Math.min(steps - 1, Math.max(0, Math.floor((steps * (v - least)) / (most - least || 1))));
      u.ctx.fillStyle = palette[at];
      u.ctx.fillRect(u.valToPos(time.values[i], 'x', true) - w, u.valToPos(r, 'y', true) - h / 2, w, h);
    }));
  });
  const display = rows[0].display;
  const legendNode = (
    <VizLayout.Legend placement="bottom" maxHeight="20%">
      <div style={{ display: 'flex', gap: 8, fontSize: 11, alignItems: 'center', padding: 4 }}>
        {all.length ? formattedValueToString(display(least)) : ''}
        <div style={{ height: 8, width: 160, background: `linear-gradient(90deg, ${palette.join(',')})` }} />
        {all.length ? formattedValueToString(display(most)) : 'no cell'}, {rows.length} rows
      </div>
    </VizLayout.Legend>
  );
  return (
    <VizLayout width={width} height={height} legend={legendNode}>
      {(w, h) => <UPlotChart config={builder} data={[time.values, time.values.map(() => null)]} width={w} height={h} timeRange={range} />}
    </VizLayout>
  );
}

function Stat({ panel, data, width, height }) {
  const values = getFieldDisplayValues({
    fieldConfig: panel.fieldConfig, reduceOptions: panel.options.reduceOptions, replaceVariables: (t) => t, theme, data, timeZone: 'utc',
  });
  return values.map((v, i) => (
    <BigValue key={i} value={v.display} width={width / values.length} height={height} theme={theme} textMode={panel.options.textMode}
      colorMode={panel.options.colorMode} graphMode={panel.options.graphMode} justifyMode={panel.options.justifyMode} count={values.length} />
  ));
}

function Drawn({ panel, data, width, height }) {
  if (!data.length || data.every((f) => !f.length)) return <div style={{ padding: 30, textAlign: 'center' }}>No data</div>;
  if (panel.type === 'timeseries')
    return <TimeSeries frames={data} width={width} height={height} timeRange={range} timeZone="utc" legend={panel.options.legend} options={panel.options} />;
  if (panel.type === 'table') return <TableNG data={data[0]} width={width} height={height} timeRange={range} noHeader={!panel.options.showHeader} cellHeight={panel.options.cellHeight} sortBy={panel.options.sortBy} fieldConfig={panel.fieldConfig} />;
  if (panel.type === 'stat') return <Stat panel={panel} data={data} width={width} height={height} />;
  return <Heat panel={panel} data={data} width={width} height={height} />;
}

class Fence extends React.Component {
  state = { error: null };
  static getDerivedStateFromError(error) { return { error }; }
  componentDidCatch(error) { report.find((r) => r.id === this.props.id).error = String(error); }
  render() { return this.state.error ? <pre style={{ color: 'red' }}>{String(this.state.error.stack)}</pre> : this.props.children; }
}

async function prepared(panel) {
  let data = frames(panel);
  if (panel.transformations?.length) data = await lastValueFrom(transformDataFrame(panel.transformations, data));
  data = configured(panel, data);
  report.push({ id: panel.id, title: panel.title, type: panel.type, frames: data.length, points: data.reduce((n, f) => n + f.length, 0) });
  return [panel, data];
}

async function main() {
  const [first, last] = (new URLSearchParams(location.search).get('y') ?? '0,100000').split(',').map(Number);
  const panels = dashboard.panels.filter((p) => p.gridPos.y >= first && p.gridPos.y < last);
  const ready = await Promise.all(panels.filter((p) => p.type !== 'row').map(prepared));
  const scale = WIDTH / 24;
  const place = ({ gridPos: g }) => ({ position: 'absolute', left: g.x * scale, top: (g.y - first) * CELL, width: g.w * scale - GAP, height: g.h * CELL - GAP });
  const context = { eventBus: new EventBusSrv(), eventsScope: '__global_', canAddAnnotations: () => false };
  createRoot(document.getElementById('root')).render(
    <ThemeContext.Provider value={theme}>
      <GlobalStyles />
      <PanelContextProvider value={context}>
        {panels.filter((p) => p.type === 'row').map((p) => <h4 key={p.id} style={{ ...place(p), margin: 4 }}>{p.title}</h4>)}
        {ready.map(([panel, data]) => (
          <div key={panel.id} style={place(panel)} data-panel={panel.id}>
            <PanelChrome title={panel.title} description={panel.description} width={panel.gridPos.w * scale - GAP} height={panel.gridPos.h * CELL - GAP}>
              {(width, height) => <Fence id={panel.id}><Drawn panel={panel} data={data} width={width} height={height} /></Fence>}
            </PanelChrome>
          </div>
        ))}
      </PanelContextProvider>
    </ThemeContext.Provider>,
  );
  setTimeout(() => {
    for (const r of report) {
      const box = document.querySelector(`[data-panel="${r.id}"]`);
      r.canvas = box.querySelectorAll('canvas').length;
      r.text = box.innerText.slice(0, 200);
    }
    const out = document.createElement('script');
    out.type = 'application/json'; out.id = 'report'; out.textContent = JSON.stringify(report);
    document.body.append(out);
  }, 1500);
}
window.addEventListener('error', (e) => document.body.append(e.message));
main().catch((e) => document.body.append('FAILED ' + e.stack));
