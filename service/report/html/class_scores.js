// Scores by class: the rows of the classes that are not shown at once are made when they are asked for.
function classScores(details) {
  const percent = (share) => (Number.isFinite(share) ? `${(share * 100).toFixed(1)}%` : "\u2013");
  const cell = (text, value) => {
    const element = make("td", { textContent: text });
    element.dataset.value = Number.isFinite(value) ? value : "";
    return element;
  };
  const row = ([label, name, images, predicted, correct]) => {
    const first = make("td", { className: "text" }, make("a", { href: `#gallery:truth=${label}`, textContent: name }));
    const scores = [correct / predicted, correct / images, (2 * correct) / (images + predicted)];
    return make("tr", {}, first, cell(images.toLocaleString("en"), images), ...scores.map((score) => cell(percent(score), score)));
  };
  details.addEventListener("toggle", () => details.querySelector("tbody").append(...read(details.querySelector("script")).map(row)), { once: true });
}
