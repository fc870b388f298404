// Embedding: a scatter plot of images on a canvas; a point is described when it is pointed at, tapped, or reached by arrow keys.
const MOST_HUES = 12; // of more classes, neighbouring hues could not be told apart: one class is picked out instead

// Positions are in `steps` per side, rows as differences to the row before; a class is predicted unless `errors` says otherwise.
function readPoints({ steps, x, y, truth, errors, gaps }) {
  let row = 0;
  return gaps.map((gap, i) => {
    row += gap;
    return { x: x[i] / steps, y: y[i] / steps, truth: truth[i], predicted: errors[i] ?? truth[i], row };
  });
}

function embedding(root) {
  const data = read(root.querySelector('script[type="application/json"]')), points = readPoints(data);
  const canvas = root.querySelector("canvas"), readout = root.querySelector("[data-readout]"), legend = root.querySelector("[data-legend]");
  const only = root.querySelector("[data-only]"), isDark = matchMedia("(prefers-color-scheme: dark)"), context = canvas.getContext("2d");
  const order = points.map((_, index) => index).sort((a, b) => points[a].x - points[b].x || points[a].y - points[b].y);
  let chosen = null;
  canvas.style.aspectRatio = 1 / data.ratio;

  const mode = () => root.querySelector("input:checked").value;
  const hue = (label) => `oklch(${isDark.matches ? 0.78 : 0.58} 0.15 ${(label * 360) / Math.min(data.classes.length, MOST_HUES) + 30})`;
  const isWrong = (point) => point.truth !== point.predicted;
  const isShown = (point) => only.value === "" || point.truth === +only.value;
  function paint(point) {
    if (!isShown(point)) return colour("--line");
    if (mode() === "error") return colour(isWrong(point) ? "--incorrect" : "--correct");
    return data.classes.length > MOST_HUES ? colour(only.value === "" ? "--training" : "--validation") : hue(point.truth);
  }
  function mark({ x, y, truth, predicted }, radius) {
    const [u, v] = [x * canvas.clientWidth, y * canvas.clientHeight];
    context.beginPath();
    if (truth === predicted) {
      context.arc(u, v, radius, 0, 7);
      context.fill();
    } else {
      context.moveTo(u - radius, v - radius);
      context.lineTo(u + radius, v + radius);
      context.moveTo(u - radius, v + radius);
      context.lineTo(u + radius, v - radius);
      context.stroke();
    }
  }
  function draw() {
    const side = canvas.clientWidth, ratio = devicePixelRatio || 1;
    if (!side) return;
    canvas.width = side * ratio;
    canvas.height = canvas.clientHeight * ratio;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    const radius = Math.max(1.6, Math.min(4, (side / 8) / Math.sqrt(points.length))), paints = new Map();
    for (const point of points) {
      const key = `${isShown(point) ? 1 : 0}${isWrong(point) ? 1 : 0}${paint(point)}`;
      if (!paints.has(key)) paints.set(key, []);
      paints.get(key).push(point);
    }
    // What is picked out, and what is wrong, lies on top.
    for (const key of [...paints.keys()].sort()) {
      const style = paint(paints.get(key)[0]);
      Object.assign(context, { fillStyle: style, strokeStyle: style, lineWidth: 1.6, globalAlpha: key[1] === "1" ? 1 : 0.7 });
      for (const point of paints.get(key)) mark(point, key[1] === "1" ? radius + 1 : radius);
    }
    if (chosen === null) return;
    const { x, y } = points[chosen];
    Object.assign(context, { strokeStyle: colour("--ink"), lineWidth: 2, globalAlpha: 1 });
    context.beginPath();
    context.arc(x * side, y * canvas.clientHeight, 8, 0, 7);
    context.stroke();
  }
  function explain() {
    const swatch = (style, text) => {
      const key = make("span", { className: "swatch", textContent: text });
      key.style.setProperty("--swatch", style);
      return key;
    };
    let keys = [];
    if (mode() === "error") keys = [swatch(colour("--correct"), "correct"), swatch(colour("--incorrect"), "incorrect")];
    else if (data.classes.length <= MOST_HUES) keys = data.classes.map((name, label) => swatch(hue(label), name));
    else keys = [swatch(colour(only.value === "" ? "--training" : "--validation"), only.value === "" ? "all classes: choose one to pick it out" : data.classes[+only.value])];
    legend.replaceChildren(...keys);
  }
  function select(index) {
    chosen = index;
    const { row, truth, predicted } = points[index];
    const link = make("a", { href: `#gallery:row=${row}`, textContent: `${data.split} image ${row}` });
    readout.replaceChildren(link, `: ${data.classes[truth]}, predicted ${truth === predicted ? "correctly" : data.classes[predicted]}`);
    draw();
  }
  function nearest(event, reach) {
    const box = canvas.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    const distance = ({ x: u, y: v }) => (u * box.width - x) ** 2 + (v * box.height - y) ** 2;
    let best = null, least = reach ** 2;
    points.forEach((point, index) => {
      if (!isShown(point) || distance(point) >= least) return;
      least = distance(point);
      best = index;
    });
    if (best !== null && best !== chosen) select(best);
  }
  function step(by) {
    const shown = order.filter((index) => isShown(points[index])), at = shown.indexOf(chosen);
    if (shown.length) select(shown[Math.max(0, Math.min(shown.length - 1, at + by))]);
  }
  canvas.addEventListener("pointermove", (event) => event.pointerType === "mouse" && nearest(event, 14));
  canvas.addEventListener("pointerdown", (event) => nearest(event, 40));
  canvas.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -10, ArrowDown: 10 }[event.key];
    if (!by) return;
    event.preventDefault();
    step(by);
  });
  const refresh = () => { explain(); draw(); };
  root.addEventListener("change", refresh);
  isDark.addEventListener("change", refresh);
  new ResizeObserver(draw).observe(canvas);
  explain();
}
