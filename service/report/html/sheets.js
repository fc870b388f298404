// Sheets: the channels of a layer as tiles of one picture; each has a description, can be enlarged, and be sorted.
const dialog = make("dialog", { className: "zoom" });
dialog.setAttribute("aria-label", "Enlarged channel");
dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());

function zoom(owner) {
  const canvas = make("canvas"), status = make("p", { className: "status" });
  const step = (by, text) => make("button", { type: "button", textContent: text, onclick: () => { owner.move(by); draw(); } });
  const close = make("button", { type: "button", textContent: "Close", onclick: () => dialog.close() });
  function draw() {
    const [x, y, w, h] = owner.tile(owner.channel()), factor = Math.max(1, Math.floor(Math.min(480, innerWidth - 80) / Math.max(w, h)));
    canvas.width = w * factor;
    canvas.height = h * factor;
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(owner.image, x, y, w, h, 0, 0, canvas.width, canvas.height);
    canvas.setAttribute("aria-label", owner.describe());
    status.textContent = owner.describe();
  }
  canvas.setAttribute("role", "img");
  dialog.replaceChildren(canvas, status, make("p", { className: "controls" }, step(-1, "Previous"), step(1, "Next"), close));
  dialog.onkeydown = (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by) { owner.move(by); draw(); }
  };
  draw();
  if (!dialog.open) dialog.showModal();
}

function sheet(figure) {
  const image = figure.querySelector("img"), script = figure.querySelector('script[type="application/json"]');
  if (!image || !script) return;
  const layout = read(script), { columns, count } = layout, channels = [...Array(count).keys()];
  const box = make("span", { className: "box", hidden: true }), canvas = make("canvas", { hidden: true });
  const isShared = Boolean(figure.closest("[data-sheets]")), place = figure.querySelector("[data-status]");
  const status = place || make("span", { className: "status" }), button = make("button", { type: "button", className: "sheet" });
  let order = channels, at = 0, isSorted = false;
  canvas.setAttribute("aria-hidden", "true");
  const number = (channel) => (layout.numbers ? layout.numbers[channel] : channel);
  const owner = {
    image,
    channel: () => order[at],
    tile: (channel) => [layout.offset[0] + (channel % columns) * layout.pitch[0], layout.offset[1] + Math.floor(channel / columns) * layout.pitch[1], ...layout.tile],
    move(by) { at = Math.max(0, Math.min(count - 1, at + by)); point(); },
    describe() {
      const channel = order[at], activation = `, mean activation ${+(layout.activity[channel] * layout.step).toPrecision(3)}`;
      return `Channel ${number(channel)} of ${count}${activation}${layout.blank.includes(channel) ? ", inactive" : ""}`;
    },
  };
  function point() {
    const [x, y, w, h] = owner.tile(at), width = image.getAttribute("width"), height = image.getAttribute("height");
    Object.assign(box.style, { left: `${(x / width) * 100}%`, top: `${(y / height) * 100}%`, width: `${(w / width) * 100}%`, height: `${(h / height) * 100}%` });
    box.hidden = false;
    status.textContent = owner.describe();
  }
  function hover(event) {
    const rect = button.getBoundingClientRect(), scale = image.getAttribute("width") / rect.width;
    const column = Math.floor(((event.clientX - rect.left) * scale - layout.offset[0]) / layout.pitch[0]);
    const index = Math.floor(((event.clientY - rect.top) * scale - layout.offset[1]) / layout.pitch[1]) * columns + column;
    if (column >= 0 && column < columns && index >= 0 && index < count && index !== at) { at = index; point(); }
  }
  async function sort(sorted) {
    if (sorted === isSorted) return;
    isSorted = sorted;
    image.loading = "eager";
    await image.decode();
    order = sorted ? [...channels].sort((a, b) => layout.activity[b] - layout.activity[a] || a - b) : channels;
    canvas.width = image.naturalWidth;
    canvas.height = image.naturalHeight;
    canvas.className = image.className;
    const context = canvas.getContext("2d");
    order.forEach((channel, position) => context.drawImage(image, ...owner.tile(channel), ...owner.tile(position)));
    canvas.hidden = !sorted;
    image.classList.toggle("under", sorted);
    at = 0;
    if (document.activeElement === button) point();
  }
  button.style.maxWidth = `${2 * image.getAttribute("width")}px`; // a few channels need not fill the page
  button.style.setProperty("--columns", columns);
  const outer = image.closest("a") || image;
  outer.replaceWith(button);
  button.append(image, canvas, box);
  button.setAttribute("aria-label", `${image.alt}. Use the arrow keys to select a channel and Enter to enlarge it.`);
  button.addEventListener("pointermove", hover);
  button.addEventListener("pointerleave", () => { box.hidden = document.activeElement !== button; });
  button.addEventListener("focus", point);
  button.addEventListener("blur", () => { box.hidden = true; });
  button.addEventListener("click", async () => { image.loading = "eager"; await image.decode(); zoom(owner); });
  button.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
    if (by) { event.preventDefault(); owner.move(by); }
  });
  status.setAttribute("aria-live", "polite");
  figure.addEventListener("sort", (event) => sort(event.detail));
  if (isShared) {
    if (!place) button.after(status);
    return;
  }
  const bar = make("p", { className: "controls" }, status);
  if (count > 1) bar.prepend(pressButton("Sort by activation", sort));
  button.after(bar);
}

// A button that is pressed or not, and tells which.
function pressButton(text, change) {
  const button = make("button", { type: "button", textContent: text, onclick: () => press(button, change) });
  button.setAttribute("aria-pressed", "false");
  return button;
}

function press(button, change) {
  const pressed = button.getAttribute("aria-pressed") !== "true";
  button.setAttribute("aria-pressed", pressed);
  change(pressed);
}

// One button for all sheets around it: each is sorted when it comes into view, because sorting decodes its picture.
function sortSheets(button) {
  const sheets = all("[data-sheet]", button.closest("[data-sheets]"));
  let sorted = false;
  const observer = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) target.dispatchEvent(new CustomEvent("sort", { detail: sorted }));
    }
  });
  button.hidden = !sheets.length;
  button.addEventListener("click", () => press(button, (pressed) => {
    sorted = pressed;
    observer.disconnect(); // observing anew reports what is in view now
    for (const figure of sheets) observer.observe(figure);
  }));
}
