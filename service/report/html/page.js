// The behaviour of the page. Without scripts everything in it is visible, one below the other.

// A fragment names an element and, after a colon, the state of its controls: `#saliency:image=2,layer=1`.
function readFragment() {
  const [id, state = ""] = decodeURIComponent(location.hash.slice(1)).split(":");
  return { id, state: Object.fromEntries(new URLSearchParams(state.replaceAll(",", "&"))) };
}

// ---- views: one at a time, selected by the URL fragment ----
// All but the first lie in scripts next to the page, because a page on a disk may not fetch anything else.
// The script of a view calls this with its markup.
function deliver(id, html) {
  const place = document.getElementById(id), view = make("template", { innerHTML: html }).content.firstElementChild;
  view.hidden = place.hidden;
  place.replaceWith(view);
  enhance(view);
}

function loadView(place) {
  const { source } = place.dataset;
  const fail = () => place.append(make("p", { className: "warning", textContent: `The file ${source} of this view is missing: it belongs next to the page.` }));
  place.arrival ??= new Promise((done) => document.head.append(make("script", { src: source, onload: done, onerror: fail })));
  return place.arrival;
}

function views() {
  const sections = () => all("[data-view]"), links = all("nav.views a");
  if (!sections().length) return;
  const title = document.title;
  let lastId = null;
  function findView(id) {
    const target = document.getElementById(id);
    return target ? target.closest("[data-view]") : sections().find((section) => section.dataset.holds?.split(" ").includes(id));
  }
  async function show(isNavigation) {
    const { id } = readFragment(), owner = findView(id);
    if (isNavigation && !owner && document.getElementById(id)) return; // an element outside the views, such as the target of the skip link
    const view = owner || sections()[0];
    for (const section of sections()) section.hidden = section !== view;
    for (const link of links) {
      if (link.hash === "#" + view.id) {
        link.setAttribute("aria-current", "page");
        if (isNavigation) document.title = `${link.textContent.trim()} · ${title}`;
        const strip = link.parentElement;
        strip.scrollLeft = link.offsetLeft - strip.offsetLeft - (strip.clientWidth - link.offsetWidth) / 2;
      } else link.removeAttribute("aria-current");
    }
    const isSame = id === lastId; // only the state of its controls has changed
    lastId = id;
    if (view.dataset.source) await loadView(view);
    if (isSame || id !== lastId) return;
    const target = owner && document.getElementById(id);
    for (let box = target?.closest("details"); box; box = box.parentElement.closest("details")) box.open = true;
    if (target && target.id !== view.id) target.scrollIntoView();
    else if (isNavigation) scrollTo(0, 0);
  }
  addEventListener("hashchange", () => show(true));
  show(false);
}

// Sets a control as a user would; it stays as it is if it does not offer the value.
function setControl(control, value) {
  const before = control.value;
  if (control.type === "radio") {
    if (before !== value) return;
    control.checked = true;
  } else {
    control.value = value;
    if (control.value !== value) control.value = before;
  }
  control.dispatchEvent(new Event("input", { bubbles: true }));
}

// ---- panels: selects, sliders and radio buttons decide which elements are shown ----
// A panel inside another one also follows the controls of the outer one: one selector can serve a whole view.
function panels(root) {
  const enclosing = (element) => element.parentElement.closest("[data-panels]");
  const own = (selector, panel) => all(selector, panel).filter((element) => enclosing(element) === panel);
  const outer = [];
  for (let panel = enclosing(root); panel; panel = enclosing(panel)) outer.unshift(panel);
  const ownControls = own("[data-key]", root), controls = outer.flatMap((panel) => own("[data-key]", panel)).concat(ownControls);
  const parts = own("[data-when]", root).map((part) => [part, JSON.parse(part.dataset.when)]);
  const isActive = (control) => (control.type !== "radio" || control.checked) && !control.closest("[data-when][hidden]");
  function readControls() {
    return Object.fromEntries(controls.filter(isActive).map((control) => [control.dataset.key, control.value]));
  }
  function update() {
    for (let pass = 0; pass < 2; pass += 1) { // the second pass reads controls that the first one has shown
      const values = readControls();
      for (const [part, when] of parts) {
        part.hidden = Object.entries(when).some(([key, value]) => key in values && values[key] !== "" && ![value].flat().map(String).includes(values[key]));
      }
    }
    for (const control of ownControls) {
      if (!control.dataset.labels) continue;
      const label = JSON.parse(control.dataset.labels)[control.value - (control.min || 0)] ?? control.value;
      control.setAttribute("aria-valuetext", label);
      own(`[data-output="${control.dataset.key}"]`, root).forEach((output) => { output.textContent = label; });
    }
    own("[data-empty]", root).forEach((note) => { note.hidden = parts.some(([part]) => !part.hidden); });
  }
  function applyFragment() {
    const { id, state } = readFragment(), target = document.getElementById(id);
    if (!target || !(root.contains(target) || target.contains(root))) return;
    for (const control of ownControls) {
      if (control.dataset.key in state) setControl(control, state[control.dataset.key]);
    }
  }
  (outer[0] ?? root).addEventListener("input", (event) => event.target.matches("[data-key]") && update());
  addEventListener("hashchange", applyFragment);
  applyFragment();
  update();
}

// The maps of the figure before, over the photo of this one. Without scripts it stays hidden.
function overlay(figure) {
  for (const map of all("img[data-when]", figure.previousElementSibling)) {
    // Not a clone, whose picture is fetched at once: it has to be lazy before it has an address.
    const size = { width: map.getAttribute("width"), height: map.getAttribute("height") };
    const copy = make("img", { loading: "lazy", alt: "", className: `map ${map.className}`, ...size, src: map.getAttribute("src") });
    copy.dataset.when = map.dataset.when;
    figure.querySelector(".overlay").append(copy);
  }
  figure.hidden = false;
}

function opacity(slider) {
  const root = slider.closest("[data-panels]") || slider.closest("section") || document.body;
  const update = () => root.style.setProperty("--map", slider.value / 100);
  slider.addEventListener("input", update);
  update();
}

// Scrollable boxes can be scrolled by keyboard, and have a label.
function labelScrollBox(box) {
  const labelled = box.closest("details, section");
  box.tabIndex = 0;
  box.setAttribute("role", "region");
  if (!box.hasAttribute("aria-label")) box.setAttribute("aria-label", labelled ? labelled.querySelector("summary, h2, h3").textContent.trim() : "Table");
}

// What the elements of a page do, in this order.
const BEHAVIOURS = [
  [".scroll", labelScrollBox],
  ["[data-share]", (bar) => { bar.style.width = `${Math.max(0, Math.min(1, +bar.dataset.share)) * 100}%`; }],
  ["[data-shade]", (cell) => cell.style.setProperty("--shade", cell.dataset.shade.includes(".") ? cell.dataset.shade : cell.dataset.shade / 10)],
  ["[data-overlay]", overlay], // before its maps become parts of a panel
  ["[data-panels]", panels],
  ["[data-opacity]", opacity],
  ["[data-sheet]", sheet],
  ["[data-sort-sheets]", sortSheets],
  ["[data-find-layer]", findLayer],
  ["[data-jump]", openOnWideScreens],
  ["[data-open-all]", openAll],
  ["table[data-sortable]", sortable],
  ["table.numbers:not(.matrix)", labelCells],
  ["[data-runs]", runIndex],
  ["[data-plot]", plot],
  ["[data-thresholds]", thresholds],
  ["[data-rest]", classScores],
  ["[data-embedding]", embedding],
  ["[data-gallery]", gallery],
  ["[data-matrix]", linkMatrix],
];

// Gives an element, and the elements in it, their behaviour.
function enhance(root) {
  for (const [selector, behave] of BEHAVIOURS) {
    for (const element of all(selector, root.parentElement)) {
      if (root.contains(element)) behave(element);
    }
  }
}

enhance(document.body);
document.body.append(dialog);
views();
