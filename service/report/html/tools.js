"use strict";
// The scripts of a page share one scope, in the order of `pages/scripts.py`.
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const read = (element) => JSON.parse(element.textContent);
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const minus = (text) => text.replace("-", "\u2212");
