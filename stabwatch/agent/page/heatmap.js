// A signal over layers and steps: a row for each layer in forward order, a colour for each value, and the scale beside it.
import { number } from "./names.js";

const STOPS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]]; // viridis

export function shade(t) {
  const at = Math.min(0.9999, Math.max(0, t)) * (STOPS.length - 1);
  const i = Math.floor(at);
  return STOPS[i].map((v, k) => Math.round(v + (STOPS[i + 1][k] - v) * (at - i)));
}

// lines: of a chart; columns: their values; range: [first, last] index of the steps that are shown. Returns low, high, log.
export function drawHeatmap(canvas, lines, columns, steps, range, log) {
  const [first, last] = range;
  const width = Math.max(1, Math.min(last - first + 1, 400));
  canvas.width = width;
  canvas.height = lines.length;
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, lines.length);
  const value = (v) => (log ? Math.log10(v) : v);
  let low = Infinity;
  let high = -Infinity;
  for (const line of lines) {
    for (let i = first; i <= last; i += 1) {
      const v = columns[line.column][i];
      if (v === null || v === undefined) continue;
      low = Math.min(low, v);
      high = Math.max(high, v);
    }
  }
  lines.forEach((line, row) => {
    const column = columns[line.column];
    let known = null; // a sampled signal keeps its value until the next one
    for (let x = 0; x < width; x += 1) {
      const from = first + Math.floor((x * (last - first + 1)) / width);
      const to = Math.max(from + 1, first + Math.floor(((x + 1) * (last - first + 1)) / width));
      let top = null;
      for (let i = from; i < to; i += 1) {
        const v = column[i];
        if (v !== null && v !== undefined && (top === null || v > top)) top = v;
      }
      if (top !== null) known = top;
      if (known === null) continue;
      const t = high > low ? (value(known) - value(low)) / (value(high) - value(low)) : 0.5;
      image.data.set([...shade(t), 255], 4 * (row * width + x));
    }
  });
  context.putImageData(image, 0, 0);
  return { low, high };
}

export function colourBar(low, high, log) {
  const bar = document.createElement("div");
  bar.className = "colour-bar";
  const ramp = document.createElement("canvas");
  ramp.width = 64;
  ramp.height = 1;
  const context = ramp.getContext("2d");
  for (let x = 0; x < 64; x += 1) {
    context.fillStyle = `rgb(${shade(x / 63).join()})`;
    context.fillRect(x, 0, 1, 1);
  }
  const ends = [low, high].map((v) => { const s = document.createElement("span"); s.textContent = number(v); return s; });
  bar.append(ends[0], ramp, ends[1], log ? "log" : "", "· first layer at the top");
  return bar;
}
