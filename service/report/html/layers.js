// Lists of layers: searched by name, and blocks opened all at once.

// The list of layers is open where it stands beside the layers.
function openOnWideScreens(box) {
  box.open = matchMedia("(min-width: 1100px)").matches;
}

// Shows only the layers that contain the words of a search field, and opens side branches that hold one.
function findLayer(field) {
  const root = field.closest("[data-layers]"), count = root.querySelector("[data-count]");
  const layers = all(".layer[data-layer]", root), links = all("[data-jump] li", root), groups = all("[data-group]", root);
  field.closest("label").hidden = false;
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    const matches = (element) => words.every((word) => element.dataset.layer.toLowerCase().includes(word));
    for (const element of [...layers, ...links]) element.hidden = !matches(element);
    const found = layers.filter((layer) => !layer.hidden);
    for (const group of groups) {
      group.hidden = all("[data-layer]", group).every((element) => element.hidden);
      if (group.matches("details") && words.length) group.open = !group.hidden;
    }
    count.textContent = words.length ? `${found.length} of ${layers.length} layers` : "";
  });
}

// Opens all blocks that a button is for, or closes them again.
function openAll(button) {
  const boxes = all(button.dataset.openAll);
  button.hidden = boxes.length < 2;
  button.setAttribute("aria-pressed", "false");
  button.addEventListener("click", () => press(button, (pressed) => {
    for (const box of boxes) box.open = pressed;
  }));
}
