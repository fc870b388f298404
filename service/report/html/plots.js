// Plots: the data of `plot.html`, drawn by uPlot in the colours of the page.
function plot(figure) {
  const holder = figure.querySelector(".canvas"), data = read(figure.querySelector("script")), readout = figure.querySelector(".readout");
  let chart = null, drawn = 0;
  function draw() {
    const width = Math.floor(holder.clientWidth);
    if (!width) return;
    if (chart) chart.destroy();
    drawn = width;
    chart = new uPlot(options(data, width, readout), [data.x, ...data.lines.map((line) => line.values)], holder);
  }
  new ResizeObserver(() => Math.floor(holder.clientWidth) !== drawn && draw()).observe(holder);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
}

const formatValue = (data, value) => (value == null ? "\u2013" : minus(data.percent ? `${(value * 100).toFixed(1)}%` : String(+value.toPrecision(4))));
const formatX = (data, index) => (data.ticks.length ? data.ticks[index] : String(+data.x[index].toPrecision(4)));

// Names of layers can be long paths, of which the end tells them apart.
const LONGEST_TICK = 18;
const shorten = (name) => (name.length > LONGEST_TICK ? `\u2026${name.slice(1 - LONGEST_TICK)}` : name);

// The least distance of two ticks in pixels: names must not overlap.
function tickSpace(data, width) {
  if (!data.ticks.length) return {};
  const longest = Math.max(...data.ticks.map((name) => shorten(name).length));
  return { space: Math.min(7 * longest + 12, width / 2) };
}

function options(data, width, readout) {
  const font = "12px system-ui, sans-serif", soft = colour("--soft"), grid = { stroke: colour("--line"), width: 1 };
  const levels = data.levels.map(([value]) => value), whole = data.x.every(Number.isInteger);
  const axis = { stroke: soft, font, grid, ticks: grid };
  const limits = data.percent ? [0, 1] : [-Infinity, Infinity];
  function range(low, high) { // an almost flat line is not stretched: its ticks would be closer than floating-point numbers
    const least = data.percent ? 0.02 : 1e-3 * Math.max(Math.abs(low), Math.abs(high)) || 1, missing = Math.max(0, least - (high - low)) / 2;
    return uPlot.rangeNum(low - missing, high + missing, { min: { pad: 0.08, hard: limits[0] }, max: { pad: 0.08, hard: limits[1] } });
  }
  return {
    width, height: Math.max(220, Math.min(300, Math.round(width * 0.6))), legend: { show: false }, padding: [12, data.ticks.length ? 32 : 12, 0, 0], // half of the last label
    cursor: { y: false, drag: { x: false, y: false, setScale: false }, points: { size: 8 } },
    scales: {
      x: { time: false, range: (u, low, high) => (low === high ? [low - 1, high + 1] : [low, high]) },
      y: data.log ? { distr: 3, range: (u, low, high) => uPlot.rangeLog(low, high, 10, true) } : { range: (u, low, high) => range(Math.min(low, ...levels), Math.max(high, ...levels)) },
    },
    series: [{}, ...data.lines.map((line) => ({
      label: line.name, stroke: colour(`--${line.role}`), width: 2, spanGaps: true, points: { show: data.x.length <= 16, size: 6, fill: colour(`--${line.role}`) },
    }))],
    axes: [
      { ...axis, size: 40, ...tickSpace(data, width), label: data.x_label, labelFont: font, labelSize: 18, grid: { show: false },
        ...(whole ? { incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000] } : {}),
        values: (u, ticks) => ticks.map((tick) => (data.ticks.length ? shorten(data.ticks[data.x.indexOf(tick)] ?? "") : minus(String(+tick.toPrecision(6))))) },
      { ...axis, size: (u, labels) => Math.max(52, ...(labels ?? []).map((label) => 14 + 8 * label.length)), values: (u, ticks) => ticks.map((tick) => (tick == null ? "" : data.log && tick < 1e-3 ? minus(tick.toExponential(0)) : minus(data.percent ? `${+(tick * 100).toFixed(1)}%` : String(+tick.toPrecision(6))))) },
    ],
    hooks: {
      drawAxes: [(u) => data.shade && shade(u, data)],
      draw: [(u) => notes(u, data)],
      setCursor: [(u) => {
        const index = u.cursor.idx;
        readout.textContent = index == null ? "" :
          `${data.x_label} ${formatX(data, index)}: ${data.lines.map((line) => `${line.name} ${formatValue(data, line.values[index])}`).join(", ")}`;
      }],
    },
  };
}

function shade(u, data) {
  const [first, second] = data.lines.map((line) => line.values), points = [];
  data.x.forEach((x, i) => first[i] != null && second[i] != null && points.push([x, first[i], second[i]]));
  const at = (x, y) => [u.valToPos(x, "x", true), u.valToPos(y, "y", true)], path = new Path2D();
  points.forEach(([x, y]) => path.lineTo(...at(x, y)));
  points.reverse().forEach(([x, , y]) => path.lineTo(...at(x, y)));
  u.ctx.fillStyle = colour("--gap");
  u.ctx.fill(path);
}

function notes(u, data) {
  const { ctx } = u, { left, top, width, height } = u.bbox, ratio = devicePixelRatio;
  ctx.save();
  ctx.font = `${12 * ratio}px system-ui, sans-serif`;
  ctx.lineWidth = ratio;
  ctx.setLineDash([3 * ratio, 4 * ratio]);
  ctx.strokeStyle = colour("--soft");
  const line = (...points) => {
    ctx.beginPath();
    ctx.moveTo(points[0], points[1]);
    ctx.lineTo(points[2], points[3]);
    ctx.stroke();
  };
  const write = (text, x, y) => {
    ctx.textAlign = "left";
    ctx.setLineDash([]);
    ctx.lineWidth = 4 * ratio;
    ctx.lineJoin = "round";
    ctx.strokeStyle = colour("--paper");
    ctx.strokeText(text, x, y);
    ctx.fillStyle = colour("--ink");
    ctx.fillText(text, x, y);
    ctx.setLineDash([3 * ratio, 4 * ratio]);
    ctx.lineWidth = ratio;
    ctx.strokeStyle = colour("--soft");
  };
  const lines = data.lines.map((l) => l.values.map((v, i) => (v == null ? null : [u.valToPos(data.x[i], "x", true), u.valToPos(v, "y", true)])));
  const heights = data.levels.map(([value]) => u.valToPos(value, "y", true));
  // Heights of the lines at a position on the x axis.
  const heightsAt = (x) => lines.flatMap((points) => points.flatMap((point, i) => {
    const next = points[i + 1];
    if (!point || !next || x < point[0] || x > next[0]) return [];
    return [point[1] + ((x - point[0]) / (next[0] - point[0] || 1)) * (next[1] - point[1])];
  }));
  const SAMPLES = 32; // under a label: enough to see the spike of a single epoch
  const along = (x, length) => [...Array(SAMPLES + 1).keys()].flatMap((n) => heightsAt(x + (n * length) / SAMPLES));
  // Distance of a label that begins at x, at height y, from the nearest line.
  const clearance = (x, y, length) => Math.min(...[...heights, ...along(x, length)].map((h) => Math.abs(h - y)), height);
  for (const [value, text] of data.levels) {
    const y = u.valToPos(value, "y", true), length = ctx.measureText(text).width, above = y > top + height / 2;
    line(left, y, left + width, y);
    const away = (x) => Math.min(...along(x, length).map((h) => Math.abs(h - y)), height);
    const x = away(left) > away(left + width - length) ? left + 4 * ratio : left + width - length - 4 * ratio;
    write(text, x, y + (above ? -6 : 15) * ratio);
    heights.push(y + (above ? -12 : 12) * ratio);
  }
  for (const [value, text] of data.marks) {
    const x = u.valToPos(value, "x", true), rows = ctx.measureText(text).width > width * 0.45 ? text.split(", ") : [text];
    const length = Math.max(...rows.map((row) => ctx.measureText(row).width)), step = 15 * ratio;
    line(x, top, x, top + height);
    const beside = x - length - 10 * ratio < left ? x + 6 * ratio : x - length - 6 * ratio, enough = 12 * ratio;
    const clear = ([start, y]) => Math.min(enough, ...rows.map((_, n) => clearance(start, y + n * step - 4 * ratio, length)));
    // Next to its line if there is space, else at the left or right end of the plot.
    const places = [beside, left + 6 * ratio, left + width - length - 6 * ratio].flatMap((start) =>
      [...Array(9).keys()].map((n) => [start, top + 14 * ratio + (n * (height - 24 * ratio - (rows.length - 1) * step)) / 8]));
    const [[start, y]] = places.sort((a, b) => clear(b) - clear(a));
    rows.forEach((row, n) => write(row, start, y + n * step));
  }
  ctx.restore();
}
