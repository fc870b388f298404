"use strict";
// The scripts of a page share one scope, in this order: uplot.min.js, tools.js, plots.js, sheets.js, page.js.
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const read = (element) => JSON.parse(element.textContent);
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const minus = (text) => text.replace("-", "\u2212");
