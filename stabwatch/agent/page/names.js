// Names of layers and numbers, as short as they stay clear.

export function number(v) {
  if (v === null || v === undefined) return "–";
  const a = Math.abs(v);
  if (a !== 0 && (a < 1e-3 || a >= 1e6)) return v.toExponential(1).replace("e+", "e");
  return a >= 1000 ? Math.round(v).toString() : String(Number(v.toPrecision(3)));
}

// How many parameters a model has.
export function counted(parameters) {
  if (!parameters) return "";
  return parameters < 1e6 ? `${parameters.toLocaleString("en")} parameters` : `${number(parameters / 1e6)} M parameters`;
}

// A long module path, shortened where it tells least: its last number and its end tell layers apart.
export function short(name, most = 24) {
  if (name.length <= most) return name;
  const parts = name.split(".");
  const at = parts.findLastIndex((p) => /^\d+$/.test(p));
  if (at < 0 || parts.slice(at).join(".").length < most) return `…${name.slice(1 - most)}`;
  const end = parts.slice(at + 1);
  const head = `…${parts[at]}`;
  while (end.length > 1 && head.length + end.join(".").length + 2 > most) end.shift();
  const dropped = end.length < parts.length - at - 1;
  const tail = end.join(".");
  const room = Math.max(6, most - head.length - 2);
  return `${head}.${dropped || tail.length > room ? "…" : ""}${tail.length > room ? tail.slice(-room) : tail}`;
}

// Names that differ in their first number are one: layers.{9, 30, 63}.attn, in the order of the first of them.
export function grouped(names, most = 6) {
  const groups = new Map();
  for (const name of new Set(names)) {
    const parts = name.split(".");
    const at = parts.findIndex((p) => /^\d+$/.test(p));
    const key = at < 0 ? name : JSON.stringify([parts.slice(0, at), parts.slice(at + 1)]);
    const known = groups.get(key);
    if (known) known.numbers.push(parts[at]);
    else groups.set(key, { parts, at, numbers: [parts[at]] });
  }
  return [...groups.values()].map(({ parts, at, numbers }) => {
    if (at < 0 || numbers.length === 1) return parts.join(".");
    const more = numbers.length > most ? ` and ${numbers.length - most} more` : "";
    return [...parts.slice(0, at), `{${numbers.slice(0, most).join(", ")}${more}}`, ...parts.slice(at + 1)].join(".");
  });
}

export function some(items, most) {
  return items.length > most ? `${items.slice(0, most).join(", ")} and ${items.length - most} more` : items.join(", ");
}
