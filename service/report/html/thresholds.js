// Thresholds: ROC and precision-recall curves of a class, and the counts at the threshold that is chosen.
function thresholds(root) {
  const classes = read(root.querySelector('script[type="application/json"]'));
  const select = root.querySelector("[data-class]"), slider = root.querySelector('input[type="range"]');
  const areas = all("table[data-sortable] tbody tr", root.nextElementSibling);
  const [roc, precision] = ["roc", "precision"].map((name) => root.querySelector(`[data-curve="${name}"]`));
  const percent = (share) => (Number.isFinite(share) ? `${(share * 100).toFixed(1)}%` : "\u2013");
  const show = (name, text) => all(`[data-out="${name}"]`, root).forEach((output) => { output.textContent = text; });
  const dots = [roc, precision].map((line) => {
    const dot = make("span", { className: "dot" });
    line.closest(".drawing").append(dot);
    return dot;
  });
  let data = null, points = [];

  function measure(step) {
    const hits = data.hits[step], alarms = data.alarms[step];
    return {
      hits, alarms, misses: data.positives - hits, rejections: data.negatives - alarms,
      recall: hits / data.positives, rate: alarms / data.negatives, precision: hits / (hits + alarms),
      f1: (2 * hits) / (data.positives + hits + alarms), accuracy: (hits + data.negatives - alarms) / (data.positives + data.negatives),
    };
  }
  function choose() {
    data = classes[select.value];
    const stops = data.thresholds.map((_, step) => measure(step));
    const heights = stops.map((stop, step) => (Number.isFinite(stop.precision) ? stop.precision : stops[step + 1].precision));
    points = [stops.map((stop) => [stop.rate, stop.recall]), stops.map((stop, step) => [stop.recall, heights[step]])];
    const write = (list) => list.map(([x, y]) => `${(x * 100).toFixed(2)},${((1 - y) * 100).toFixed(2)}`).join(" ");
    roc.setAttribute("points", write(points[0]));
    // Precision is not interpolated between two thresholds.
    precision.setAttribute("points", write(points[1].flatMap(([x, y], step) => (step ? [[points[1][step - 1][0], y], [x, y]] : [[x, y]]))));
    const share = root.querySelector('[data-curve="share"]'), height = 100 * (data.negatives / (data.positives + data.negatives));
    share.setAttribute("y1", height);
    share.setAttribute("y2", height);
    if (areas[select.value]) ["roc", "average"].forEach((name, index) => show(name, areas[select.value].cells[2 + index].textContent.trim()));
    slider.max = stops.length - 1;
    set(data.start);
  }
  const step = () => slider.max - slider.value;
  function set(wanted) {
    slider.value = slider.max - wanted;
    update();
  }
  function update() {
    const at = measure(step());
    for (const [name, value] of Object.entries(at)) show(name, value > 1 || Number.isInteger(value) && ["hits", "alarms", "misses", "rejections"].includes(name) ? value.toLocaleString("en") : percent(value));
    const threshold = data.thresholds[step()];
    show("threshold", threshold);
    slider.setAttribute("aria-valuetext", `${threshold}: precision ${percent(at.precision)}, recall ${percent(at.recall)}, false positive rate ${percent(at.rate)}`);
    dots.forEach((dot, plot) => {
      const [x, y] = points[plot][step()];
      dot.style.left = `${x * 100}%`;
      dot.style.top = `${(1 - y) * 100}%`;
    });
  }
  function follow(event, plot) {
    const box = dots[plot].parentElement.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width, y = 1 - (event.clientY - box.top) / box.height;
    const distances = points[plot].map(([u, v]) => (u - x) ** 2 + (v - y) ** 2);
    set(distances.indexOf(Math.min(...distances)));
  }
  dots.forEach((dot, plot) => {
    const drawing = dot.parentElement;
    drawing.addEventListener("pointerdown", (event) => {
      drawing.setPointerCapture(event.pointerId);
      follow(event, plot);
    });
    drawing.addEventListener("pointermove", (event) => drawing.hasPointerCapture(event.pointerId) && follow(event, plot));
  });
  select.addEventListener("change", choose);
  slider.addEventListener("input", update);
  choose();
}
