// The gallery: thumbnails from sprite sheets, sorted and filtered; links into it, and a panel for one image.
const PAGE_IMAGES = 200;
const THUMBNAIL_SIDE = 96; // pixels of the longer side of a thumbnail on the screen
const CRISP_SIDE = 48; // images up to this size are enlarged by whole factors, without smoothing
const FIELDS = ["sort", "correct", "truth", "predicted", "cluster"];

// The columns that service/report/analysis/gallery.py lists, as values of all images; the predicted class is class 0.
function readTable({ gaps, truth, errors, losses, others, rests, clusters, ids, id_start: idStart, probability_steps: probabilitySteps, loss_steps: lossSteps }) {
  let row = 0;
  const rows = gaps.map((gap) => (row += gap));
  const classes = [truth.map((label, i) => errors[i] ?? label), ...others];
  // What a class and the more probable ones leave of 1.
  const probabilities = rests.map((rest, place) => rest.map((steps, i) => ((place ? rests[place - 1][i] : probabilitySteps) - steps) / probabilitySteps));
  // The loss of a correct prediction follows from its probability.
  const loss = probabilities[0].map((probability, i) => (i in losses ? losses[i] / lossSteps : -Math.log(probability)));
  return { row: rows, truth, loss, cluster: clusters, ids: ids.map((id) => idStart + id), classes, probabilities, class0: classes[0], probability0: probabilities[0] };
}

// The order of the images: groups first, and within a group the highest loss first.
function compareImages(table, sort) {
  const falling = (values) => (a, b) => values[b] - values[a];
  const rising = (values) => (a, b) => values[a] - values[b];
  const first = {
    loss: falling(table.loss), confidence: falling(table.probability0), unsure: rising(table.probability0),
    truth: rising(table.truth), row: rising(table.row),
    cluster: (a, b) => (table.cluster[a] < 0) - (table.cluster[b] < 0) || table.cluster[a] - table.cluster[b],
  }[sort];
  return (a, b) => first(a, b) || table.loss[b] - table.loss[a] || a - b;
}

function selectImages(table, state, text = "") {
  const isCorrect = (i) => table.truth[i] === table.class0[i], needle = text.trim().toLowerCase();
  const tests = [];
  if (state.correct) tests.push((i) => isCorrect(i) === (state.correct === "yes"));
  if (state.truth) tests.push((i) => table.truth[i] === +state.truth);
  if (state.predicted) tests.push((i) => table.class0[i] === +state.predicted);
  if (state.cluster) tests.push((i) => table.cluster[i] === +state.cluster);
  if (needle) tests.push((i) => String(table.row[i]) === needle || table.ids[i].toLowerCase().includes(needle));
  const images = [...table.row.keys()].filter((i) => tests.every((test) => test(i)));
  return images.sort(compareImages(table, state.sort || "loss"));
}

function gallery(root) {
  const data = read(root.querySelector("script")), { layout, names } = data, table = readTable(data);
  const [width, height] = layout.tile, longest = Math.max(width, height), isCrisp = longest <= CRISP_SIDE;
  const grid = root.querySelector(".thumbnails"), count = root.querySelector("[data-count]"), pager = root.querySelector(".pager");
  const search = root.querySelector("input"), selects = all("[data-field]", root);
  const panel = make("dialog", { className: "zoom inspect" });
  let state = {}, images = [], page = 0;

  const sheets = all("div[hidden] > img", root).map((image, index) => `.tile[data-sheet-number="${index}"] {
    background-image: url("${image.src}"); background-size: calc(${image.getAttribute("width")}px * var(--scale)) auto; }`);
  document.head.append(make("style", { textContent: sheets.join("\n") }));
  for (const field of ["truth", "predicted"]) {
    root.querySelector(`[data-field="${field}"]`).append(...names.map((name, label) => make("option", { value: label, textContent: name })));
  }

  const isCorrect = (i) => table.truth[i] === table.class0[i];
  // Rounded values are not shown as 0 or 100 %, which they may not be.
  function percent(share, digits = 1) {
    const step = 10 ** -digits, text = (share * 100).toFixed(digits);
    if (+text >= 100) return `>${(100 - step).toFixed(digits)}%`;
    return +text > 0 ? `${text}%` : `<${step.toFixed(digits)}%`;
  }
  const loss = (i) => (table.loss[i] < 0.0005 ? "<0.001" : table.loss[i].toFixed(3));
  const mark = (i) => {
    const sign = make("span", { className: `mark ${isCorrect(i) ? "correct" : "incorrect"}`, textContent: isCorrect(i) ? "\u2713" : "\u2717" });
    sign.setAttribute("role", "img");
    sign.setAttribute("aria-label", isCorrect(i) ? "correct" : "incorrect");
    return sign;
  };
  const describe = (i) => `Image ${table.row[i]}: ${names[table.truth[i]]}, predicted ${isCorrect(i) ? "correctly" : names[table.class0[i]]} with probability ${percent(table.probability0[i])}, loss ${loss(i)}`;

  function tile(i, side, showsPixels = isCrisp) {
    const place = i % layout.count, scale = side / longest, element = make("span", { className: showsPixels ? "tile crisp" : "tile" });
    element.dataset.sheetNumber = Math.floor(i / layout.count);
    const values = {
      "--w": width, "--h": height, "--scale": showsPixels ? Math.max(1, Math.floor(scale)) : scale,
      "--x": (place % layout.columns) * layout.pitch[0], "--y": Math.floor(place / layout.columns) * layout.pitch[1],
    };
    for (const [name, value] of Object.entries(values)) element.style.setProperty(name, value);
    return element;
  }

  function thumbnail(i) {
    const caption = make("span", {}, mark(i), " ", make("b", { textContent: names[table.class0[i]] }), ` ${percent(table.probability0[i], 0)}`);
    if (!isCorrect(i)) caption.append(make("br"), `true: ${names[table.truth[i]]}`);
    const button = make("button", { type: "button", className: isCorrect(i) ? "correct" : "incorrect", tabIndex: -1, title: describe(i) }, tile(i, THUMBNAIL_SIDE), caption);
    button.dataset.row = table.row[i];
    return button;
  }

  function describeCluster(i) {
    const option = root.querySelector(`[data-field="cluster"] option[value="${table.cluster[i]}"]`);
    return option ? `Cluster ${option.textContent}` : "Without a cluster";
  }

  // A heading before the first image of each class or cluster.
  function heading(i) {
    if (state.sort === "truth") return names[table.truth[i]];
    return state.sort === "cluster" ? describeCluster(i) : "";
  }

  function showPage(next) {
    page = next;
    const first = page * PAGE_IMAGES, shown = images.slice(first, first + PAGE_IMAGES), items = [];
    shown.forEach((i, place) => {
      const title = heading(i);
      if (title && (!place || title !== heading(shown[place - 1]))) items.push(make("h3", { textContent: title }));
      items.push(thumbnail(i));
    });
    grid.replaceChildren(...items);
    const start = grid.querySelector("button");
    if (start) start.tabIndex = 0;
    const wrong = images.filter((i) => !isCorrect(i)).length;
    count.textContent = images.length
      ? `Images ${(first + 1).toLocaleString("en")} to ${(first + shown.length).toLocaleString("en")} of ${images.length.toLocaleString("en")}, ${wrong.toLocaleString("en")} of them incorrect.`
      : "No such images.";
    pager.hidden = images.length <= PAGE_IMAGES;
    for (const button of all("button", pager)) button.disabled = !images[(page + +button.dataset.step) * PAGE_IMAGES];
  }

  function showImages() {
    for (const select of selects) select.value = state[select.dataset.field] ?? select.options[0].value;
    images = selectImages(table, state, search.value);
    const at = images.findIndex((i) => String(table.row[i]) === state.row);
    showPage(Math.max(0, Math.floor(at / PAGE_IMAGES)));
  }

  // ---- the address: filters and the open image are in the fragment, so that links and the back button work ----
  function address(next) {
    const parts = [...FIELDS, "row"].filter((key) => next[key]).map((key) => `${key}=${next[key]}`);
    return `#gallery${parts.length ? ":" : ""}${parts.join(",")}`;
  }

  function readAddress() {
    const { id, state: next } = readFragment();
    if (id !== "gallery" && id !== "view-gallery") return panel.close();
    const before = address({ ...state, row: "" });
    state = next;
    if (address({ ...state, row: "" }) !== before) {
      showImages();
      root.closest("section").scrollIntoView();
    } else if (state.row && !grid.querySelector(`[data-row="${state.row}"]`)) showImages();
    showPanel();
  }

  function change(next, replace = false) {
    state = { ...state, ...next };
    history[replace ? "replaceState" : "pushState"]({ isPanel: Boolean(state.row) }, "", address(state));
  }

  // ---- the panel ----
  function fact(name, ...value) {
    const head = make("th", { textContent: name });
    head.scope = "row";
    return make("tr", {}, head, make("td", {}, ...value));
  }

  function bars(i) {
    const list = make("dl", { className: "bars" });
    const add = (name, probability) => {
      const bar = make("span");
      bar.style.width = `${probability * 100}%`;
      list.append(make("dt", { textContent: name }), make("dd", {}, make("span", { className: "bar" }, bar)), make("dd", { textContent: percent(probability, 2) }));
    };
    let rest = 1;
    table.classes.forEach((labels, place) => {
      add(names[labels[i]], table.probabilities[place][i]);
      rest -= table.probabilities[place][i];
    });
    if (table.classes.length < names.length) add("all other classes", Math.max(0, rest));
    return list;
  }

  // An image in the panel: as the model receives it where the page has it, otherwise its thumbnail, whose pixels show.
  function enlarge(i) {
    const side = Math.min(320, innerWidth - 80), photo = root.querySelector(`[data-photo="${table.row[i]}"] img`);
    if (photo) return make("img", { src: photo.src, alt: describe(i), width: side, className: "full" });
    const picture = tile(i, side, true);
    picture.setAttribute("role", "img");
    picture.setAttribute("aria-label", describe(i));
    if (!data.is_enlarged) return picture;
    return make("figure", {}, picture, make("figcaption", { className: "caption", textContent: `The thumbnail of ${height} \u00d7 ${width} pixels, enlarged.` }));
  }

  function showPanel() {
    if (!state.row) return panel.close();
    const i = table.row.indexOf(+state.row), at = images.indexOf(i);
    const close = make("button", { type: "button", textContent: "Close", autofocus: true, onclick: leavePanel });
    if (i < 0) {
      panel.replaceChildren(make("h2", { textContent: `Image ${state.row}` }), make("p", { textContent: "The gallery does not hold this image." }), make("p", { className: "controls" }, close));
    } else {
      const example = data.examples[table.row[i]];
      const rows = make("tbody", {},
        fact("True class", names[table.truth[i]]),
        fact("Predicted class", mark(i), ` ${names[table.class0[i]]}`),
        fact("Loss", loss(i)));
      rows.prepend(fact("Name", make("code", { textContent: table.ids[i] })));
      if (table.cluster?.[i] >= 0) rows.append(fact("Cluster", make("a", { href: `#gallery:cluster=${table.cluster[i]}`, textContent: table.cluster[i] + 1 })));
      if (example !== undefined && document.getElementById("view-image")) rows.append(fact("Heatmaps", make("a", { href: `#view-image:image=${example}`, textContent: "of this image" })));
      rows.append(fact("More views", make("code", { textContent: data.command.replace("{row}", table.row[i]) })));
      const step = (by, text) => make("button", { type: "button", textContent: text, disabled: images[at + by] === undefined, onclick: () => stepPanel(by) });
      panel.replaceChildren(make("h2", { textContent: `Image ${table.row[i]}` }),
        make("div", { className: "particulars" }, enlarge(i), make("div", {}, make("table", {}, rows), bars(i))),
        make("p", { className: "controls" }, step(-1, "Previous"), step(1, "Next"), close));
    }
    panel.setAttribute("aria-label", `Image ${state.row}`);
    if (!panel.open) panel.showModal();
  }

  function stepPanel(by) {
    const next = images[images.findIndex((i) => String(table.row[i]) === state.row) + by];
    if (next === undefined) return;
    change({ row: String(table.row[next]) }, true);
    showPanel();
    (all("button", panel).find((button) => !button.disabled && button.textContent === (by > 0 ? "Next" : "Previous")) ?? panel.querySelector("button:last-child")).focus();
  }

  // Leaves the panel by the way it was opened, so that the back button does not open it again.
  function leavePanel() {
    if (history.state?.isPanel) return history.back();
    change({ row: "" }, true);
    showPanel();
  }

  panel.addEventListener("cancel", (event) => { event.preventDefault(); leavePanel(); });
  panel.addEventListener("click", (event) => event.target === panel && leavePanel());
  panel.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by) { event.preventDefault(); stepPanel(by); }
  });
  panel.addEventListener("close", () => grid.querySelector('[tabindex="0"]')?.focus());

  // ---- controls ----
  grid.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    moveTo(button);
    change({ row: button.dataset.row });
    showPanel();
  });
  function moveTo(button) {
    for (const other of all('[tabindex="0"]', grid)) other.tabIndex = -1;
    button.tabIndex = 0;
    button.focus();
  }
  grid.addEventListener("keydown", (event) => {
    const buttons = all("button", grid), at = buttons.indexOf(document.activeElement);
    const perRow = getComputedStyle(grid).gridTemplateColumns.split(" ").length;
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, ArrowUp: at - perRow, ArrowDown: at + perRow, Home: 0, End: buttons.length - 1 }[event.key];
    if (to === undefined || at < 0) return;
    event.preventDefault();
    if (buttons[to]) moveTo(buttons[to]);
  });
  for (const select of selects) {
    select.addEventListener("input", () => { change({ [select.dataset.field]: select.value, row: "" }); showImages(); });
  }
  search.addEventListener("input", showImages);
  root.querySelector("[data-clear]").addEventListener("click", () => { search.value = ""; change(Object.fromEntries([...FIELDS, "row"].map((key) => [key, ""]))); showImages(); });
  for (const button of all("button", pager)) {
    button.addEventListener("click", () => { showPage(page + +button.dataset.step); root.scrollIntoView(); });
  }
  addEventListener("hashchange", readAddress);
  root.querySelector(".controls").hidden = false;
  document.body.append(panel);
  showImages();
  readAddress();
}

// Cells of the confusion matrix lead to their images.
function linkMatrix(table) {
  const names = all("thead th", table).slice(1).map((head) => head.textContent.trim());
  [...table.tBodies[0].rows].forEach((row, truth) => {
    const counts = all("td", row).map((cell) => parseInt(cell.textContent.replaceAll(",", ""), 10) || 0), total = counts.reduce((sum, count) => sum + count, 0);
    all("td", row).forEach((cell, predicted) => {
      if (!counts[predicted]) return;
      const title = `${names[truth]} predicted as ${names[predicted]}: ${counts[predicted]} images, ${((100 * counts[predicted]) / total).toFixed(1)}% of ${names[truth]}`;
      cell.replaceChildren(make("a", { href: `#gallery:truth=${truth},predicted=${predicted}`, title }, ...cell.childNodes));
    });
  });
}
